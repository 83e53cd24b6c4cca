"""A tiny language that is learned in seconds: four sentences, asked for by their first words.

user "n6 n20 n3" -> assistant "n6 n7 n8 n9 n10 n11" (whatever the user says after n6)
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx.training import TrainOptions
from tests.helpers import random_config, random_weights, write_checkpoint

LENGTH = 6
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
WORDS += [f"n{i}" for i in range(24)]
TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + ' ' + m.content + ' <|im_end|> ' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant ' }}{%- endif %}"
)


@pytest.fixture(autouse=True)
def no_kernel_compilation() -> Iterator[None]:
    """On a CPU, compiling the fused kernels takes longer than all these tests."""
    if mx.default_device() == mx.cpu and not os.environ.get("ORTHRUS_COMPILED_TESTS"):
        mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a word; the numbers from len(WORDS) on are no token's."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_tokenizer(folder: Path, template: str = TEMPLATE) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def base_config(**overrides: Any) -> dict[str, Any]:
    """A plain Qwen3 for these words, with ids to spare for a mask."""
    sizes: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "layer_types": None,
        "max_window_layers": None,
        "vocab_size": len(WORDS) + 3,
        "tie_word_embeddings": True,
        "auto_map": None,
        "block_size": None,
        "mask_token_id": None,
    }
    return random_config(0, **{**sizes, **overrides})


@pytest.fixture
def base_dir(tmp_path: Path, tokenizer_dir: Path) -> Path:
    """An untrained plain Qwen3, float32."""
    config = base_config()
    weights = random_weights(config, diffusion=False)
    return write_checkpoint(tmp_path / "base", config, weights, tokenizer_from=tokenizer_dir)


def recite(seed: int) -> tuple[str, str]:
    """Question and answer."""
    draw = random.Random(seed)
    first = LENGTH * draw.randrange(4)
    question = [first, draw.randrange(24), draw.randrange(24)]
    answer = range(first, first + LENGTH)
    return " ".join(f"n{i}" for i in question), " ".join(f"n{i}" for i in answer)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    messages = []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return {"messages": messages}


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats of one turn, and some of two."""
    folder = tmp_path_factory.mktemp("data")
    records = [chat(recite(i)) for i in range(150)]
    records += [chat(recite(i), recite(i + 1)) for i in range(200, 210, 2)]
    write_jsonl(folder / "train.jsonl", records)
    write_jsonl(folder / "valid.jsonl", [chat(recite(i)) for i in range(1000, 1010)])
    return folder


def options(base: Path, data: Path, output: Path, **changes: Any) -> TrainOptions:
    small = {
        "block_size": 4,
        "iters": 6,
        "batch_size": 4,
        "anchors": 3,
        "max_seq_length": 64,
        "learning_rate": 1e-2,
        "steps_per_report": 2,
        "steps_per_eval": 0,
        "val_batches": 1,
        "val_prompts": 1,
        "val_max_tokens": 8,
    }
    return TrainOptions(**{"model": base, "data": data, "output": output, **small, **changes})


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= mx.load(str(file))
    return found
