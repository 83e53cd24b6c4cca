"""A tiny language that is learned in seconds: counting on in steps, round a ring of 16 numbers.

user "d2 n5" -> assistant "n5 n7 n9 n11 n13 n15 n1 n3 n5"; see `count_on`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers import random_config, random_weights, write_checkpoint

RING, ANSWER = 16, 9
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system"]
WORDS += [f"d{i}" for i in range(1, 4)] + [f"n{i}" for i in range(RING)]
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


def count_on(step: int, start: int) -> tuple[str, str]:
    """Question and answer."""
    numbers = [f"n{(start + i * step) % RING}" for i in range(ANSWER)]
    return f"d{step} n{start}", " ".join(numbers)


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


ALL = [count_on(step, start) for step in (1, 2, 3) for start in range(RING)]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Chats of one turn, and some of two."""
    records = [chat(turn) for turn in ALL] + [
        chat(a, b) for a, b in zip(ALL, ALL[7:], strict=False)
    ]
    write_jsonl(tmp_path / "data" / "train.jsonl", records)
    write_jsonl(tmp_path / "data" / "valid.jsonl", [chat(turn) for turn in ALL[::5]])
    return tmp_path / "data"
