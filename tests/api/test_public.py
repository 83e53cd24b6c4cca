"""The public names, their signatures, and what importing them costs."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import orthrus_mlx
from orthrus_mlx import errors, load, load_model_and_tokenizer, mlx_generate, stream_generate

REQUIRED = inspect.Parameter.empty


def test_all_is_what_is_exported() -> None:
    public = {
        name
        for name, value in vars(orthrus_mlx).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert set(orthrus_mlx.__all__) == public | {"__version__"}
    assert list(orthrus_mlx.__all__) == sorted(orthrus_mlx.__all__)


def test_every_error_is_exported_and_belongs_to_one_tree() -> None:
    defined = [v for v in vars(errors).values() if inspect.isclass(v)]
    for error in defined:
        assert issubclass(error, errors.OrthrusError)
        assert getattr(orthrus_mlx, error.__name__) is error
        assert error.__name__ in (errors.__doc__ or "")
    assert issubclass(errors.GenerationError, ValueError)


def test_load_has_the_name_that_the_authors_use_too() -> None:
    assert load_model_and_tokenizer is load


def test_mlx_generate_takes_what_the_design_says() -> None:
    design = {
        "model": REQUIRED,
        "prompt_tokens": REQUIRED,
        "eos_token_id": REQUIRED,
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "seed": None,
        "mode": "auto",
        "cycle": "auto",
        "numerics": "fast",
        "prompt_cache": None,
        "logits_processors": None,
        "on_stats": None,
    }
    parameters = inspect.signature(mlx_generate).parameters
    found = {name: parameter.default for name, parameter in parameters.items()}
    assert list(found.items())[: len(design)] == list(design.items())
    assert REQUIRED not in list(found.values())[len(design) :]  # more options, not more demands
    by_name_only = [p.kind is p.KEYWORD_ONLY for p in parameters.values()]
    assert by_name_only == [False] * 5 + [True] * (len(found) - 5)


def test_the_design_examples_run(
    measured_tiny16: Path, tiny16_golden: list[dict[str, Any]]
) -> None:
    """The authors' snippet and the one of the README, with a folder for the model's name."""
    model, tokenizer = load_model_and_tokenizer(str(measured_tiny16))
    ids = tokenizer.encode("If a rectangle has length 12 and width 7, what is its area?")
    tokens = []
    for token in mlx_generate(model, ids, tokenizer.eos_token_id, max_tokens=24):
        assert type(token) is int
        tokens.append(token)
    assert 0 < len(tokens) <= 24

    case = tiny16_golden[0]
    text, last = "", None
    for last in stream_generate(
        model, tokenizer, case["prompt"], max_tokens=24, temperature=0.7, top_p=0.9, seed=1
    ):
        text += last.text
    assert text and last is not None and last.finish_reason in ("stop", "length")

    prompt = mx.array(case["prompt"])
    answer = list(mlx_generate(model, prompt, tokenizer.eos_token_id, 64))
    assert answer == case["tokens"] and answer[-1] == tokenizer.eos_token_id
    pieces = stream_generate(model, tokenizer, case["prompt"], 64)
    assert "".join(r.text for r in pieces) == tokenizer.decode(answer[:-1])


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "module", ["orthrus_mlx", "orthrus_mlx.errors", "orthrus_mlx.decoding.engine"]
)
def test_importing_pulls_in_nothing_heavy(module: str) -> None:
    heavy = {"torch", "transformers", "typer", "rich", "prompt_toolkit", "mlx_lm", "tokenizers"}
    names = "{name.partition('.')[0] for name in sys.modules}"
    found = run_python(f"import sys, {module}; print(*({heavy!r} & {names}))")
    assert found.stdout.split() == []


def test_importing_is_quick() -> None:
    """Processor time, of which a busy machine takes no more."""

    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime

    assert min(seconds("import orthrus_mlx") for _ in range(3)) < 0.5
