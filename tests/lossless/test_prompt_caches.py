"""Prompt caches: those that cannot be rolled back are refused; quantized ones stay lossless."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models import cache as caches

from orthrus_mlx import GenerationError, ModelConfig, mlx_generate
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows
from tests import helpers

CONFIG = ModelConfig.from_dict(
    helpers.random_config(
        block_size=6,
        head_dim=64,
        hidden_size=48,
        intermediate_size=48,
        num_hidden_layers=2,
        num_key_value_heads=2,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=True,
    ),
    "test",
)
PROMPT = [(7 * i) % 60 for i in range(9)]
TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Any:
    mx.random.seed(4)
    made = Model(CONFIG)
    made.eval()
    mx.eval(made.parameters())
    return made


def filled(model: Any, kind: Any = caches.KVCache, lengths: tuple[int, ...] = (3, 3)) -> list[Any]:
    made = [kind() for _ in lengths]
    for layer, length in zip(made, lengths, strict=True):
        rows = mx.zeros((1, 2, length, 64))
        layer.update_and_fetch(rows, rows)
    return made


def of_shape(*shape: int) -> caches.KVCache:
    layer = caches.KVCache()
    layer.update_and_fetch(mx.zeros(shape), mx.zeros(shape))
    return layer


def no_arrays() -> caches.KVCache:
    layer = caches.KVCache()
    layer.offset = 3
    return layer


def whole_numbers() -> list[Any]:
    made = [of_shape(1, 2, 3, 64), of_shape(1, 2, 3, 64)]
    made[1].values = made[1].values.astype(mx.int32)
    return made


def negative() -> caches.KVCache:
    layer = caches.KVCache()
    layer.offset = -1
    return layer


BAD = {
    "rotating": lambda m: [caches.RotatingKVCache(8) for _ in range(2)],
    "concatenate": lambda m: filled(m, caches.ConcatenateKVCache),
    "chunked": lambda m: [caches.ChunkedKVCache(8) for _ in range(2)],
    "mixed": lambda m: [caches.KVCache(), caches.QuantizedKVCache()],
    "uneven": lambda m: filled(m, lengths=(3, 4)),
    "one object twice": lambda m: [caches.KVCache()] * 2,
    "too few": lambda m: [caches.KVCache()],
    "none": lambda m: [None, None],
    "other heads": lambda m: [of_shape(1, 1, 3, 64), of_shape(1, 1, 3, 64)],
    "other head size": lambda m: [of_shape(1, 2, 3, 32), of_shape(1, 2, 3, 32)],
    "a batch": lambda m: [of_shape(2, 2, 3, 64), of_shape(2, 2, 3, 64)],
    "no arrays": lambda m: [no_arrays(), no_arrays()],
    "negative": lambda m: [negative(), negative()],
    "a tuple": lambda m: (caches.KVCache(), caches.KVCache()),
    "odd bits": lambda m: [caches.QuantizedKVCache(bits=7) for _ in range(2)],
    "bits in words": lambda m: [caches.QuantizedKVCache(bits="8") for _ in range(2)],
    "wide groups": lambda m: [caches.QuantizedKVCache(group_size=128) for _ in range(2)],
    "no groups": lambda m: [caches.QuantizedKVCache(group_size=0) for _ in range(2)],
    "whole numbers": lambda m: whole_numbers(),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("mode", ["parallel", "ar"])
def test_a_cache_that_cannot_be_used_is_refused_before_anything_is_computed(
    model: Any, kind: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BAD[kind](model)
    monkeypatch.setattr(Model, "forward", lambda *_: pytest.fail("computed something"))
    with pytest.raises(GenerationError, match=r"prompt cache .*model\.make_cache\(\)"):
        mlx_generate(model, PROMPT, (), 4, mode=mode, prompt_cache=cache)


def ar_of_mlx_lm(model: Any, bits: int, start: int) -> list[int]:
    """As mlx-lm's `generate_step` writes over a quantized cache."""
    cache, written = model.make_cache(), list[int]()

    def step(ids: list[int]) -> int:
        logits, _ = model.forward(Rows.verify(mx.array(ids), cache))
        maybe_quantize_kv_cache(cache, start, 64, bits)
        return int(mx.argmax(logits[-1]).item())

    step(PROMPT[:-1])
    token = PROMPT[-1]
    for _ in range(TOKENS):
        token = step([token])
        written.append(token)
    return written


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("start", [0, 8, 9, 17, 1000])
def test_every_mode_writes_the_same_over_a_quantized_cache(
    model: Any, bits: int, start: int
) -> None:
    expected = ar_of_mlx_lm(model, bits, start)
    options: Any = {"kv_bits": bits, "quantized_kv_start": start, "calibrate": False}
    for mode, cycle in [
        ("ar", "auto"),
        ("auto", "auto"),
        ("parallel", "two-pass"),
        ("parallel", "one-pass"),
        ("parallel", "alternating"),
    ]:
        cache = model.make_cache()
        run = mlx_generate(
            model, PROMPT, (), TOKENS, mode=mode, cycle=cycle, prompt_cache=cache, **options
        )
        assert list(run) == expected
        wanted = caches.KVCache if start == 1000 else caches.QuantizedKVCache
        assert {type(layer) for layer in cache} == {wanted}
        assert {layer.offset for layer in cache} == {len(PROMPT) + TOKENS - 1}


