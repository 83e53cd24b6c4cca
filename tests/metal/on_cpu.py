"""Runs the sources of our Metal kernels on a CPU, slowly, as programs of their own.

Each input lies in a block of exactly its size, so that the address sanitizer sees reads beyond it.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from orthrus_mlx.metal import kernels
from orthrus_mlx.metal.kernels import PLAIN, VARIANTS, Product

COMPILER = shutil.which("g++")
TYPES = {"bfloat16": "bfloat", "float16": "half"}
SHARED = re.compile(r"threadgroup float (\w+)\[(\w+)\]\[([\w *]+)\];")


def program(
    variant: str,
    bits: int,
    group: int,
    dtype: str,
    folder: Path,
    sanitize: bool = False,
    source: str | None = None,
) -> Path:
    """The program that computes products of one kind of weights over any number of rows."""
    body, size, outputs, simds, step = VARIANTS[variant]
    names = ("weight",) if bits == PLAIN else ("weight", "scales", "biases")
    word = TYPES[dtype] if bits == PLAIN else "uint"
    body = (source or body).replace("WEIGHTS", ", ".join(names))
    body = SHARED.sub(
        r"auto \1 = (float(*)[\3])threadgroup_memory(__COUNTER__, (\2) * (\3));", body
    )
    header = re.sub(r"#include <metal_\w+>|using namespace metal;", "", kernels.HEADER)
    cases = "\n".join(
        f"case {n}: launch(threads, {simds * 32}, work<{n}>); break;"
        for n in range(step, kernels.MAX_ROWS + 1, step)
    )
    packed = "" if bits == PLAIN else "static T *scales, *biases;"
    text = f"""
#include "{Path(__file__).with_suffix(".h")}"
using T = {TYPES[dtype]};
constexpr int BITS = {bits}, GROUP = {group}, SIZE = {size}, SIMDS = {simds};
static int x_shape[2], weight_shape[2];
static T *x, *y;
static {word}* weight;
{packed}
{header}
template <int ROWS>
static void work() {{
{body}
}}

// Rows of inputs in all, columns, rows of weights, order of threads; inputs and weights follow.
// Writes the products of the first row, of the first two, and so on.
int main() {{
  const int* sizes = (int*)taken(16);
  const int most = sizes[0], K = sizes[1], N = sizes[2];
  backwards = sizes[3];
  const T* all = (T*)taken(sizeof(T) * most * K);
  const size_t columns = {"(size_t)K" if bits == PLAIN else "(size_t)K * BITS / 32"};
  weight = ({word}*)taken(sizeof({word}) * N * columns);
  {"" if bits == PLAIN else "scales = (T*)taken(sizeof(T) * N * (K / GROUP));"}
  {"" if bits == PLAIN else "biases = (T*)taken(sizeof(T) * N * (K / GROUP));"}
  x_shape[1] = K, weight_shape[0] = N;
  for (int M = 1; M <= most; M++) {{
    x_shape[0] = M;
    x = (T*)malloc(sizeof(T) * M * K);
    memcpy(x, all, sizeof(T) * M * K);
    y = (T*)malloc(sizeof(T) * M * N);
    memset(y, 0xff, sizeof(T) * M * N);  // what a kernel does not write shows: NaN
    const int threads = (N + {outputs} - 1) / {outputs} * {simds} * 32;
    switch ((M + {step} - 1) / {step} * {step}) {{
      {cases}
    }}
    fwrite(y, sizeof(T), (size_t)M * N, stdout);
    free(x);
    free(y);
  }}
}}
"""
    name = f"{variant}-{bits}-{group}-{dtype}-{'asan' if sanitize else 'plain'}"
    (folder / f"{name}.cpp").write_text(text, encoding="utf-8")
    flags = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
    flags += ["-g", "-fsanitize=address"] if sanitize else []
    assert COMPILER
    subprocess.run(
        [COMPILER, *flags, "-o", str(folder / name), str(folder / f"{name}.cpp")], check=True
    )
    return folder / name


def run(
    made: Path, x: mx.array, weights: Sequence[mx.array], *, backwards: bool = False
) -> list[np.ndarray]:
    """Products of the first row of `x`, of the first two, and so on, as words of 16 bits.

    Raises:
        CalledProcessError: if the program ended badly, as the address sanitizer makes it.
    """
    rows, dim = x.shape
    outputs = weights[0].shape[0]
    sizes = np.array([rows, dim, outputs, backwards], np.int32)
    given = b"".join(np.ascontiguousarray(words(a)).tobytes() for a in (x, *weights))
    done = subprocess.run(
        [str(made)],
        input=sizes.tobytes() + given,
        capture_output=True,
        check=False,
        env={"ASAN_OPTIONS": "detect_leaks=0"},  # its inputs live as long as the program
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, made.name, stderr=done.stderr)
    found = np.frombuffer(done.stdout, np.uint16)
    ends = np.cumsum(np.arange(rows + 1)) * outputs
    return [found[ends[n - 1] : ends[n]].reshape(n, outputs) for n in range(1, rows + 1)]


def words(array: mx.array) -> np.ndarray:
    """The words of an array, which numpy need not have a type for."""
    return np.array(array.view(mx.uint16) if array.dtype.size == 2 else array)


def values(found: np.ndarray, dtype: str) -> np.ndarray:
    """Words of 16 bits as numbers."""
    return np.array(mx.array(found).view(kernels.DTYPES[dtype]).astype(mx.float32))


@functools.cache
def runs() -> bool:
    """Whether there is a compiler that takes the header, as on Linux; a Mac has Metal itself."""
    if COMPILER is None or sys.platform != "linux":
        return False
    header = str(Path(__file__).with_suffix(".h"))
    flags = ["-std=c++17", "-w", "-fsyntax-only", "-x", "c++", header]
    return subprocess.run([COMPILER, *flags], check=False, capture_output=True).returncode == 0


def inputs_and_weights(product: Product, rows: int, seed: int = 1) -> tuple[Any, list[mx.array]]:
    """Random ones of a kind of product."""
    dtype = kernels.DTYPES[product.dtype]
    x = mx.random.normal((rows, product.dim), key=mx.random.key(seed)).astype(dtype)
    plain = mx.random.normal((product.outputs, product.dim), key=mx.random.key(seed + 1))
    plain = (plain / product.dim**0.5).astype(dtype)
    if product.bits == PLAIN:
        return x, [plain]
    return x, list(mx.quantize(plain, product.group, product.bits))


def float64(
    product: Product, x: mx.array, weights: Sequence[mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, unpacked by numpy alone, and that of absolute values."""
    inputs = values(words(x), product.dtype).astype(np.float64)
    if product.bits == PLAIN:
        matrix = values(words(weights[0]), product.dtype).astype(np.float64)
    else:
        packed, scales, biases = weights
        shifts = np.arange(32 // product.bits, dtype=np.uint32) * product.bits
        raw = (words(packed)[..., None] >> shifts) & ((1 << product.bits) - 1)
        grouped = raw.reshape(product.outputs, -1, product.group).astype(np.float64)
        scale, bias = (values(words(a), product.dtype)[..., None] for a in (scales, biases))
        matrix = (grouped * scale + bias).reshape(product.outputs, product.dim)
    return inputs @ matrix.T, np.abs(inputs) @ np.abs(matrix).T
