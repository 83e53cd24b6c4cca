"""Attention of a few rows on CUDA: each row over the slots of the cache that it may see.

MLX's CUDA backend hands attention over several rows to cuDNN, which plans each new shape for 70 ms,
and wants a mask over all slots where rows differ in what they see. The kernels here take two ranges
of slots for each row instead, and read no slot beyond the filled ones.

The keys are shared out among thread blocks in parts that depend on nothing but the slot, and the
parts' results are merged in the order of the slots. So a row has the same bits beside any others,
and however many slots there are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .kernels import bits_of, kernel, runs_here, shared_memory

WARPS = 4  # of a thread block
HEAD_DIMS = (32, 64, 96, 128)
KEYS, STAGES = 64, 2  # keys that a thread block takes at once, and how often so many are held
# Slots shared out in parts: (up to so many, slots of a part), multiples of KEYS. Small parts give
# few slots more to do at once; of a long text they would be much to merge.
PARTS = ((2048, 128), (4096, 256))
LARGEST = 1024  # slots of a part beyond those


def fits(attention: Any, *arrays: mx.array) -> bool:
    """Whether the kernels can run this layer over such queries, keys and values; no gradients."""
    return (
        runs_here()
        and attention.head_dim in HEAD_DIMS
        and not attention.training
        and all(a.dtype == mx.bfloat16 for a in arrays)
    )


def attend(q: mx.array, k: mx.array, v: mx.array, seen: mx.array, scale: float) -> mx.array:
    """Attention output [1, rows, heads * head_dim].

    Args:
        q: queries [1, heads, rows, head_dim].
        k: the cache's keys [1, kv_heads, slots, head_dim].
        v: its values, of the same shape.
        seen: as `ranges.ranges` returns it, [5, rows] int32, contiguous. The first row stands
            behind the slots that were filled before this pass.
        scale: of the scores.
    """
    _, heads, rows, dim = q.shape
    kv_heads, slots = k.shape[1:3]
    parts = parts_of(slots)
    queries = rows * (heads // kv_heads)  # of one KV head
    # Tiles of 16 queries for each warp: two share what is read of keys and values.
    tiles = 2 if queries > 16 * WARPS and _shared(2, dim) <= shared_memory() else 1
    blocks = -(-queries // (16 * tiles * WARPS))
    pieces, weights = kernel(
        "range_attention",
        ("q", "k", "v", "seen"),
        ("pieces", "weights"),
        _ATTEND,
        _HEADER,
        _shared(tiles, dim),
        strided=("q",),  # which may be some rows of a pass
    )(
        inputs=[q, mx.contiguous(k), mx.contiguous(v), seen],
        template=[
            ("T", q.dtype),
            *{"D": dim, "KEYS": KEYS, "STAGES": STAGES, "WARPS": WARPS, "TILES": tiles}.items(),
            ("SCALE", bits_of(scale)),
        ],
        grid=(blocks * WARPS * 32, kv_heads, parts),  # side by side those that read the same
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[(parts, heads * rows, dim), (parts, heads * rows)],
        output_dtypes=[q.dtype, mx.float32],
    )
    (out,) = kernel("merge_parts", ("pieces", "weights", "seen"), ("y",), _MERGE, _HEADER)(
        inputs=[pieces, weights, seen],
        template=[("T", q.dtype), ("D", dim), ("KV", kv_heads)],
        grid=(32, heads * rows, 1),
        threadgroup=(32, 4, 1),
        output_shapes=[(1, rows, heads * dim)],
        output_dtypes=[q.dtype],
    )
    return out


def _shared(tiles: int, dim: int) -> int:
    """Bytes for keys and values under way, and for a thread block's queries."""
    return (2 * STAGES * KEYS + 16 * tiles * WARPS) * (dim + 8) * 2


