"""Requests that cannot be decoded are refused at once, by name, before anything is computed."""

from __future__ import annotations

import math
from functools import partial
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
    prepare,
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
    "bytes": b"ab",
    "nothing": None,
    "a number": 3,
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
    (GenerationError, "on_stats", 3),
    (GenerationError, "prompt_progress_callback", 3),
    (GenerationError, "probe_progress_callback", "x"),
    (GenerationError, "logits_processors", [3]),
    (GenerationError, "calibrate", "no"),
    (GenerationError, "cached_ids", 5),
    (GenerationError, "evidence", {}),
    (GenerationError, "stop", [3]),
]


@pytest.mark.parametrize(("error", "name", "value"), BAD_OPTIONS)
def test_bad_options_are_named(
    error: type[OrthrusError], name: str, value: Any, tokenizer: Any
) -> None:
    model = FakeModel()
    generate = partial(stream_generate, model, tokenizer, [1])
    if name != "stop":
        generate = partial(mlx_generate, model, [1], 2)
    with pytest.raises(error, match=name) as caught:
        generate(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert repr(value) in str(caught.value)
    with pytest.raises(error, match=name):
        stream_generate(model, tokenizer, [1], **{name: value})
    assert model.log == []


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("sampler", "use temperature="),
        ("temp", "use temperature="),
        ("xtc_probability", "XTC"),
        ("max_kv_size", "rolled back"),
        ("draft_model", "diffusion view"),
        ("response_format", r"constraint=JsonSchema"),
        ("max_token", r"did you mean max_tokens=\?"),
        ("nonsense", "no option nonsense="),
    ],
)
def test_names_of_mlx_lm_say_what_to_use_instead(name: str, instead: str, tokenizer: Any) -> None:
    with pytest.raises(GenerationError, match=instead):
        mlx_generate(FakeModel(), [1], 2, **{name: 1})
    with pytest.raises(GenerationError, match=instead):
        stream_generate(FakeModel(), tokenizer, [1], **{name: 1})


@pytest.mark.parametrize("ends", [None, "2", ["2"], 2.0, True, [[2]]])
def test_bad_end_tokens(ends: Any) -> None:
    with pytest.raises(GenerationError, match=r"eos_token_id is .*expected a token id"):
        mlx_generate(FakeModel(), [1], ends)


@pytest.mark.parametrize("model", [None, "demo", object()])
def test_what_is_no_model(model: Any, tokenizer: Any) -> None:
    with pytest.raises(GenerationError, match=r"expected one from orthrus_mlx\.load"):
        mlx_generate(model, [1], 2)
    with pytest.raises(GenerationError, match=r"expected one from orthrus_mlx\.load"):
        stream_generate(model, tokenizer, [1])


def test_a_tokenizer_is_taken_by_what_it_can_do(tokenizer: Any) -> None:
    class Other:
        """Not of mlx-lm's class, and able to do as much."""

        bos_token, eos_token_ids, detokenizer = None, {2}, tokenizer.detokenizer
        encode = tokenizer.encode

    def said(tokenizer: Any) -> str:
        answer = stream_generate(FakeModel(vocab_size=300), tokenizer, "ab", 5, seed=1, mode="ar")
        return "".join(r.text for r in answer)

    assert said(Other()) == said(tokenizer._tokenizer) == said(tokenizer)
    for nothing in (None, "demo", object()):
        with pytest.raises(GenerationError, match="or a tokenizer of transformers"):
            stream_generate(FakeModel(), nothing, [1])


def test_blocks_beyond_the_trained_one_are_refused(tokenizer: Any) -> None:
    model = FakeModel(block_size=5)
    with pytest.raises(GenerationError, match=r"block_size is 6; .*at most 5 rows"):
        mlx_generate(model, [1], 2, block_size=6)
    with pytest.raises(GenerationError, match=r"block_size is 6; .*at most 5 rows"):
        prepare(model, block_size=6)
    assert model.log == []
    assert len(list(mlx_generate(model, [1], (), 3, block_size=5))) == 3


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
