"""Queries, keys and values of a few rows on CUDA: norms and rotary embedding in one kernel.

What the layer's modules would do in several small kernels, for the rows of both views at once.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .attention import fits as kernels_run
from .kernels import bits_of, kernel


def fits(attention: Any, x: mx.array) -> bool:
    """Whether `apply` can do what the layer's norms and rotary embedding would.

    `x` are the projections. The embedding is to turn all dimensions, and to scale none.
    """
    rope, norms = attention.rope, _norms(attention)
    return (
        all(type(norm) is nn.RMSNorm and norm.eps == norms[0].eps for norm in norms)
        and kernels_run(attention, x, *(norm.weight for norm in norms))
        and type(rope) is nn.RoPE
        and rope.dims == attention.head_dim
        and rope.scale == 1
        and not rope.traditional
    )


def _norms(attention: Any) -> list[Any]:
    return [attention.q_norm, attention.k_norm, attention.q_norm_diff, attention.k_norm_diff]


def apply(
    attention: Any, x: mx.array, n_ar: int, seen: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values [1, heads, rows, head_dim] of a pass, normed and rotated.

    Args:
        attention: the layer.
        x: its projections, side by side, [1, rows, (heads + 2 kv_heads) * head_dim].
        n_ar: AR rows, which come first.
        seen: as `ranges.ranges` returns it.
    """
    rows, norms = x.shape[1], _norms(attention)
    alone = n_ar in (0, rows)  # one view, whose norms are all that is needed
    if alone:
        norms = norms[:2] if n_ar else norms[2:]
    dim, heads, kv_heads = attention.head_dim, attention.n_heads, attention.n_kv_heads
    q, k, v = kernel(
        "norm_rope",
        ("x", *("q_norm", "k_norm", "q_norm_diff", "k_norm_diff")[: len(norms)], "seen"),
        ("q", "k", "v"),
        _SOURCE_ALONE if alone else _SOURCE,
    )(
        inputs=[x, *(norm.weight for norm in norms), seen],
        template=[
            ("T", x.dtype),
            *{"D": dim, "H": heads, "KV": kv_heads}.items(),
            ("EPS", bits_of(attention.q_norm.eps)),
            ("LOG_BASE", bits_of(math.log2(attention.rope.base))),
        ],
        grid=(32, (heads + 2 * kv_heads), rows),
        threadgroup=(32, 4, 1),
        output_shapes=[(1, n, rows, dim) for n in (heads, kv_heads, kv_heads)],
        output_dtypes=[x.dtype] * 3,
    )
    return q, k, v


# A warp norms and rotates one head of one row, as the model's modules do, or copies a value. What
# is fused is spelt out, as there are two forms of it, for one view and for both.
_SOURCE = """
  const int lane = threadIdx.x, head = blockIdx.y * blockDim.y + threadIdx.y, row = blockIdx.z;
  const int rows = gridDim.z;
  if (head >= H + 2 * KV) return;
  const bool is_diff = seen[3 * rows + row] > 0;  // the end of its block
  const T* from = x + ((size_t)row * (H + 2 * KV) + head) * D;
  T* to = head < H        ? q + ((size_t)head * rows + row) * D
          : head < H + KV ? k + ((size_t)(head - H) * rows + row) * D
                          : v + ((size_t)(head - H - KV) * rows + row) * D;
  const T* norm = head < H ? (is_diff ? q_norm_diff : q_norm) : (is_diff ? k_norm_diff : k_norm);
  constexpr int PAIRS = (D / 2 + 31) / 32;
  float part[PAIRS][2], square = 0;
#pragma unroll
  for (int p = 0; p < PAIRS; p++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int d = p * 32 + lane;
      part[p][h] = d < D / 2 ? (float)from[d + h * D / 2] : 0.0f;
      square = fmaf(part[p][h], part[p][h], square);
    }
  if (head < H + KV) {
    for (int i = 16; i; i /= 2) square += __shfl_xor_sync(0xffffffff, square, i);
    const float over = rsqrtf(square / D + __int_as_float(EPS));
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
      const int d = p * 32 + lane;
      if (d >= D / 2) break;
      const float a = (T)((float)norm[d] * part[p][0] * over);
      const float b = (T)((float)norm[d + D / 2] * part[p][1] * over);
      float sine, cosine;
      sincosf(seen[row] * exp2f(-(2.0f * d / D) * __int_as_float(LOG_BASE)), &sine, &cosine);
      part[p][0] = fmaf(a, cosine, -__fmul_rn(b, sine));
      part[p][1] = fmaf(a, sine, __fmul_rn(b, cosine));
    }
  }
#pragma unroll
  for (int p = 0; p < PAIRS; p++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int d = p * 32 + lane;
      if (d < D / 2) to[d + h * D / 2] = part[p][h];
    }
"""

_SOURCE_ALONE = f"  const T *q_norm_diff = q_norm, *k_norm_diff = k_norm;\n{_SOURCE}"
