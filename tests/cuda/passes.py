"""What a model computes in every kind of pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from orthrus_mlx.cuda import accelerate
from orthrus_mlx.rows import Rows, Segment
from tests.lossless import row_kernels

PROMPT = [(7 * i) % 60 for i in range(225)]  # the answers cross the step of 256 of a cache
MASK = 63


def build(**changes: Any) -> Any:
    """A small random model."""
    return row_kernels.build(row_kernels.Model, **changes)


def build_accelerated(**changes: Any) -> Any:
    """The same with CUDA's modules."""
    return accelerate(build(**changes))


def verify(model: Any, ids: list[int], cache: Any = None) -> mx.array:
    """AR logits of these ids."""
    return model.forward(Rows.verify(mx.array(ids), cache or model.make_cache()))[0]


def draft(model: Any, anchor: int, length: int, cache: Any) -> mx.array:
    """Guesses of one block."""
    block = mx.array([anchor, *[MASK] * (length - 1)])
    return model.forward(Rows.draft(block, cache))[1]


def one_pass(model: Any, ar: list[int], depths: tuple[int, ...], length: int, cache: Any) -> Any:
    """AR logits, and guesses of a block behind each of `depths`."""
    blocks = mx.array([[ar[depth], *[MASK] * (length - 1)] for depth in depths])
    return model.forward(Rows([Segment(cache, mx.array(ar), blocks, depths)]))


def logits(model: Any, n: int = 200) -> list[mx.array]:
    """Of every kind of pass after `n` tokens."""
    cache = model.make_cache()
    if n:
        verify(model, PROMPT[:n], cache)
    found = [draft(model, PROMPT[n], length, cache) for length in (7, 4)]
    found += one_pass(model, PROMPT[n : n + 5], (0, 3), 8, cache)
    found.append(verify(model, PROMPT[n + 5 : n + 14], cache))
    found.append(verify(model, PROMPT[n + 14 : n + 15], cache))
    assert {layer.offset for layer in cache} == {n + 15}
    mx.eval(found)
    return found


def close(found: list[mx.array], expected: list[mx.array], tolerance: float) -> bool:
    """Whether all are as expected, up to rounding."""
    pairs = zip(found, expected, strict=True)
    return all(bool(mx.allclose(a, b, rtol=tolerance, atol=tolerance)) for a, b in pairs)
