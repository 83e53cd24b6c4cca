"""Fused projections have the bits of separate ones, and hold no weight twice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from orthrus_mlx.cuda import accelerate, matmul
from orthrus_mlx.cuda.fused import fuse, rows_alike
from orthrus_mlx.cuda.modules import KINDS

from .passes import build, close, logits

SIZES = {"hidden_size": 64, "intermediate_size": 64}


@pytest.mark.parametrize("bits", [None, 4])
def test_fused_projections_give_the_bits_of_separate_ones(bits: int | None) -> None:
    model = build(**SIZES)
    if bits:
        nn.quantize(model, bits=bits, group_size=32)
    layer, x = model.layers[1], mx.random.normal((1, 3, 64), key=mx.random.key(1))
    separate = [
        layer.mlp(x),
        *(a for view in ("", "_diff") for a in layer.self_attn.project(x, view)),
    ]
    weights = dict(tree_flatten(model.parameters()))
    accelerate(model)
    assert None not in (layer.self_attn._qkv, layer.self_attn._qkv_diff, layer.mlp._gate_up)
    fused = [layer.mlp(x), *(a for view in ("", "_diff") for a in layer.self_attn.project(x, view))]
    assert all(map(mx.array_equal, fused, separate))
    now = dict(tree_flatten(model.parameters()))
    assert list(now) == list(weights)  # and each name still holds its own weight
    assert all(mx.array_equal(now[name], weights[name]) for name in weights)


def test_no_weight_is_in_memory_twice() -> None:
    model = build(hidden_size=256, intermediate_size=512)
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    accelerate(model)
    mx.synchronize()
    assert mx.get_active_memory() - before < model.layers[0].mlp.up_proj.weight.nbytes


@pytest.mark.parametrize("change", ["type", "packing", "adapter", "weight"])
def test_what_was_replaced_is_used_after_the_next_call(change: str) -> None:
    class Doubled(nn.Module):  # as adapters do; it need not even have a weight
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def __call__(self, x: mx.array) -> mx.array:
            return 2 * self.inner(x)

    def changed(model: Any) -> Any:
        logits(model)  # it was in use
        if change == "type":
            model.set_dtype(mx.bfloat16)
        elif change == "packing":
            nn.quantize(model, bits=8, group_size=32)
        for layer in model.layers:
            if change == "adapter":
                layer.mlp.gate_proj = Doubled(layer.mlp.gate_proj)
                layer.self_attn.v_proj = Doubled(layer.self_attn.v_proj)
            elif change == "weight":
                layer.self_attn.k_proj_diff.weight = 2 * layer.self_attn.k_proj_diff.weight
        return model

    expected = logits(changed(build(**SIZES)))
    found = logits(accelerate(changed(accelerate(build(**SIZES)))))
    assert [a.dtype for a in found] == [a.dtype for a in expected]
    assert close(found, expected, 0.1 if change == "type" else 1e-4)


def test_projections_of_different_kinds_are_not_fused() -> None:
    owner: Any = nn.Module()
    owner.plain, owner.biased = nn.Linear(64, 32, bias=False), nn.Linear(64, 32)
    for name, bits in (("a", 4), ("b", 4), ("c", 8)):
        owner[name] = nn.QuantizedLinear(64, 32, bias=False, bits=bits)
    for module in owner.children().values():
        module.__class__ = KINDS[type(module)]
    owner.function = lambda x: x
    assert fuse(owner, ["plain", "biased"]) is None
    assert fuse(owner, ["plain", "a"]) is None
    assert fuse(owner, ["a", "b", "c"]) is None  # as mixed recipes have it
    assert fuse(owner, ["function", "plain"]) is None
    assert fuse(owner, ["a", "b"]) is not None


def test_modules_put_in_are_for_inference_as_the_rest() -> None:
    """`nn.quantize` makes modules in training mode, for which kernels do not run."""
    model = build()
    nn.quantize(model, group_size=32, bits=4)
    assert model.layers[0].mlp.down_proj.training
    accelerate(model)
    assert not any(part.training for part in model.modules())
    assert not model.layers[0].mlp._gate_up.linear.training


def test_rows_are_alike_as_far_as_every_product_runs_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matmul, "runs_here", lambda: True)
    model = build(**SIZES)
    model.set_dtype(mx.bfloat16)
    layer = accelerate(model).layers[0]
    assert rows_alike(layer, mx.bfloat16) == matmul.MAX_ROWS
    # Fused weights alone can be too large, as those of the inner projections of 4B.
    layer.self_attn._qkv = layer.self_attn._qkv_diff = None
    monkeypatch.setattr(matmul, "MANY", layer.mlp.gate_proj.weight.size)
    assert rows_alike(layer, mx.bfloat16) == matmul.MAX_ROWS_PLAIN
    layer.mlp._gate_up = None
    assert rows_alike(layer, mx.bfloat16) == matmul.MAX_ROWS
    layer.mlp.down_proj.bias = mx.zeros(64, mx.bfloat16)
    assert rows_alike(layer, mx.bfloat16) == 0