def test_a_quantized_cache_can_be_continued(model: Any) -> None:
    whole = ar_of_mlx_lm(model, 8, 0)
    cache = model.make_cache()
    first = list(
        mlx_generate(model, PROMPT, (), 10, mode="parallel", kv_bits=8, prompt_cache=cache)
    )
    more = list(mlx_generate(model, first[-1:], (), 14, mode="parallel", prompt_cache=cache))
    assert first + more == whole


def test_a_device_without_quantized_attention_is_named(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("No implementation for problem shape")

    monkeypatch.setattr(mx, "quantized_matmul", refuse)
    with pytest.raises(GenerationError, match=r"8 bits on .*kv_bits"):
        mlx_generate(model, PROMPT, (), 4, kv_bits=8)


@pytest.mark.parametrize(
    "options",
    [
        {"kv_bits": 7},
        {"kv_bits": 8, "kv_group_size": 48},
        {"kv_bits": 8, "kv_group_size": 128},  # of a head of 64
        {"kv_bits": 8, "quantized_kv_start": -1},
        {"kv_bits": 8, "numerics": "exact"},
    ],
)
def test_bad_quantization_is_refused(model: Any, options: Any) -> None:
    with pytest.raises(GenerationError, match=r"kv_bits|kv_group_size|quantized_kv_start"):
        mlx_generate(model, PROMPT, (), 4, **options)


def test_an_interrupt_while_the_cache_is_quantized_leaves_no_half(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ar_of_mlx_lm(model, 8, 12)
    real, calls = caches.KVCache.to_quantized, 0

    def interrupted(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(caches.KVCache, "to_quantized", interrupted)
    options: Any = {"mode": "parallel", "kv_bits": 8, "quantized_kv_start": 12}
    cache = model.make_cache()
    with pytest.raises(KeyboardInterrupt):
        list(mlx_generate(model, PROMPT, (), TOKENS, prompt_cache=cache, **options))
    assert {type(layer) for layer in cache} == {caches.KVCache}
    done = cache[0].offset - len(PROMPT) + 1
    last = [PROMPT[-1], *expected][done]
    more = mlx_generate(model, [last], (), TOKENS - done, prompt_cache=cache, **options)
    assert list(more) == expected[done:]


@pytest.mark.parametrize("more", [{"kv_bits": 4}, {"numerics": "exact"}])
def test_a_quantized_cache_stays_as_it_is(model: Any, more: Any) -> None:
    cache = model.make_cache()
    first = list(mlx_generate(model, PROMPT, (), 4, kv_bits=8, prompt_cache=cache, mode="ar"))
    with pytest.raises(GenerationError, match="quantized"):
        mlx_generate(model, first[-1:], (), 4, prompt_cache=cache, **more)
