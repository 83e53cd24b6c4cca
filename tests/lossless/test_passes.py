"""How passes are computed changes nothing: joined projections, caches shown whole, any type."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from orthrus_mlx import mlx_generate
from orthrus_mlx import model as model_module
from orthrus_mlx.model import join

from . import row_kernels
from .scenarios import WAYS

PROMPT = [(7 * i) % 60 for i in range(225)]  # the answers cross the step of 256 of a cache


def logits(model: Any, n: int = 200) -> list[mx.array]:
    """Of every kind of pass after `n` tokens."""
    cache = model.make_cache()
    model.hidden(mx.array([PROMPT[:n]]), cache)
    block, masks = [PROMPT[n]], [model.config.mask_token_id] * 7
    found = [model.draft(mx.array(block + masks), cache)]
    rows = PROMPT[n : n + 5]
    both = mx.array([*rows, *block, *masks, rows[3], *masks])
    found += model.verify_and_draft(both, 5, (0, 3), cache)
    found.append(model.verify(mx.array(PROMPT[n + 5 : n + 14]), cache))
    assert {layer.offset for layer in cache} == {n + 14}
    mx.eval(found)
    return found


def answer(model: Any, mode: Any, cycle: Any) -> list[int]:
    return list(
        mlx_generate(model, PROMPT, (), 60, mode=mode, cycle=cycle, seed=1, calibrate=False)
    )


@pytest.mark.parametrize("bits", [None, 4])
def test_joined_projections_give_the_bits_of_separate_ones(bits: int | None) -> None:
    model = row_kernels.build(row_kernels.Model, hidden_size=64, intermediate_size=64)
    if bits:
        nn.quantize(model, bits=bits, group_size=32)
    separate = logits(model)
    weights = dict(nn.utils.tree_flatten(model.parameters()))
    model.pack()
    layer = model.layers[1]
    assert None not in (layer.self_attn._qkv, layer.self_attn._qkv_diff, layer.mlp._gate_up)
    assert all(map(mx.array_equal, logits(model), separate))
    packed = dict(nn.utils.tree_flatten(model.parameters()))
    assert list(packed) == list(weights)  # and each name still holds its own weight
    assert all(mx.array_equal(packed[name], weights[name]) for name in weights)


def test_weights_replaced_after_joining_are_used() -> None:
    model = row_kernels.build(row_kernels.Model)
    model.pack()
    other = row_kernels.build(row_kernels.Model)
    other.set_dtype(mx.float16)
    expected = logits(other)
    model.set_dtype(mx.float16)
    assert all(map(mx.array_equal, logits(model), expected))
    model.pack()
    assert all(map(mx.array_equal, logits(model), expected))


def test_projections_of_different_kinds_are_not_joined() -> None:
    plain, biased = nn.Linear(64, 32, bias=False), nn.Linear(64, 32)
    packed = [nn.QuantizedLinear(64, 32, bias=False, bits=bits) for bits in (4, 4, 8)]
    assert join([plain, biased]) is None
    assert join([plain, packed[0]]) is None
    assert join(packed) is None  # as mixed recipes have it
    assert join(packed[:2]) is not None


def test_a_cache_shown_whole_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes do on CUDA, where each number of keys would be planned anew."""
    model = row_kernels.build(row_kernels.Model)
    for n in (1, 100, 205):
        monkeypatch.setattr(model_module, "FIXED_SLOTS", False)
        filled = logits(model, n)
        monkeypatch.setattr(model_module, "FIXED_SLOTS", True)
        for a, b in zip(filled, logits(model, n), strict=True):
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_answers_are_the_same_with_a_cache_shown_whole(
    monkeypatch: pytest.MonkeyPatch, mode: Any, cycle: Any
) -> None:
    model = row_kernels.build(row_kernels.Model)
    expected = answer(model, "ar", "auto")
    monkeypatch.setattr(model_module, "FIXED_SLOTS", True)
    assert answer(model, mode, cycle) == expected
