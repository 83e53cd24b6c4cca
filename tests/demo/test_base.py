"""Training the base: the loss falls, and the checkpoint is a plain Qwen3 for mlx-lm."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from recipes.demo import base, greedy, rows, tokenizer
from recipes.demo.corpus import Question, conversation

pytestmark = pytest.mark.full

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def test_the_full_size_fits_into_twelve_megabytes() -> None:
    hidden, layers = base.SHAPE["hidden_size"], base.SHAPE["num_hidden_layers"]
    heads = base.SHAPE["num_attention_heads"] + base.SHAPE["num_key_value_heads"]
    attention = 2 * hidden * heads * base.SHAPE["head_dim"]
    layer = 2 * attention + 3 * hidden * base.SHAPE["intermediate_size"] + 4 * hidden
    parameters = layers * layer + tokenizer.VOCABULARY * hidden
    assert 2 * parameters + 60_000 < 12_000_000


def test_a_short_run_learns_and_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversations = [conversation(0, i) for i in range(2000)]
    vocabulary = tokenizer.train(conversations)
    tokenizer.save(vocabulary, tmp_path / "tokenizer")
    tokens, learn = rows.pack(rows.encode(conversations[:60], vocabulary), 96, pad=0)
    model = base.train(
        base.build(TINY, seed=0),
        np.repeat(tokens[:4], 8, axis=0),
        np.repeat(learn[:4], 8, axis=0),
        steps=24,
        batch=4,
        learning_rate=1e-2,
        warmup=2,
        dtype=mx.float32,
        seed=0,
        report=8,
    )
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines()]
    assert losses[0] > losses[-1] + 0.5

    base.save(model, TINY, tmp_path / "tokenizer", tmp_path / "base")
    loaded, config = load_model(tmp_path / "base")
    assert config["model_type"] == "qwen3"
    mine = dict(tree_flatten(model.parameters()))
    for name, weight in tree_flatten(loaded.parameters()):
        assert mx.array_equal(weight, mine[name].astype(mx.bfloat16)).item()


def test_greedy_answers_are_those_of_one_prompt_alone(tmp_path: Path) -> None:
    vocabulary = tokenizer.train(conversation(0, i) for i in range(2000))
    model = base.build(TINY, seed=1)
    prompts = ["Hi", "What is 2 + 3?"]
    questions = [Question("x", [{"role": "user", "content": text}], None) for text in prompts]
    together = greedy.answers(model, vocabulary, questions, limit=6)
    for question, reply in zip(questions, together, strict=True):
        ids = vocabulary.encode(greedy.prompt_text(question)).ids
        start = len(ids)
        while len(ids) < start + 6:
            token = model(mx.array([ids]))[0, -1].argmax().item()
            if token == tokenizer.EOS_ID:
                break
            ids.append(token)
        assert vocabulary.decode(ids[start:]) == reply
