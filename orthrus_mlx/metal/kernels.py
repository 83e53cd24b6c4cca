"""Matrix products of 1 to 16 rows on Metal: each weight is read and unpacked once for all rows.

**No Mac has run these kernels yet.** They are used only where `orthrus-mlx tune` has proven them.

Sums are float32, in an order that depends on the length of a row alone: a row has the same bits
beside any others. Which of two kinds of kernel, in two sizes each, is the fastest, is measured:

- *lanes*: a SIMD-group takes SIZE rows of weights, a lane 8 columns of every 256.
- *tiles*: a SIMD-group multiplies 8 x 8 matrices of SIZE rows of weights, over every fourth stretch
  of 32 columns; the SIMD-groups of a threadgroup add up theirs in the end.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

MAX_ROWS = 16
PLAIN = 16  # bits of a weight that is not quantized
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16}


class Product(NamedTuple):
    """A kind of product: inputs [rows, dim] by weights [outputs, dim]."""

    outputs: int
    dim: int
    bits: int  # of a weight; `PLAIN` for those that are not quantized
    group: int  # columns that share a scale; 1 for plain weights
    dtype: str  # of the inputs, the outputs, and the scales or plain weights


@dataclass(frozen=True)
class Choice:
    """The kernel that one kind of product runs, and the numbers of rows for which it is used."""

    product: Product
    variant: str  # a name of `VARIANTS`
    rows: frozenset[int]


def on_metal() -> bool:
    """Whether MLX computes on a Metal device."""
    return bool(mx.metal.is_available()) and mx.default_device() == mx.gpu


def product_of(module: Any) -> Product | None:
    """The kind of product that a projection or head computes, if the kernels can."""
    packed = "scales" in module
    bits, group = (module.bits, module.group_size) if packed else (PLAIN, 1)
    outputs, columns = module.weight.shape
    dim = columns * 32 // bits if packed else columns
    dtype = str((module.scales if packed else module.weight).dtype).removeprefix("mlx.core.")
    fits = dtype in DTYPES and "bias" not in module and dim % 32 == 0
    if packed:  # MLX puts inputs of fewer than 8 values into another address space
        fits = fits and module.mode == "affine" and bits in (4, 8) and module.scales.size >= 8
    return Product(outputs, dim, bits, group, dtype) if fits else None


def multiply(variant: str, product: Product, x: mx.array, weights: tuple[mx.array, ...]) -> Any:
    """[..., rows, dim] -> [..., rows, outputs], for 1 to `MAX_ROWS` rows in all.

    `weights` are plain ones, or packed ones with their scales and biases.
    """
    rows, (_, size, outputs, simds, step) = x.size // product.dim, VARIANTS[variant]
    constants = {"BITS": product.bits, "GROUP": product.group, "SIZE": size, "SIMDS": simds}
    (out,) = _kernel(variant, ("weight", "scales", "biases")[: len(weights)])(
        inputs=[x.reshape(rows, product.dim), *weights],
        template=[("T", x.dtype), *constants.items(), ("ROWS", -(-rows // step) * step)],
        grid=(-(-product.outputs // outputs) * simds * 32, 1, 1),
        threadgroup=(simds * 32, 1, 1),
        output_shapes=[(*x.shape[:-1], product.outputs)],
        output_dtypes=[x.dtype],
    )
    return out


@functools.cache
def _kernel(variant: str, weights: tuple[str, ...]) -> Any:
    """A kernel over these weights. MLX compiles it anew for each set of constants."""
    return mx.fast.metal_kernel(
        name=f"few_rows_{variant.replace('-', '_')}_{len(weights)}_{SOURCES}",
        input_names=["x", *weights],
        output_names=["y"],
        source=VARIANTS[variant][0].replace("WEIGHTS", ", ".join(weights)),
        header=HEADER,
        compile_options={"math_mode": "safe"},  # sums stay in the order that is written down
    )


HEADER = """
#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
using namespace metal;
#define UNROLL _Pragma("clang loop unroll(full)")  // or arrays would not be in registers

// Eight weights, the first at `at` of all, which is a multiple of 8.
template <int BITS, int GROUP, typename T>
inline void read8(thread float* to, size_t at, const device T* weight) {
  UNROLL for (int i = 0; i < 8; i++) to[i] = float(weight[at + i]);
}

