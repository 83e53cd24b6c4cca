"""Products of a few rows: the small-M kernel where it can, elsewhere the module's own."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.tuner.lora import LoRAEmbedding

from orthrus_mlx.cuda import kernels, matmul
from orthrus_mlx.cuda.matmul import by_view, fits
from orthrus_mlx.cuda.modules import KINDS

from .passes import build, build_accelerated, verify

on_cuda = pytest.mark.skipif(not kernels.runs_here(), reason="needs a CUDA device")

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
    if bits < matmul.PLAIN:
        module = nn.QuantizedLinear.from_linear(module, group, bits)
    return for_cuda(module)


def for_cuda(module: Any) -> Any:
    """The module as `accelerate` leaves it."""
    module.__class__ = KINDS[type(module)]
    return module.eval()


def inputs(rows: int, dim: int) -> mx.array:
    return mx.random.normal((1, rows, dim), key=mx.random.key(2)).astype(mx.bfloat16)


def check(outputs: int, dim: int, group: int, bits: int, rows: int) -> None:
    module, x = projection(outputs, dim, bits, group=group), inputs(rows, dim)
    assert fits(module, x)
    weights = module.weight
    if bits < matmul.PLAIN:
        weights = mx.dequantize(weights, module.scales, module.biases, group, bits)
    expected = x.astype(mx.float32) @ weights.astype(mx.float32).T
    assert mx.allclose(module(x).astype(mx.float32), expected, rtol=2e-2, atol=2e-2)


@on_cuda
@pytest.mark.parametrize("bits", matmul.BITS)
@pytest.mark.parametrize(("outputs", "dim", "group"), [*((*s, 64) for s in SHAPES), *GROUPS])
def test_the_kernel_multiplies(outputs: int, dim: int, group: int, bits: int) -> None:
    check(outputs, dim, group, bits, 64)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(
    ("outputs", "dim", "group", "bits", "rows"),
    [
        (40, 704, 64, matmul.PLAIN, 5),  # more than one turn of the ring
        (70, 64, 64, matmul.PLAIN, 33),
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
    whole = module(x)
    for rows in (n for n in ROWS if n <= most):
        for first in {0, (most - rows) // 2, most - rows}:
            part = slice(first, first + rows)
            assert mx.array_equal(module(x[:, part]), whole[:, part])


@on_cuda
@pytest.mark.parametrize("bits", matmul.BITS)
@pytest.mark.parametrize(("outputs", "dim"), SHAPES)
def test_a_row_has_the_same_bits_beside_any_others(outputs: int, dim: int, bits: int) -> None:
    bits_of_rows(outputs, dim, bits, 64)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("bits", matmul.BITS)
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
    x, multiply = inputs(12, 384), matmul.multiply
    views = (ar, x[:, :n_ar]), (diff, x[:, n_ar:])
    parts = [module(part) for module, part in views if part.size]
    asked: list[int] = []
    monkeypatch.setattr(
        matmul, "multiply", lambda views: (asked.append(len(views)), multiply(views))[1]
    )
    assert mx.array_equal(by_view(ar, diff, x, n_ar), mx.concatenate(parts, axis=1))
    assert (asked == [2]) == (bits[0] == bits[1] and n_ar in (2, 5, 9))


@pytest.mark.parametrize("bits", matmul.BITS)
@pytest.mark.parametrize("rows", [1, 5, 65])
def test_it_is_close_to_what_other_modules_make(bits: int, rows: int) -> None:
    module, x = projection(96, 256, bits), inputs(rows, 256)
    plain = nn.QuantizedLinear if bits < matmul.PLAIN else nn.Linear
    assert mx.allclose(module(x), plain.__call__(module, x), rtol=2e-2, atol=2e-2)
    assert module(x[0, 0]).shape == (96,)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("packed", [False, True])
def test_an_embedding_is_a_head(packed: bool) -> None:
    module: Any = nn.Embedding(40, 704)
    module.set_dtype(mx.bfloat16)
    if packed:
        module = nn.QuantizedEmbedding.from_embedding(module, 64, 4)
    x = inputs(5, 704)
    exact: Any = copy.copy(module)  # MLX's own product of packed weights errs by more in bfloat16
    exact.set_dtype(mx.float32)
    expected = exact.as_linear(x.astype(mx.float32))
    assert mx.allclose(for_cuda(module).as_linear(x), expected, rtol=2e-2, atol=2e-2)
    assert fits(module, x)


def test_an_adapter_of_an_embedding_is_a_head() -> None:
    expected = verify(build(), [1, 2, 3])
    model = build_accelerated()
    model.model.embed_tokens = LoRAEmbedding.from_base(model.model.embed_tokens, r=4)
    assert mx.allclose(verify(model, [1, 2, 3]), expected, rtol=1e-4, atol=1e-4)


def test_what_the_kernel_cannot_do_is_left_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "runs_here", lambda: True)
    plain, x = projection(96, 256, matmul.PLAIN), inputs(5, 256)
    assert fits(plain, x) and fits(projection(96, 256, 4), x)
    assert not fits(plain, inputs(1, 256))
    assert not fits(plain, inputs(65, 256))
    assert not fits(plain, mx.concatenate([x, x]))  # a batch
    assert not fits(plain, x.astype(mx.float16))
    assert not fits(projection(96, 256, matmul.PLAIN, mx.float32), x)
    assert not fits(projection(96, 256, 3), x)
    assert not fits(projection(96, 60, matmul.PLAIN), inputs(5, 60))
    for bits in matmul.BITS:
        assert not fits(projection(96, 128, bits), x)  # not of this width
    assert not fits(for_cuda(nn.Linear(256, 96)), x)  # with a bias, float32
    other = nn.QuantizedLinear(256, 96, bias=False, group_size=32, bits=4, mode="mxfp4")
    assert not fits(for_cuda(other), x)
    assert fits(plain, inputs(33, 256))
    monkeypatch.setattr(matmul, "MANY", 96 * 256 - 1)
    assert fits(plain, inputs(32, 256)) and not fits(plain, inputs(33, 256))
    assert fits(projection(96, 256, 4), inputs(33, 256))
    plain.train()
    assert not fits(plain, x)


def test_on_other_devices_the_kernel_does_not_run() -> None:
    if not kernels.runs_here():
        assert not fits(projection(96, 256, matmul.PLAIN), inputs(5, 256))
