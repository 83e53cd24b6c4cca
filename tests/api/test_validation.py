"""Requests that cannot be decoded are refused at once, by name, before anything is computed."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import (
    ContextLengthError,
    DecodeStats,
    GenerationError,
    OrthrusError,
    PromptError,
    SamplingError,
    mlx_generate,
    stream_generate,
)
from tests.lossless.fake_model import FakeModel
from tests.lossless.scenarios import WAYS

BAD_PROMPTS: dict[str, Any] = {
    "empty": [],
    "empty array": mx.array([], dtype=mx.int32),
    "two dimensions": mx.array([[1, 2]]),
    "no dimension": mx.array(3),
    "floats": mx.array([1.0, 2.0]),
    "a list in a list": [[1, 2]],
    "text": "ab",
    "a float": [1, 2.0],
    "None": [1, None],
    "a bool": [True, 1],
    "negative": [1, -1],
    "one past the vocabulary": [23],
    "far past the vocabulary": [1 << 40],
}


@pytest.mark.parametrize("prompt", BAD_PROMPTS.values(), ids=BAD_PROMPTS.keys())
def test_bad_prompts(prompt: Any) -> None:
    model = FakeModel(vocab_size=23)
    with pytest.raises(PromptError, match="prompt"):
        mlx_generate(model, prompt, 2)
    assert model.log == []


def test_an_empty_text_prompt(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="empty"):
        stream_generate(FakeModel(), tokenizer, "")


BAD_OPTIONS: list[tuple[type[OrthrusError], str, Any]] = [
    (SamplingError, "temperature", -0.1),
    (SamplingError, "temperature", math.nan),
    (SamplingError, "temperature", math.inf),
    (SamplingError, "temperature", "1"),
    (SamplingError, "temperature", None),
    (SamplingError, "temperature", True),
    (SamplingError, "top_p", 1.01),
    (SamplingError, "top_p", -0.5),
    (SamplingError, "top_p", math.nan),
    (SamplingError, "min_p", 1.5),
    (SamplingError, "min_p", -0.1),
    (SamplingError, "top_k", -1),
    (SamplingError, "top_k", 2.0),
    (SamplingError, "top_k", True),
    (SamplingError, "seed", -1),
    (SamplingError, "seed", 1 << 64),
    (SamplingError, "seed", 1.0),
    (SamplingError, "seed", False),
    (GenerationError, "mode", "diffusion"),
    (GenerationError, "mode", None),
    (GenerationError, "cycle", "three-pass"),
    (GenerationError, "numerics", "slow"),
    (GenerationError, "max_tokens", -2),
    (GenerationError, "max_tokens", 1.5),
    (GenerationError, "max_tokens", None),
    (GenerationError, "max_tokens", True),
    (GenerationError, "block_size", 1),
    (GenerationError, "block_size", -4),
    (GenerationError, "block_size", 8.0),
    (GenerationError, "block_size", True),
    (GenerationError, "prefill_step_size", 0),
    (GenerationError, "prefill_step_size", -1),
    (GenerationError, "prefill_step_size", 2.5),
]


@pytest.mark.parametrize(("error", "name", "value"), BAD_OPTIONS)
def test_bad_options_are_named(
    error: type[OrthrusError], name: str, value: Any, tokenizer: Any
) -> None:
    model = FakeModel()
    with pytest.raises(error, match=name) as caught:
        mlx_generate(model, [1], 2, **{name: value})
    assert isinstance(caught.value, ValueError)
    assert repr(value) in str(caught.value)
    with pytest.raises(error, match=name):
        stream_generate(model, tokenizer, [1], **{name: value})
    assert model.log == []


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@pytest.mark.parametrize("max_tokens", [-1, 6, 4000])
def test_generation_stops_at_the_context_limit(mode: Any, cycle: Any, max_tokens: int) -> None:
    model = FakeModel(max_positions=20, block_size=8)
    stats: list[DecodeStats] = []
    ids = mlx_generate(
        model, range(14), (), max_tokens, mode=mode, cycle=cycle, on_stats=stats.append
    )
    assert len(list(ids)) == 6
    assert stats[0].finish_reason == "length"


def test_a_prompt_must_leave_room_for_one_token() -> None:
    model = FakeModel(max_positions=20)
    assert len(list(mlx_generate(model, [1] * 19, (), 5))) == 1
    for n in (20, 21, 300):
        with pytest.raises(ContextLengthError, match=f"{n} tokens.*20"):
            mlx_generate(model, [1] * n, (), 5)


def test_what_a_prompt_cache_holds_counts_towards_the_context() -> None:
    model = FakeModel(max_positions=20)
    cache = model.make_cache()
    first = list(mlx_generate(model, [1] * 10, (), 5, prompt_cache=cache))
    assert cache[0].offset == 14
    with pytest.raises(ContextLengthError, match="14 cached"):
        mlx_generate(model, [*first[-1:], *[1] * 5], (), 5, prompt_cache=cache)
    assert cache[0].offset == 14  # refused without a trace
    rest = list(mlx_generate(model, [*first[-1:], *[1] * 4], (), 5, prompt_cache=cache))
    assert len(rest) == 1


def test_a_prompt_cache_of_another_model_is_refused() -> None:
    model = FakeModel(layers=2)
    for layers in (1, 3):
        cache = FakeModel(layers=layers).make_cache()
        with pytest.raises(GenerationError, match=f"{layers} layers"):
            mlx_generate(model, [1, 2], (), 4, prompt_cache=cache)


def test_a_run_never_started_leaves_the_cache_alone() -> None:
    model = FakeModel()
    cache = model.make_cache()
    mlx_generate(model, [1, 2], (), 5, prompt_cache=cache, calibrate=False).close()
    assert cache[0].offset == 0 and model.log == []
