"""Projections joined to one product have the bits of separate ones, and never outlive them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from orthrus_mlx.cuda.fused import join, products
from orthrus_mlx.device.probe import device_key

from . import row_kernels
from .passes import PROMPT, logits


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


def test_a_module_put_in_the_place_of_a_projection_is_used() -> None:
    """As adapters do; it need not even have a weight."""

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def __call__(self, x: mx.array) -> mx.array:
            return 2 * self.inner(x)

    models = [row_kernels.build(row_kernels.Model) for _ in range(2)]
    models[0].pack()
    assert models[0].joined and not models[1].joined
    for model in models:
        for layer in model.layers:
            layer.mlp.gate_proj = Doubled(layer.mlp.gate_proj)
            layer.self_attn.v_proj = Doubled(layer.self_attn.v_proj)
    assert all(map(mx.array_equal, logits(models[0]), logits(models[1])))
    assert not models[0].joined
    models[0].pack()  # what cannot be joined is left alone
    assert all(map(mx.array_equal, logits(models[0]), logits(models[1])))


def test_a_function_put_in_the_place_of_a_projection_is_used() -> None:
    model = row_kernels.build(row_kernels.Model)
    expected = logits(model)
    model.pack()
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    k_proj, up_proj = attention.k_proj, mlp.up_proj
    attention.k_proj, mlp.up_proj = (lambda x: k_proj(x)), (lambda x: up_proj(x))
    for _ in range(2):
        assert all(map(mx.array_equal, logits(model), expected))
        model.pack()  # what cannot be joined is left alone


def test_scales_replaced_after_joining_are_used() -> None:
    model = row_kernels.build(row_kernels.Model, hidden_size=64, intermediate_size=64)
    nn.quantize(model, bits=4, group_size=32)
    model.pack()
    model.set_dtype(mx.bfloat16)  # the packed integers stay
    assert {a.dtype for a in logits(model)} == {mx.bfloat16}


def test_what_was_measured_joined_is_not_taken_for_separate() -> None:
    model = row_kernels.build(row_kernels.Model)
    separate = device_key(model)
    model.pack()
    joined = device_key(model)
    assert joined != separate
    attention = model.layers[0].self_attn
    attention.v_proj_diff.weight = attention.v_proj_diff.weight + 1  # of one view alone
    assert device_key(model) != joined


def test_projections_of_different_kinds_are_not_joined() -> None:
    plain, biased = nn.Linear(64, 32, bias=False), nn.Linear(64, 32)
    packed = [nn.QuantizedLinear(64, 32, bias=False, bits=bits) for bits in (4, 4, 8)]
    owner = nn.Module()
    owner.plain, owner.biased = plain, biased
    owner.a, owner.b, owner.c = packed
    assert join(owner, ["plain", "biased"]) is None
    assert join(owner, ["plain", "a"]) is None
    assert join(owner, ["a", "b", "c"]) is None  # as mixed recipes have it
    assert join(owner, ["a", "b"]) is not None


def test_a_bias_added_to_a_joined_projection_counts() -> None:
    model = row_kernels.build(row_kernels.Model)
    model.pack()
    ids = mx.array(PROMPT[:5])
    before = model.verify(ids, model.make_cache())
    up = model.layers[0].mlp.up_proj
    up.bias = mx.ones(up.weight.shape[0])
    assert not mx.allclose(model.verify(ids, model.make_cache()), before)


def test_packing_counts_what_was_put_in_as_the_rest() -> None:
    """`nn.quantize` makes modules in training, for which `few_rows` leaves products alone."""
    model = row_kernels.build(row_kernels.Model).eval()
    nn.quantize(model, group_size=32, bits=4)
    assert model.layers[0].mlp.down_proj.training
    model.pack()
    assert not any(part.training for part in model.modules())
    assert not model.layers[0].mlp._gate_up.product.training
    model.train().pack()  # and a model in training stays so
    assert all(part.training for part in model.modules())


def test_what_the_kernel_would_compute_is_left_alone_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no gradient; a joined projection does not know of its parts' mode."""
    asked: list[bool] = []
    monkeypatch.setattr("orthrus_mlx.cuda.fused.product", lambda module, x: asked.append(True))
    model = row_kernels.build(row_kernels.Model).eval()
    model.pack()
    model.train()
    mlp = model.layers[0].mlp
    products(mx.zeros((1, 4, 32)), mlp, ("gate_proj", "up_proj"), mlp._gate_up)
    assert not asked
