"""Matrix products of 2 to 64 rows on CUDA: one kernel, with the same bits for each such number.

Verify and draft passes are little else than matrix products of 2 to 64 rows. MLX's CUDA backend
hands such a product to cuBLAS, which keeps the host busy for longer than the device; over quantized
weights it takes several times as long as a product of one row. The small-M kernel here reads and
unpacks each weight once, whatever the number of rows, and adds in an order that depends on nothing
but the length of a row: a row has the same bits beside any others.

It does not run over large plain weights beyond 32 rows: cuBLAS is faster there. Where it does not
run, a module computes what it does elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernels import kernel, runs_here

MAX_ROWS = 64
# Beyond so many rows, plain weights of more values than that (of 8B shapes) go to cuBLAS.
MAX_ROWS_PLAIN, MANY = 32, 1 << 25
PLAIN = 16  # bits of a weight that is not quantized
BITS = (4, 8, PLAIN)
WARPS = 8  # of a thread block, each of which adds up every eighth part of a row
STAGES = 3  # parts of a row that a thread has under way
SHARED = 98304  # bytes of shared memory that a thread block can have on every such device
BLOCKS = 96  # thread blocks that keep the device busy


class CudaLinear(nn.Linear):
    """A projection whose products of a few rows run the kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dim] -> [..., outputs]."""
        return multiply([(self, x)]) if fits(self, x) else super().__call__(x)


class CudaQuantizedLinear(nn.QuantizedLinear):
    """A quantized projection whose products of a few rows run the kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., dim] -> [..., outputs]."""
        return multiply([(self, x)]) if fits(self, x) else super().__call__(x)


class CudaEmbedding(nn.Embedding):
    """An embedding that, as the head, runs the kernel over a few rows."""

    def as_linear(self, x: mx.array) -> mx.array:
        """[..., dim] -> [..., outputs]."""
        return multiply([(self, x)]) if fits(self, x) else super().as_linear(x)


class CudaQuantizedEmbedding(nn.QuantizedEmbedding):
    """A quantized embedding that, as the head, runs the kernel over a few rows."""

    def as_linear(self, x: mx.array) -> mx.array:
        """[..., dim] -> [..., outputs]."""
        return multiply([(self, x)]) if fits(self, x) else super().as_linear(x)


def by_view(ar: Any, diff: Any, x: mx.array, n_ar: int) -> mx.array:
    """What `ar` makes of the first `n_ar` rows of `x` [1, rows, dim], and `diff` of the others.

    Both are projections to outputs of one size.
    """
    if n_ar in (0, x.shape[1]):
        return (ar if n_ar else diff)(x)
    views = [(ar, x[:, :n_ar]), (diff, x[:, n_ar:])]
    if all(fits(*view) for view in views) and _alike(ar, diff):
        return multiply(views)
    return mx.concatenate([module(part) for module, part in views], axis=1)


def fits(module: Any, x: mx.array) -> bool:
    """Whether the kernel runs here and can compute this product; it has no gradient."""
    dim = x.shape[-1]
    if x.size == dim:  # an AR step is soon past here
        return False
    rows = x.shape[-2]
    if not 1 < rows <= MAX_ROWS or x.size != rows * dim or not runs_here():
        return False
    if isinstance(module, (CudaQuantizedLinear, CudaQuantizedEmbedding)):
        bits, dtype = module.bits if module.mode == "affine" else 0, module.scales.dtype
        in_word = 32 // module.bits
    elif isinstance(module, (CudaLinear, CudaEmbedding)):
        if rows > MAX_ROWS_PLAIN and module.weight.size > MANY:
            return False
        bits, dtype, in_word = PLAIN, module.weight.dtype, 1
    else:
        return False
    return (
        bits in BITS
        and dim % (128 // bits) == 0
        and dim == module.weight.shape[-1] * in_word
        and x.dtype == dtype == mx.bfloat16
        and "bias" not in module
        and not module.training
    )


def _alike(a: Any, b: Any) -> bool:
    """Whether the weights of two projections are held in the same way."""
    return type(a) is type(b) and all(
        getattr(a, name, None) == getattr(b, name, None) for name in ("bits", "group_size")
    )


def multiply(views: list[tuple[Any, mx.array]]) -> mx.array:
    """The product of one view, or of two whose projections are alike."""
    module, x = views[0]
    counts, outputs = [x.shape[-2] for _, x in views], module.weight.shape[0]
    packed = "scales" in module
    bits, group = (module.bits, module.group_size) if packed else (PLAIN, 1)
    tiles = 1 << max(0, (max(counts) - 1).bit_length() - 3)  # of 8 rows, a power of two
    # Inputs are read once for each block of weights: the more of them, the larger the block, as
    # long as there are enough blocks to keep the device busy.
    sizes = (4, 2) if tiles == 8 and bits == PLAIN else (2,)
    sets = next((n for n in sizes if outputs * len(views) >= 16 * n * BLOCKS), 1)
    # Inputs are read ahead too where there is room; those beside packed weights are too many.
    ahead = bits == PLAIN and _shared(2 * sets + tiles) <= SHARED
    constants = {"AHEAD": ahead, "WARPS": WARPS, "STAGES": STAGES, "TILES": tiles, "SETS": sets}
    constants |= {"BITS": bits, "GROUP": group}
    # No more inputs than there must be: each costs the host a microsecond.
    names = ("weight", "scales", "biases") if packed else ("weight",)
    run = kernel(
        "small_matmul",
        tuple(f"{name}_{i}" for i in range(len(views)) for name in ("x", *names)),
        ("y",),
        _source(len(views), packed),
        _HEADER,
        _shared(2 * sets + (tiles if ahead else 0)),
    )
    (out,) = run(
        inputs=[a for module, part in views for a in (part, *(module[name] for name in names))],
        template=[("T", x.dtype), *constants.items()],
        grid=(-(-outputs // (16 * sets)) * WARPS * 32, len(views), 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[(*x.shape[:-2], sum(counts), outputs)],
        output_dtypes=[x.dtype],
    )
    return out


def _shared(parts: int) -> int:
    """Bytes in which every thread has so many parts of 16 bytes under way."""
    return STAGES * parts * WARPS * 32 * 16


@functools.cache  # or it would be hashed anew in each call
def _source(views: int, packed: bool) -> str:
    """The kernel's source; first, what it calls the inputs of the view of its thread block."""

    def of_view(name: str) -> str:
        return f"view ? {name.replace('#', '1')} : " * (views - 1) + name.replace("#", "0")

    rows = of_view("x_#_shape[x_#_ndim - 2]")
    scales = [of_view(f"{name}_#") if packed else "nullptr" for name in ("scales", "biases")]
    return f"""
  const int view = blockIdx.y, M = {rows};
  const T *x = {of_view("x_#")}, *scales = {scales[0]}, *biases = {scales[1]};
  const auto words = reinterpret_cast<const unsigned*>({of_view("weight_#")});
{_SOURCE}"""


