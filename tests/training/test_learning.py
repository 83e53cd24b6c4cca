"""The view learns to draft what its base answers, and changes none of the answers."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from orthrus_mlx import load, mlx_generate
from orthrus_mlx.checkpoint.config import ModelConfig
from orthrus_mlx.errors import DataError
from orthrus_mlx.model import Model
from orthrus_mlx.training import train
from orthrus_mlx.training.data import Example
from orthrus_mlx.training.events import Event, Regenerated
from orthrus_mlx.training.loss import DiffWeights, read_texts, set_weights
from orthrus_mlx.training.run import Run
from tests.helpers import random_weights, write_checkpoint
from tests.reference import orthrus_torch

from .conftest import WORDS, base_config, chat, options, recite, write_jsonl


@pytest.fixture(scope="module")
def reciting_base(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """Another base (sizes, untied head), taught to recite."""
    raw = base_config(
        hidden_size=48,
        intermediate_size=64,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
        rope_parameters={"rope_theta": 100.0, "rope_type": "default"},
    )
    model = Model(ModelConfig.from_dict({**raw, "block_size": 8, "mask_token_id": len(WORDS)}))
    weights = {
        name: a / 2 if a.ndim == 2 else mx.ones_like(a)
        for name, a in random_weights(raw, diffusion=False).items()
    }
    words = {word: i for i, word in enumerate(WORDS)}
    start = 2 + 3 + 3  # of the answer

    def loss(weights: DiffWeights, ids: mx.array) -> mx.array:
        set_weights(model, weights)
        logits = read_texts(model, ids[:, :-1]).logits[:, start - 1 :]
        return nn.losses.cross_entropy(logits, ids[:, start:]).mean()

    optimizer = optim.AdamW(1e-2, weight_decay=0.0, bias_correction=True)
    for step in range(40):
        texts = []
        for i in range(32):
            asked, said = recite(10_000 + 32 * step + i)
            asked = f"<|im_start|> user {asked} <|im_end|>"
            text = f"{asked} <|im_start|> assistant {said} <|im_end|>"
            texts.append([words[word] for word in text.split()])
        value, gradients = mx.value_and_grad(loss)(weights, mx.array(texts, mx.int32))
        weights = optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, optimizer.state)
    assert value.item() < 0.05
    folder = tmp_path_factory.mktemp("recite") / "base"
    return write_checkpoint(folder, raw, weights, tokenizer_from=tokenizer_dir)


def decode(folder: Path, mode: str) -> tuple[list[list[int]], float]:
    """Greedy ids for some prompts, and tokens per cycle."""
    model, tokenizer = load(folder)
    runs: list[Any] = []
    ids = [
        list(
            mlx_generate(model, prompt, ENDS, 20, mode=mode, cycle="two-pass", on_stats=runs.append)
        )
        for prompt in prompts(tokenizer)
    ]
    return ids, sum(r.generation_tokens for r in runs) / sum(r.cycles for r in runs)


ENDS = {0, 2}  # <|endoftext|> and <|im_end|>


def prompts(tokenizer: Any) -> list[list[int]]:
    asked = [[{"role": "user", "content": recite(i)[0]}] for i in range(2000, 2012)]
    return [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages in asked
    ]


def test_another_base_learns_to_draft_and_torch_agrees(
    reciting_base: Path, data_dir: Path, tmp_path: Path
) -> None:
    given = options(reciting_base, data_dir, tmp_path / "untrained", block_size=8)
    train(given.with_changes(iters=1, learning_rate=1e-12))
    trained = given.with_changes(
        output=tmp_path / "trained",
        iters=80,
        batch_size=8,
        anchors=4,
        steps_per_eval=80,
        val_batches=-1,
        val_prompts=5,
        val_max_tokens=20,
    )
    result = train(trained)

    untrained_ids, before = decode(tmp_path / "untrained", "parallel")
    ids, after = decode(tmp_path / "trained", "parallel")
    assert before < 2
    assert after > 5
    (first, loss_before, gain_before), (last, loss_after, gain_after) = result.validations
    assert (first, last) == (0, 80)
    assert loss_after < 0.1 * loss_before
    assert gain_before < 2
    assert gain_after > 5

    # The answers are the base's own, whatever drafts them; and torch's, from the same files.
    assert ids == untrained_ids == decode(tmp_path / "trained", "ar")[0]
    reference = orthrus_torch.load(tmp_path / "trained")
    _, tokenizer = load(tmp_path / "trained")
    for prompt, wanted in zip(prompts(tokenizer), ids, strict=True):
        assert orthrus_torch.greedy_two_pass(reference, prompt, 20, ENDS)[0] == wanted


def test_the_base_writes_the_answers_to_train_on(reciting_base: Path, tmp_path: Path) -> None:
    questions = [recite(i) for i in range(10)]
    wrong = [chat((asked, "n0 n0")) for asked, _ in questions]
    write_jsonl(tmp_path / "data" / "train.jsonl", wrong)
    write_jsonl(tmp_path / "data" / "valid.jsonl", wrong[:1])
    given = options(reciting_base, tmp_path / "data", tmp_path / "out", regenerate=True)

    def stop(event: Event) -> None:
        if isinstance(event, Regenerated) and event.split == "train" and event.done == 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orthrus_mlx.training.regenerate.CHUNK", 4)
        assert train(given, stop).interrupted
    kept = tmp_path / "out.training" / "regenerated-train.jsonl"
    assert len(kept.read_text().splitlines()) == 8
    with kept.open("a") as file:
        file.write("[1, 2")  # cut short

    seen: list[list[Example]] = []

    class Spy(Run):
        def __init__(self, *args: Any) -> None:
            seen.extend(args[2:4])
            super().__init__(*args)

    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orthrus_mlx.training.trainer.Run", Spy)
        train(given.with_changes(resume=True), events.append)
    done = [(e.split, e.done) for e in events if isinstance(e, Regenerated)]
    assert done == [("train", 8), ("train", 10), ("valid", 0), ("valid", 1)]
    tokenizer = load(tmp_path / "out")[1]
    for example, (_, answer) in zip(seen[0], questions, strict=True):
        [span] = example.answers
        assert tokenizer.decode(example.ids[span.start :]) == f"{answer} <|im_end|>"


def test_a_text_has_no_answer_to_regenerate(base_dir: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"text": "n1 n2 n3"}])
    with pytest.raises(DataError, match="no answers to regenerate"):
        train(options(base_dir, tmp_path / "data", tmp_path / "out", regenerate=True))