def parts_of(slots: int) -> int:
    """Parts that so many slots are shared out in; `part_start` below is its inverse."""
    parts = begin = 0
    for end, size in (*PARTS, (slots, LARGEST)):
        parts += max(0, -(-(min(slots, end) - begin) // size))
        begin = end
    return parts


def _shared_out() -> tuple[str, str]:
    """The bodies of `part_start` and `parts_of` in the kernels."""
    starts, counts, begin = "", "", 0
    for end, size in (*PARTS, (0, LARGEST)):
        last, first = not end, parts_of(begin)
        until = "" if last else f"if (part < {parts_of(end)}) "
        starts += f"  {until}return {begin} + {size} * (part - {first});\n"
        until = "" if last else f"if (slots <= {end}) "
        counts += f"  {until}return {first} + (slots - {begin} + {size - 1}) / {size};\n"
        begin = end
    return starts, counts


_STARTS, _COUNTS = _shared_out()
_HEADER = f"""
// The first slot of a part.
__device__ __forceinline__ int part_start(int part) {{
{_STARTS}}}

// Parts that so many slots are shared out in.
__device__ __forceinline__ int parts_of(int slots) {{
{_COUNTS}}}
"""

_HEADER += """
__device__ __forceinline__ float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Four 8 x 8 matrices from shared memory, thread i giving the address of row i % 8 of matrix i / 8;
// as `multiply_add` takes its `b`, or that of their transposes.
__device__ __forceinline__ void read_matrices(unsigned* to, const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)) : "memory");
}
__device__ __forceinline__ void read_transposed(unsigned* to, const void* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)) : "memory");
}
"""

# A thread block takes one part of the slots, one KV head, and some of its queries (all rows of all
# heads that share it): TILES of 16 for each warp. Scores and sums stay in registers; which thread
# holds what is said at `multiply_add`. How many tiles there are changes nothing in any of them.
_ATTEND = """
  constexpr int PAD = D + 8;  // so that rows of shared memory start in different banks
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.y, part = gridDim.z - 1 - blockIdx.z;  // the largest parts first
  const int rows = q_shape[2], group = q_shape[1] / k_shape[1], slots = k_shape[2];
  const int all = rows * group, before_pass = seen[0], filled = before_pass + rows;
  const int begin = part_start(part), end = min(part_start(part + 1), filled);
  if (begin >= end) return;
  extern __shared__ uint4 shared[];
  auto keys = reinterpret_cast<T(*)[KEYS][PAD]>(shared), values = keys + STAGES;
  auto query = *(values + STAGES) + warp * 16 * TILES;

  const T *from_keys = k + (size_t)head * slots * D, *from_values = v + (size_t)head * slots * D;
  auto read = [&](int from, int stage) {
#pragma unroll
    for (int i = 0; i < KEYS * D / 8; i += WARPS * 32) {
      const int key = (i + threadIdx.x) / (D / 8), d = (i + threadIdx.x) % (D / 8) * 8;
      if (key >= KEYS || from >= end) break;
      const int at = min(from + key, slots - 1) * D + d;
      read_ahead(&keys[stage][key][d], from_keys + at);
      read_ahead(&values[stage][key][d], from_values + at);
    }
    asm volatile("cp.async.commit_group;");
  };

  const int first = (blockIdx.x * WARPS + warp) * 16 * TILES;
  for (int i = lane; i < 16 * TILES * D / 8; i += 32) {
    const int n = min(first + i / (D / 8), all - 1), d = i % (D / 8) * 8;  // the last one repeats
    read_ahead(&query[i / (D / 8)][d],
               q + (head * group + n % group) * q_strides[1] + n / group * q_strides[2] + d);
  }
#pragma unroll
  for (int stage = 0; stage < STAGES - 1; stage++) read(begin + stage * KEYS, stage);

  const float none = __int_as_float(0xff800000);  // minus infinity
  const float unit = __int_as_float(SCALE) * 1.44269504f;
  float out[TILES][D / 8][4] = {}, highest[TILES][2], sum[TILES][2] = {};
#pragma unroll
  for (int i = 0; i < TILES; i++) highest[i][0] = highest[i][1] = none;

  for (int slot = begin, stage = 0; slot < end; slot += KEYS, stage = (stage + 1) % STAGES) {
    asm volatile("cp.async.wait_group %0;" :: "n"(STAGES - 2) : "memory");
    __syncthreads();
    read(slot + (STAGES - 1) * KEYS, (stage + STAGES - 1) % STAGES);
    if (first >= all) continue;
    float score[TILES][KEYS / 8][4] = {};
#pragma unroll (8 / TILES)  // or there would be more to hold than registers
    for (int d = 0; d < D / 16; d++) {
      unsigned a[TILES][4];
#pragma unroll
      for (int i = 0; i < TILES; i++)
        read_matrices(a[i], &query[16 * i + lane % 16][16 * d + lane / 16 * 8]);
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        const int key = 16 * n + lane / 16 * 8 + lane % 8;
        unsigned b[4];
        read_matrices(b, &keys[stage][key][16 * d + lane / 8 % 2 * 8]);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          multiply_add(score[i][2 * n], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
          multiply_add(score[i][2 * n + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      if (slot + KEYS > before_pass) {  // what is before it is seen by every row
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int* ranges = seen + min(first + 16 * i + 8 * h + g, all - 1) / group;
          const int before = ranges[rows], from = ranges[2 * rows], to = ranges[3 * rows];
#pragma unroll
          for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const int at = slot + 8 * n + 2 * t + j;
              if (at >= before && (at < from || at >= to)) score[i][n][2 * h + j] = none;
            }
        }
      }
      float high[2] = {none, none}, shrink[2];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) high[j / 2] = fmaxf(high[j / 2], score[i][n][j]);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffff, high[h], 1));
        high[h] = fmaxf(high[h], __shfl_xor_sync(0xffffffff, high[h], 2));
        high[h] = fmaxf(highest[i][h], high[h] * unit);
        const float zero = high[h] == none ? 0.0f : high[h];  // where nothing was seen yet
        shrink[h] = power_of_two(highest[i][h] - zero);  // exactly 1 where nothing is to be added
        highest[i][h] = high[h], high[h] = zero;
        sum[i][h] = __fmul_rn(sum[i][h], shrink[h]);  // not to be fused with what is added next
      }
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          score[i][n][j] = power_of_two(fmaf(score[i][n][j], unit, -high[j / 2]));
          sum[i][j / 2] += score[i][n][j];
        }
      if (__any_sync(0xffffffff, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
          for (int j = 0; j < 4; j++) out[i][d][j] *= shrink[j / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
      unsigned a[TILES][4];
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float* both = score[i][2 * n + j / 2] + j % 2 * 2;
          a[i][j] = pair(both[0], both[1]);
        }
#pragma unroll
      for (int d = 0; d < D / 16; d++) {
        unsigned b[4];
        read_transposed(b, &values[stage][16 * n + lane % 16][16 * d + lane / 16 * 8]);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          multiply_add(out[i][2 * d], a[i][0], a[i][1], a[i][2], a[i][3], b[0], b[1]);
          multiply_add(out[i][2 * d + 1], a[i][0], a[i][1], a[i][2], a[i][3], b[2], b[3]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 2 * TILES; i++) {
    const int h = i % 2, n = first + 8 * i + g;
    float total = sum[i / 2][h];
    total += __shfl_xor_sync(0xffffffff, total, 1);
    total += __shfl_xor_sync(0xffffffff, total, 2);
    if (n >= all) continue;
    const size_t at = (size_t)(part * gridDim.y + head) * all + n;
    const float over = total > 0 ? 1 / total : 0.0f;
    if (t == 0) weights[at] = highest[i / 2][h] + log2f(total);  // -inf where nothing was seen
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
      const float* both = out[i / 2][d] + 2 * h;
      *reinterpret_cast<unsigned*>(pieces + at * D + 8 * d + 2 * t) =
          pair(both[0] * over, both[1] * over);
    }
  }
"""

# A warp merges one query, over the parts of the slots that its row sees.
_MERGE = """
  const int lane = threadIdx.x, n = blockIdx.y * blockDim.y + threadIdx.y;
  const int all = pieces_shape[1], rows = seen_shape[1], queries = all / KV, group = queries / rows;
  if (n >= all) return;
  const int row = n % queries / group, head = n / queries * group + n % queries % group;
  const int parts = parts_of(max(seen[rows + row], seen[3 * rows + row]));
  float high = __int_as_float(0xff800000);
  for (int part = lane; part < parts; part += 32) high = fmaxf(high, weights[part * all + n]);
  for (int i = 16; i; i /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffff, high, i));
  constexpr int PAIRS = (D / 2 + 31) / 32, BATCH = 8;  // read together, or each would be waited for
  float sum = 0, out[PAIRS][2] = {};
  for (int first = 0; first < parts; first += BATCH) {
    float share[BATCH];
    __nv_bfloat162 piece[BATCH][PAIRS];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      const int at = min(first + i, parts - 1) * all + n;
      share[i] = weights[at];
#pragma unroll
      for (int p = 0; p < PAIRS; p++) {
        const int d = min(2 * (p * 32 + lane), D - 2);
        piece[i][p] = *reinterpret_cast<const __nv_bfloat162*>(pieces + (size_t)at * D + d);
      }
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      share[i] = first + i < parts ? power_of_two(share[i] - high) : 0.0f;
      sum += share[i];
#pragma unroll
      for (int p = 0; p < PAIRS; p++) {
        const float2 two = __bfloat1622float2(piece[i][p]);
        out[p][0] += share[i] * two.x, out[p][1] += share[i] * two.y;
      }
    }
  }
#pragma unroll
  for (int p = 0; p < PAIRS; p++) {
    const int d = 2 * (p * 32 + lane);
    if (d < D)
      *reinterpret_cast<unsigned*>(y + ((size_t)row * (all / rows) + head) * D + d) =
          pair(out[p][0] / sum, out[p][1] / sum);
  }
"""