_HEADER = """
// Packed value `i` of a word as 1 + value / 2^BITS, times `scale`, plus `bias`.
template <int BITS>
__device__ __forceinline__ float unpack(unsigned word, int i, float scale, float bias) {
  constexpr unsigned mask = ((1u << BITS) - 1) << (23 - BITS);
  const int up = 23 - BITS - i * BITS;
  const unsigned bits = ((up >= 0 ? word << up : word >> -up) & mask) | 0x3f800000u;
  return fmaf(__uint_as_float(bits), scale, bias);
}
"""

# Of each view: x [M, K]; words [N, K * BITS / 32]; scales and biases [N, K / GROUP] of those that
# are packed. y [M, N] holds the rows of the first view, then those of the second, if there is
# one.
#
# A warp holds `SETS` times 16 rows of weights and `TILES` times 8 rows of inputs. Its thread
# 4 g + t brings rows g and g + 8 of each set, row g of each tile, and of each step of 16 along K
# four values. Which four it takes does not matter, as long as weights and inputs agree: here
# those that lie side by side, so that it reads 16 bytes of a row of weights at once (a span).
_SOURCE = """
  static_assert(WARPS == 8, "the order of the sums below");
  constexpr int IN_WORD = 32 / BITS, SPAN = 4 * IN_WORD, STEP = WARPS * 4 * SPAN;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int N = weight_0_shape[0], K = x_0_shape[x_0_ndim - 1], first = blockIdx.x * SETS * 16;
  // Read ahead by each thread for itself; in the end, for the warps' sums.
  extern __shared__ uint4 shared[];
  auto ring = reinterpret_cast<uint4(*)[SETS][2][WARPS * 32]>(shared);
  auto inputs = reinterpret_cast<uint4(*)[TILES][WARPS * 32]>(ring + STAGES);
  auto part = reinterpret_cast<float(*)[SETS * 16][TILES * 8 + 1]>(shared);

  size_t row[SETS][2], input[TILES];  // those past the end repeat the last one
#pragma unroll
  for (int s = 0; s < SETS; s++)
#pragma unroll
    for (int h = 0; h < 2; h++) row[s][h] = min(first + 16 * s + 8 * h + g, N - 1);
#pragma unroll
  for (int m = 0; m < TILES; m++) input[m] = (size_t)min(8 * m + g, M - 1) * K;

  T scale[SETS][2], bias[SETS][2];
  auto read_scales = [&](int k) {
    if (BITS == 16) return;  // plain
#pragma unroll
    for (int s = 0; s < SETS; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const size_t at = row[s][h] * (K / GROUP) + min(k, K - SPAN) / GROUP;
        scale[s][h] = scales[at];
        bias[s][h] = biases[at];
      }
  };
  auto read = [&](int k, int stage) {
    if (k - t * SPAN < K) {
#pragma unroll
      for (int s = 0; s < SETS; s++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          read_ahead(&ring[stage][s][h][threadIdx.x],
                     words + (row[s][h] * K + min(k, K - SPAN)) / IN_WORD);
#pragma unroll
      for (int m = 0; m < TILES; m++)
        if (AHEAD) read_ahead(&inputs[stage][m][threadIdx.x], x + input[m] + min(k, K - SPAN));
    }
    asm volatile("cp.async.commit_group;");
  };

  float sum[SETS][TILES][4] = {};
  int k = (warp * 4 + t) * SPAN;
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) read(k + stage * STEP, stage);
  read_scales(k);
  for (int stage = 0; k - t * SPAN < K; k += STEP, stage = (stage + 1) % STAGES) {
    read(k + (STAGES - 1) * STEP, (stage + STAGES - 1) % STAGES);
    float times[SETS][2], plus[SETS][2];
#pragma unroll
    for (int s = 0; s < SETS; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (BITS == 16) continue;
        times[s][h] = (float)scale[s][h] * (1 << BITS);
        plus[s][h] = (float)bias[s][h] - times[s][h];
      }
    read_scales(k + STEP);
    asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 1) : "memory");
    uint4 a[SETS][2];
#pragma unroll
    for (int s = 0; s < SETS; s++)
#pragma unroll
      for (int h = 0; h < 2; h++) a[s][h] = ring[stage][s][h][threadIdx.x];
#pragma unroll
    for (int i = 0; i < SPAN; i += 8) {
      uint4 b[TILES];
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        b[m] = AHEAD ? inputs[stage][m][threadIdx.x]
                     : *reinterpret_cast<const uint4*>(x + input[m] + min(k, K - SPAN) + i);
        if (k >= K) b[m] = {};  // past the end, where weights repeat
      }
#pragma unroll
      for (int s = 0; s < SETS; s++) {
        unsigned v[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int p = 0; p < 4; p++) {
            const int at = i + 2 * p;
            const unsigned word = reinterpret_cast<const unsigned*>(&a[s][h])[at / IN_WORD];
            const float low = unpack<BITS>(word, at % IN_WORD, times[s][h], plus[s][h]);
            const float high = unpack<BITS>(word, at % IN_WORD + 1, times[s][h], plus[s][h]);
            v[h][p] = BITS == 16 ? word : pair(low, high);
          }
#pragma unroll
        for (int m = 0; m < TILES; m++) {
          multiply_add(sum[s][m], v[0][0], v[1][0], v[0][1], v[1][1], b[m].x, b[m].y);
          multiply_add(sum[s][m], v[0][2], v[1][2], v[0][3], v[1][3], b[m].z, b[m].w);
        }
      }
    }
  }

  // Add up the warps' sums, always in the same order.
  constexpr int givers[] = {4, 6, 2, 1}, takers[] = {0, 2, 0, 0}, pairs[] = {2, 2, 2, 1};
#pragma unroll
  for (int turn = 0; turn < 4; turn++) {
    const int giver = warp - givers[turn], taker = warp - takers[turn];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SETS * TILES * 4; i++) {
      const int s = i / 4 / TILES, m = i / 4 % TILES, at = i % 4;
      if (giver >= 0 && giver < pairs[turn])
        part[giver][16 * s + 8 * (at / 2) + g][8 * m + 2 * t + at % 2] = sum[s][m][at];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SETS * TILES * 4; i++) {
      const int s = i / 4 / TILES, m = i / 4 % TILES, at = i % 4;
      if (taker >= 0 && taker < pairs[turn]) {
        float* other = &part[taker][16 * s + 8 * (at / 2) + g][8 * m + 2 * t + at % 2];
        *other = sum[s][m][at] += *other;
      }
    }
  }
  __syncthreads();
  const int above = view * x_0_shape[x_0_ndim - 2];
  for (int i = threadIdx.x; i < SETS * 16 * M; i += WARPS * 32) {
    const int n = i % (SETS * 16), m = i / (SETS * 16);
    if (first + n < N) y[(size_t)(above + m) * N + first + n] = (T)part[0][n][m];
  }
"""