template <int BITS, int GROUP, typename T>
inline void read8(
    thread float* to, size_t at, const device uint* weight, const device T* scales,
    const device T* biases) {
  const float scale = float(scales[at / GROUP]), bias = float(biases[at / GROUP]);
  UNROLL for (int i = 0; i < 8; i++) {
    const uint word = weight[at / (32 / BITS) + i * BITS / 32] >> (i * BITS % 32);
    to[i] = fma(float(word & ((1u << BITS) - 1u)), scale, bias);
  }
}
"""

# x [M, K], rows of weights [N, K], y [M, N]. Rows past the end repeat the last one and are not
# written. Every loop ends at a constant or at K.
LANES = """
  const int M = x_shape[0], K = x_shape[1], N = weight_shape[0], lane = thread_index_in_simdgroup;
  const int simd = int(threadgroup_position_in_grid.x) * SIMDS + simdgroup_index_in_threadgroup;
  const int first = simd * SIZE;
  float sum[SIZE][ROWS] = {};
  for (int k = lane * 8; k < K; k += 32 * 8) {
    float weights[SIZE][8], inputs[8];
    UNROLL for (int s = 0; s < SIZE; s++)
      read8<BITS, GROUP>(weights[s], size_t(min(first + s, N - 1)) * K + k, WEIGHTS);
    UNROLL for (int m = 0; m < ROWS; m++) {
      read8<16, 1>(inputs, size_t(min(m, M - 1)) * K + k, x);
      UNROLL for (int s = 0; s < SIZE; s++)
        UNROLL for (int i = 0; i < 8; i++) sum[s][m] = fma(weights[s][i], inputs[i], sum[s][m]);
    }
  }
  UNROLL for (int s = 0; s < SIZE; s++)
    UNROLL for (int m = 0; m < ROWS; m++) {
      const float total = simd_sum(sum[s][m]);
      if (lane == 0 && m < M && first + s < N) y[size_t(m) * N + first + s] = T(total);
    }
"""

# Each SIMD-group has its own stretch of threadgroup memory. ROWS and SIZE are multiples of 8.
TILES = """
  constexpr int STEP = 32;
  const int M = x_shape[0], K = x_shape[1], N = weight_shape[0], lane = thread_index_in_simdgroup;
  const int simd = simdgroup_index_in_threadgroup;
  const int first = int(threadgroup_position_in_grid.x) * SIZE;
  threadgroup float weights[SIMDS][SIZE * STEP];  // in the end, for ROWS x SIZE sums
  threadgroup float inputs[SIMDS][ROWS * STEP];
  simdgroup_float8x8 sum[ROWS / 8][SIZE / 8], a, b[SIZE / 8];
  UNROLL for (int t = 0; t < ROWS / 8; t++)
    UNROLL for (int s = 0; s < SIZE / 8; s++)
      sum[t][s] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (int k = simd * STEP; k < K; k += SIMDS * STEP) {
    for (int i = lane * 8; i < SIZE * STEP; i += 32 * 8) {
      float eight[8];
      const int n = min(first + i / STEP, N - 1);
      read8<BITS, GROUP>(eight, size_t(n) * K + k + i % STEP, WEIGHTS);
      UNROLL for (int j = 0; j < 8; j++) weights[simd][i + j] = eight[j];
    }
    for (int m = 0; m < ROWS; m++)
      inputs[simd][m * STEP + lane] = float(x[size_t(min(m, M - 1)) * K + k + lane]);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int d = 0; d < STEP; d += 8) {
      UNROLL for (int s = 0; s < SIZE / 8; s++)
        simdgroup_load(b[s], &weights[simd][8 * s * STEP + d], STEP, ulong2(0, 0), true);
      UNROLL for (int t = 0; t < ROWS / 8; t++) {
        simdgroup_load(a, &inputs[simd][8 * t * STEP + d], STEP);
        UNROLL for (int s = 0; s < SIZE / 8; s++)
          simdgroup_multiply_accumulate(sum[t][s], a, b[s], sum[t][s]);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  UNROLL for (int t = 0; t < ROWS / 8; t++)
    UNROLL for (int s = 0; s < SIZE / 8; s++)
      simdgroup_store(sum[t][s], &weights[simd][8 * t * SIZE + 8 * s], SIZE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = thread_index_in_threadgroup; i < M * SIZE; i += SIMDS * 32) {
    const int m = i / SIZE, n = first + i % SIZE;
    float total = 0.0f;
    for (int s = 0; s < SIMDS; s++) total += weights[s][i];
    if (n < N) y[size_t(m) * N + n] = T(total);
  }
"""

# Source, SIZE, rows of weights that a threadgroup takes, SIMDS, and what ROWS is a multiple of.
VARIANTS = {
    "lanes-2": (LANES, 2, 4, 2, 2),
    "lanes-4": (LANES, 4, 8, 2, 2),
    "tiles-16": (TILES, 16, 16, 4, 8),
    "tiles-32": (TILES, 32, 32, 4, 8),
}
SOURCES = hashlib.sha256((HEADER + repr(VARIANTS)).encode()).hexdigest()[:16]
