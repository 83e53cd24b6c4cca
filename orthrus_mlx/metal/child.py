"""The process that tries one kernel, and may die of it: a job in, lines of JSON out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from ..errors import brief
from . import kernels
from .kernels import DTYPES, MAX_ROWS, PLAIN, Product

SPACING = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # of neighbouring numbers, relative
BYTES = 64 << 20  # of weights that are read in turn while timing, so that no cache holds them

Weights = tuple[mx.array, ...]
Multiply = Callable[[mx.array, Weights], Any]


def main(multiply: Callable[..., Any] = kernels.multiply) -> None:
    """Do the job that standard input describes."""
    job = json.load(sys.stdin)
    try:
        for product in (Product(*fields) for fields in job["products"]):
            ours = partial(multiply, job["variant"], product)
            what = f"{product.outputs} x {product.dim} at {product.bits} bits"
            say(doing=f"checking {what}")
            x = mx.random.normal((MAX_ROWS, product.dim)).astype(DTYPES[product.dtype])
            copies = make_weights(product)
            if fault := check(ours, product, x, copies[0]):
                say(fault=f"it is wrong: {what}, {fault}")
                return
            say(doing=f"timing {what}")
            say(product=product, ms=timed(ours, product, x, copies))
        say(finished=True)
    except Exception as error:  # MLX's, of a kernel that does not compile or start
        say(fault=f"it does not run: {brief(error)}")


def say(**found: Any) -> None:
    """Tell the parent."""
    print(json.dumps(found), flush=True)


def make_weights(product: Product) -> list[Weights]:
    """Random weights of a kind, as many as come to `BYTES`: one at least, 16 at most."""
    (outputs, dim, bits, group, _), dtype = product, DTYPES[product.dtype]
    made: list[Weights] = []
    while len(made) < max(1, min(16, BYTES * 8 // (outputs * dim * bits))):
        if bits == PLAIN:
            parts = [mx.random.uniform(-1, 1, (outputs, dim), dtype) / dim**0.5]
        else:
            words = mx.random.randint(0, 1 << 16, (2, outputs, dim * bits // 32))
            scales = mx.random.uniform(0.5, 1.5, (outputs, dim // group)) / (dim**0.5 * (1 << bits))
            zeros = -scales * (1 << bits) * mx.random.uniform(0.4, 0.6, scales.shape)
            parts = [words[0].astype(mx.uint32) | words[1].astype(mx.uint32) << 16]
            parts += [scales.astype(dtype), zeros.astype(dtype)]
        mx.eval(parts)
        made.append(tuple(parts))
    return made


def stock(product: Product, x: mx.array, w: Weights) -> mx.array:
    """MLX's own product."""
    if product.bits == PLAIN:
        return x @ w[0].T
    return mx.quantized_matmul(x, w[0], w[1], w[2], True, product.group, product.bits)


def check(ours: Multiply, product: Product, x: mx.array, weights: Weights) -> str:
    """What is wrong with a kernel, beside MLX's in float32 and by its bits; "" for nothing."""
    whole, wide = ours(x, weights), [a if a.dtype == mx.uint32 else _wide(a) for a in weights]
    exact = stock(product, _wide(x), tuple(wide))
    allowed = SPACING[product.dtype] * (mx.abs(exact) + mx.sqrt(mx.mean(exact**2)))
    far: Any = ~(mx.abs(_wide(whole) - exact) <= allowed)  # NaN too
    if rows := [str(n + 1) for n, wrong in enumerate(far.any(axis=1).tolist()) if wrong]:
        return f"{far.sum().item()} values differ from MLX's, in rows {', '.join(rows)}"
    for at in range(MAX_ROWS):  # the rows before it, and those from it on
        for rows_ in (slice(at + 1), slice(at, MAX_ROWS)):
            part, same = ours(x[rows_], weights), whole[rows_]
            if not mx.array_equal(part.view(mx.uint16), same.view(mx.uint16)).item():
                return f"{len(part)} rows have other bits than the same among {MAX_ROWS}"
    return ""


def _wide(array: mx.array) -> mx.array:
    return array.astype(mx.float32)


def timed(ours: Multiply, product: Product, x: mx.array, copies: list[Weights]) -> list[Any]:
    """Rows, and milliseconds of MLX's product and of ours: the least of some rounds, in turn."""
    found, ways = list[Any](), list[Multiply]([partial(stock, product), ours])
    for rows in range(1, MAX_ROWS + 1):
        times: list[list[float]] = [[], []]
        for _ in range(6):  # the first one warms up
            for way, multiply in enumerate(ways):
                start, y = time.perf_counter(), x[:rows]
                for weights in copies:  # each waits for the one before, as layers do
                    y = y + 0 * multiply(y, weights)[..., :1]
                mx.eval(y)
                times[way].append(1e3 * (time.perf_counter() - start) / len(copies))
        found.append((rows, *(min(ms[1:]) for ms in times)))
    return found


if __name__ == "__main__":
    main()
