"""A process that tries kernels which are not there: `python -m tests.metal.faulty WHAT`.

They are products in float32, and one kernel among them has a fault. The clock is scripted: MLX's
takes a second a product, ours half of one, and the one that can have a fault a quarter.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import mlx.core as mx

from orthrus_mlx.metal import child
from orthrus_mlx.metal.kernels import Product

FAULTY = "lanes-4"


class Clock:
    """Counts what is computed, in place of `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def main(what: str) -> None:
    mx.set_default_device(mx.cpu)  # where float32 products have the same bits for any rows
    clock: Any = Clock()
    child.time, child.BYTES = clock, 1
    stock = child.stock

    def mlx(product: Product, x: mx.array, weights: child.Weights) -> mx.array:
        clock.now += 1.0
        return stock(product, x, weights)

    def ours(variant: str, product: Product, x: mx.array, weights: child.Weights) -> mx.array:
        faulty = variant == FAULTY
        clock.now += 0.99 if what == "slow" and faulty else 0.25 if variant == FAULTY else 0.5
        wide = tuple(a if a.dtype == mx.uint32 else a.astype(mx.float32) for a in weights)
        y = stock(product, x.astype(mx.float32), wide).astype(x.dtype)
        if not faulty or (product.outputs, product.dim) != (64, 128):  # which is not the first
            return y
        if what == "compile":
            raise RuntimeError("[metal::Device] Unable to build metal library from source\nline 2")
        if what == "row" and len(x) > 6:
            y = y + mx.where(mx.arange(len(x))[:, None] == 6, 1.0, 0.0).astype(y.dtype)
        if what == "bits" and len(x) == 3:
            y = (y.view(mx.uint16) + 1).view(y.dtype)
        if what == "nan":
            y = y * float("nan")
        if what == "hang":
            time.sleep(600)
        if what == "crash":
            os.write(2, b"[METAL] Command buffer execution failed: \x1b[31mCaused GPU Hang\n")
            os.abort()
        if what == "exit":
            os._exit(3)
        return y

    child.stock = mlx
    child.main(ours)


if __name__ == "__main__":
    main(sys.argv[1])
