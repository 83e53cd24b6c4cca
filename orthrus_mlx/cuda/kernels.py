"""What the kernels written for CUDA share: where they run, how they are made, how they multiply."""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import Any

import mlx.core as mx


def on_cuda() -> bool:
    """Whether MLX computes on a CUDA device."""
    return _capability() > (0, 0) and mx.default_device() == mx.gpu


def runs_here() -> bool:
    """Whether the kernels run: MLX computes on a CUDA device with tensor cores for bfloat16."""
    return _capability() >= (8, 0) and mx.default_device() == mx.gpu


@functools.cache
def shared_memory() -> int:
    """Bytes of shared memory that a thread block can have, by the CUDA programming guide."""
    major, minor = _capability()
    if major in (9, 10, 11):
        return 227 << 10
    return (163 if (major, minor) in ((8, 0), (8, 7)) else 99) << 10


@functools.cache
def _capability() -> tuple[int, int]:
    """The device's compute capability; zeros where there is no CUDA device."""
    if not (hasattr(mx, "cuda") and mx.cuda.is_available()):
        return 0, 0
    device: Any = mx.device_info(mx.gpu)
    return device.get("compute_capability_major", 0), device.get("compute_capability_minor", 0)


@functools.cache
def kernel(
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    source: str,
    header: str = "",
    shared_memory: int = 0,
    strided: tuple[str, ...] = (),
) -> Any:
    """A kernel from the body of its function; `HEADER` and `header` stand before it.

    MLX copies inputs that are not contiguous, unless there are some that may be `strided`: then the
    caller hands on all others contiguous.
    """
    return mx.fast.cuda_kernel(
        # MLX keeps compiled kernels by name and template, on disk too. The types of the inputs are
        # in neither: whoever calls a kernel sees to them.
        name=f"{name}_{hashlib.sha256((HEADER + header + source).encode()).hexdigest()[:8]}",
        input_names=list(inputs),
        output_names=list(outputs),
        source=source,
        header=HEADER + header,
        shared_memory=shared_memory,
        ensure_row_contiguous=not strided,
    )


def bits_of(number: float) -> int:
    """A float32 as a template takes it; in a kernel, `__int_as_float` of it.

    An input of one number would do, and cost each thread block that reads it much more.
    """
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


HEADER = """
// sum += a b for 16 x 16 `a` and 16 x 8 `b` of a warp, on the tensor cores. Thread 4 g + t holds
// of `a` rows g and g + 8, of `b` column g, and of both in each half of 8 the values 2 t and
// 2 t + 1; of `sum`, rows g and g + 8 of columns 2 t and 2 t + 1.
__device__ __forceinline__ void multiply_add(
    float* sum, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Copy 16 bytes to shared memory, not waiting for them.
__device__ __forceinline__ void read_ahead(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

__device__ __forceinline__ unsigned pair(float low, float high) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
"""
