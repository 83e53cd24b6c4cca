"""Products of a few rows: on CUDA a kernel of our own, elsewhere the module's."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.lora import LoRAEmbedding

from orthrus_mlx.cuda import matmul as few_rows
from orthrus_mlx.cuda.matmul import by_view, product

from . import row_kernels

on_cuda = pytest.mark.skipif(not few_rows.runs_here(), reason="needs a CUDA device")

SHAPES = [(96, 256), (1000, 704), (40, 64), (256, 4096)]  # (outputs, dim)
GROUPS = [(96, 32, 32), (96, 384, 128)]  # and the group size
ROWS = (2, 5, 8, 9, 16, 31, 32, 33, 64)


def projection(
    outputs: int,
    dim: int,
    bits: int,
    dtype: mx.Dtype = mx.bfloat16,
    group: int = 64,
    seed: int = 1,
) -> Any:
    module: Any = nn.Linear(dim, outputs, bias=False)
    weight = mx.random.normal((outputs, dim), key=mx.random.key(seed))
    module.weight = (weight / dim**0.5).astype(dtype)
    if bits < few_rows.PLAIN:
        module = nn.QuantizedLinear.from_linear(module, group, bits)
    module.eval()
    return module


def inputs(rows: int, dim: int) -> mx.array:
    return mx.random.normal((1, rows, dim), key=mx.random.key(2)).astype(mx.bfloat16)


def check(outputs: int, dim: int, group: int, bits: int, rows: int) -> None:
    module, x = projection(outputs, dim, bits, group=group), inputs(rows, dim)
    assert few_rows._fits(module, x)
    weights = module.weight
    if bits < few_rows.PLAIN:
        weights = mx.dequantize(weights, module.scales, module.biases, group, bits)
    expected = x.astype(mx.float32) @ weights.astype(mx.float32).T
    assert mx.allclose(product(module, x).astype(mx.float32), expected, rtol=2e-2, atol=2e-2)


@on_cuda
@pytest.mark.parametrize("bits", few_rows.BITS)
@pytest.mark.parametrize(("outputs", "dim", "group"), [*((*s, 64) for s in SHAPES), *GROUPS])
def test_the_kernel_multiplies(outputs: int, dim: int, group: int, bits: int) -> None:
    check(outputs, dim, group, bits, 64)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("outputs", "dim", "group", "bits", "rows"),
    [
        (40, 704, 64, few_rows.PLAIN, 5),  # more than one turn of the ring
        (70, 64, 64, few_rows.PLAIN, 33),
        (40, 1408, 64, 4, 9),
        (40, 384, 128, 4, 2),
        (40, 96, 32, 8, 17),
    ],
)
def test_the_source_of_the_kernel_multiplies(
    outputs: int, dim: int, group: int, bits: int, rows: int
) -> None:
    check(outputs, dim, group, bits, rows)


def bits_of_rows(outputs: int, dim: int, bits: int, most: int) -> None:
    module, x = projection(outputs, dim, bits), inputs(most, dim)
    whole = product(module, x)
    for rows in (n for n in ROWS if n <= most):
        for first in {0, (most - rows) // 2, most - rows}:
            part = slice(first, first + rows)
            assert mx.array_equal(product(module, x[:, part]), whole[:, part])


@on_cuda
@pytest.mark.parametrize("bits", few_rows.BITS)
@pytest.mark.parametrize(("outputs", "dim"), SHAPES)
def test_a_row_has_the_same_bits_beside_any_others(outputs: int, dim: int, bits: int) -> None:
    bits_of_rows(outputs, dim, bits, 64)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("bits", few_rows.BITS)
def test_by_its_source_a_row_has_the_same_bits(bits: int) -> None:
    bits_of_rows(20, 320, bits, 9)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("bits", [(4, 4), (16, 16), (16, 4)])
@pytest.mark.parametrize("n_ar", [0, 1, 2, 5, 9, 12])
def test_each_view_has_the_bits_of_its_own_product(
    bits: tuple[int, int], n_ar: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed together where the projections are alike and both views have rows enough."""
    ar, diff = (projection(40, 384, n, seed=seed) for seed, n in enumerate(bits))
    x, multiply = inputs(12, 384), few_rows._product
    views = (ar, x[:, :n_ar]), (diff, x[:, n_ar:])
    parts = [product(module, part) for module, part in views if part.size]
    asked: list[int] = []
    monkeypatch.setattr(
        few_rows, "_product", lambda views: (asked.append(len(views)), multiply(views))[1]
    )
    assert mx.array_equal(by_view(ar, diff, x, n_ar), mx.concatenate(parts, axis=1))
    assert (asked == [2]) == (bits[0] == bits[1] and n_ar in (2, 5, 9))


@pytest.mark.parametrize("bits", few_rows.BITS)
@pytest.mark.parametrize("rows", [1, 5, 65])
def test_it_is_close_to_what_the_module_makes(bits: int, rows: int) -> None:
    module, x = projection(96, 256, bits), inputs(rows, 256)
    assert mx.allclose(product(module, x), module(x), rtol=2e-2, atol=2e-2)
    assert product(module, x[0, 0]).shape == (96,)


@pytest.mark.parametrize("packed", [False, True])
def test_an_embedding_is_a_head(packed: bool) -> None:
    module: Any = nn.Embedding(96, 256)
    module.set_dtype(mx.bfloat16)
    if packed:
        module = nn.QuantizedEmbedding.from_embedding(module, 64, 4)
    x = inputs(5, 256)
    assert mx.allclose(
        product(module.eval(), x, module.as_linear), module.as_linear(x), rtol=2e-2, atol=2e-2
    )


def test_an_adapter_of_an_embedding_is_a_head() -> None:
    model = row_kernels.build(row_kernels.Model)
    ids = mx.array([1, 2, 3])
    expected = model.verify(ids, model.make_cache())
    model.model.embed_tokens = LoRAEmbedding.from_base(model.model.embed_tokens, r=4)
    assert mx.allclose(model.verify(ids, model.make_cache()), expected, rtol=1e-4, atol=1e-4)


def test_what_the_kernel_cannot_do_is_left_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = projection(96, 256, few_rows.PLAIN), inputs(5, 256)
    assert few_rows._fits(plain, x) and few_rows._fits(projection(96, 256, 4), x)
    assert not few_rows._fits(plain, inputs(1, 256))
    assert not few_rows._fits(plain, inputs(65, 256))
    assert not few_rows._fits(plain, mx.concatenate([x, x]))  # a batch
    assert not few_rows._fits(plain, x.astype(mx.float16))
    assert not few_rows._fits(projection(96, 256, few_rows.PLAIN, mx.float32), x)
    assert not few_rows._fits(projection(96, 256, 3), x)
    assert not few_rows._fits(projection(96, 60, few_rows.PLAIN), inputs(5, 60))
    for bits in few_rows.BITS:
        assert not few_rows._fits(projection(96, 128, bits), x)  # not of this width
    assert not few_rows._fits(nn.Linear(256, 96).eval(), x)  # with a bias, float32
    other = nn.QuantizedLinear(256, 96, bias=False, group_size=32, bits=4, mode="mxfp4")
    assert not few_rows._fits(other.eval(), x)
    assert few_rows._fits(plain, inputs(33, 256))
    monkeypatch.setattr(few_rows, "MANY", 96 * 256 - 1)
    assert few_rows._fits(plain, inputs(32, 256)) and not few_rows._fits(plain, inputs(33, 256))
    assert few_rows._fits(projection(96, 256, 4), inputs(33, 256))
    plain.train()
    assert not few_rows._fits(plain, x)
