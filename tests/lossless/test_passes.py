"""Passes in few shapes, traced portion by portion, compute what others do."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from orthrus_mlx import mlx_generate
from orthrus_mlx.cuda import compiled as few_shapes
from orthrus_mlx.device.probe import STEPS

from . import row_kernels
from .passes import PROMPT, logits
from .scenarios import WAYS

pytestmark = pytest.mark.usefixtures("layer_by_layer")


def answer(model: Any, mode: Any, cycle: Any, prompt: list[int] = PROMPT) -> list[int]:
    options: Any = {"mode": mode, "cycle": cycle, "seed": 1, "calibrate": False}
    return list(mlx_generate(model, prompt, (), 60, **options))


def test_passes_in_few_shapes_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes do on CUDA, where each shape would be planned anew."""
    model = row_kernels.build(row_kernels.Model)
    for n in (0, 1, 100, 205):
        monkeypatch.setattr(few_shapes, "NEEDED", False)
        expected = logits(model, n)
        monkeypatch.setattr(few_shapes, "NEEDED", True)
        for a, b in zip(expected, logits(model, n), strict=True):
            assert mx.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_rows_filled_up_leave_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked slot that holds NaN would spoil every row."""
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    cache = model.make_cache()
    model.hidden(mx.array([PROMPT[:9]]), cache)
    model.draft(mx.array(PROMPT[9:12]), cache)
    model.verify_and_draft(mx.array([*PROMPT[9:12], 5, 59, 59, 7, 59, 59]), 3, (0, 2), cache)
    model.verify(mx.array(PROMPT[12:15]), cache)
    held: Any = [(layer.keys, layer.values) for layer in cache]
    assert all(bool(mx.all(mx.isfinite(a))) for pair in held for a in pair)


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_attention_sees_few_shapes(monkeypatch: pytest.MonkeyPatch, mode: Any, cycle: Any) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    shapes: set[tuple[int, int]] = set()
    attention = mx.fast.scaled_dot_product_attention

    def spied(q: mx.array, k: mx.array, v: mx.array, **more: Any) -> mx.array:
        shapes.add((q.shape[2], k.shape[2]))
        return attention(q, k, v, **more)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", spied)
    model = row_kernels.build(row_kernels.Model)
    answer(model, mode, cycle)  # of a prompt with more rows than are filled up
    answer(model, mode, cycle, PROMPT[:20])
    answer(model, mode, cycle, PROMPT[:1])
    several = {shape for shape in shapes if shape[0] > 1} - {(len(PROMPT) - 1,) * 2}
    powers = (0, 1, 2, 4, 8, 16, 32, 64)
    assert several <= {(a + d, few_shapes.LEAST_SLOTS) for a in powers for d in powers}
    assert several


def test_the_slots_shown_change_only_where_the_probe_looks() -> None:
    shown = [few_shapes.slots_for(n, kernels=False) for n in range(1, 3000)]
    assert all(slots >= n for n, slots in enumerate(shown, 1))
    assert set(shown) - {few_shapes.LEAST_SLOTS} <= set(STEPS)


def test_a_cache_has_room_for_the_whole_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    for before in (1, 3, 1020, 1024):
        cache = model.make_cache()
        model.hidden(mx.array([[7] * before]), cache)
        held = cache[0].keys[:, :, :before]
        model.verify(mx.array([1, 2, 3]), cache)
        assert cache[0].offset == before + 3 and cache[0].keys.shape[2] >= before + 4
        assert mx.array_equal(cache[0].keys[:, :, :before], held)


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_answers_are_the_same_in_few_shapes(
    monkeypatch: pytest.MonkeyPatch, mode: Any, cycle: Any
) -> None:
    model = row_kernels.build(row_kernels.Model)
    expected = answer(model, "ar", "auto")
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    assert answer(model, mode, cycle) == expected


def test_passes_traced_once_notice_what_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    before = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    attention = model.layers[1].self_attn

    attention.o_proj.weight = attention.o_proj.weight * 2  # other weights
    other = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    assert not mx.allclose(before, other)

    attention.o_proj = nn.Linear(*reversed(attention.o_proj.weight.shape))  # another module
    assert not mx.allclose(other, model.verify(mx.array(PROMPT[:5]), model.make_cache()))

    before = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]  # another order
    assert not mx.allclose(before, model.verify(mx.array(PROMPT[:5]), model.make_cache()))

    before = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    model.layers[1].mlp.down_proj.bias = mx.ones(32)  # what was not there
    assert not mx.allclose(before, model.verify(mx.array(PROMPT[:5]), model.make_cache()))

    before = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    model.layers[1].mlp.down_proj.weight *= 3  # in place, and said so
    model.pack()
    assert not mx.allclose(before, model.verify(mx.array(PROMPT[:5]), model.make_cache()))

    shorter = copy.copy(model)  # a copy that shares what it does not replace
    shorter.model = copy.copy(model.model)
    shorter.model.layers = model.layers[:1]
    monkeypatch.setattr(few_shapes, "NEEDED", False)
    expected = shorter.verify(mx.array(PROMPT[:5]), shorter.make_cache())
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    found = shorter.verify(mx.array(PROMPT[:5]), shorter.make_cache())
    assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_another_type_of_weights_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in a cache of the old type would lose what the new one holds."""
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    weights = model.parameters()
    for dtype in (mx.bfloat16, mx.float32):
        model.set_dtype(dtype)
        cache = model.make_cache()
        model.verify(mx.array(PROMPT[:5]), cache)
        assert {layer.keys.dtype for layer in cache} == {dtype}
    model.update(weights)
    expected = logits(model, 0)
    monkeypatch.setattr(few_shapes, "NEEDED", False)
    for a, b in zip(expected, logits(model, 0), strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("few", [False, True])
def test_a_cache_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", few)
    model = row_kernels.build(row_kernels.Model)
    for cache in (model.make_cache()[:1], model.make_cache() * 2):
        with pytest.raises(ValueError, match="layers"):
            model.verify(mx.array(PROMPT[:5]), cache)


def test_passes_of_the_same_shape_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    traced = []
    run = model.run

    def counted(h: mx.array, *more: Any) -> mx.array:
        traced.append(h.shape[:2])
        return run(h, *more)

    monkeypatch.setattr(row_kernels.Model, "run", lambda self, *args: counted(*args))
    cache = model.make_cache()
    for at in range(0, 40, 4):  # wherever they stand
        model.verify(mx.array(PROMPT[at : at + 4]), cache)
        model.draft(mx.array(PROMPT[:8]), cache)
    assert traced == [(1, 4), (1, 4), (1, 8), (1, 8)]  # each layer by itself


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_packed_passes_in_few_shapes(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    model = row_kernels.build(row_kernels.Model)
    nn.quantize(
        model, group_size=16 if mode == "nvfp4" else 32, bits=8 if "8" in mode else 4, mode=mode
    )
    monkeypatch.setattr(few_shapes, "NEEDED", False)
    expected = logits(model, 0)
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    for a, b in zip(expected, logits(model, 0), strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_model_in_training_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace holds weights as constants."""
    model = row_kernels.build(row_kernels.Model)
    model.verify(mx.array(PROMPT[:5]), model.make_cache())
    model.train()

    def gradients() -> Any:
        def loss(model: Any) -> mx.array:
            both = model.verify_and_draft(mx.array(PROMPT[:5]), 3, (1,), model.make_cache())
            return (model(mx.array([PROMPT[:5]])) ** 2).sum() + sum((a**2).sum() for a in both)

        return tree_flatten(nn.value_and_grad(model, loss)(model)[1])

    monkeypatch.setattr(few_shapes, "NEEDED", False)
    expected = dict(gradients())
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model.eval().verify(mx.array(PROMPT[:5]), model.make_cache())  # traced before
    model.train()
    for name, found in gradients():
        assert mx.allclose(found, expected[name], rtol=1e-3, atol=1e-3), name
    assert expected["model.layers.0.mlp.down_proj.weight"].any()


def test_traced_passes_keep_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    model.verify(mx.array(PROMPT[:5]), model.make_cache())
    gone = [weakref.ref(model), weakref.ref(model.layers[0].mlp), weakref.ref(model._passes)]
    replaced = weakref.ref(model.layers[1].mlp)
    gc.disable()
    try:
        model.layers[1].mlp = copy.copy(model.layers[1].mlp)
        model.verify(mx.array(PROMPT[:5]), model.make_cache())
        assert replaced() is None
        del model
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


def test_few_traces_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    monkeypatch.setattr(few_shapes, "MOST_TRACED", 2)
    model = row_kernels.build(row_kernels.Model)
    for n in (2, 4, 8, 16, 4):
        model.verify(mx.array(PROMPT[:n]), model.make_cache())
    assert [shape.rows for shape in model._passes._portions[0]._traced] == [16, 4]


def test_a_model_that_ran_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shapes, "NEEDED", True)
    model = row_kernels.build(row_kernels.Model)
    expected = model.verify(mx.array(PROMPT[:5]), model.make_cache())
    other = copy.deepcopy(model)
    assert mx.array_equal(other.verify(mx.array(PROMPT[:5]), other.make_cache()), expected)
