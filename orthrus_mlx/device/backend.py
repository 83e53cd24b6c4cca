"""What MLX says of the device that it computes on: one door for calls that differ by backend.

MLX moved its Metal calls from `mx.metal` to its top level, the keys of `device_info` differ by
backend and version, and a limit on wired memory exists on Metal alone. No caller outside asks for
`mx.metal`: each function here has an answer on every backend.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

METAL, CUDA, CPU = "Metal", "CUDA", "CPU"
DEVICE = "ORTHRUS_MLX_DEVICE"  # an environment variable; "cpu" leaves the GPU alone

# By what they tell, the keys of `device_info`, older ones last.
MEMORY = ("memory_size", "total_memory")
RECOMMENDED = ("max_recommended_working_set_size",)


def choose_device() -> None:
    """Compute on the CPU where the environment asks for it, as where a GPU cannot be trusted."""
    if os.environ.get(DEVICE, "").lower() == "cpu":
        mx.set_default_device(mx.cpu)


def backend() -> str:
    """The backend that MLX computes with: "Metal", "CUDA" or "CPU"."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return CPU
    return CUDA if _has("cuda") else METAL


def _has(name: str) -> bool:
    """Whether MLX was built with this GPU backend, and finds a device for it."""
    module = getattr(mx, name, None)
    return module is not None and bool(module.is_available())


def device_info() -> Mapping[str, Any]:
    """What MLX tells of the device that it computes on; empty where it tells nothing."""
    for module in (mx, getattr(mx, "metal", None)):
        ask = getattr(module, "device_info", None)
        with contextlib.suppress(RuntimeError, ValueError, TypeError):
            if ask is not None and (info := dict(ask())):
                return info
    return {}


def device_name() -> str:
    """The name of the chip or processor that MLX computes on."""
    name = str(device_info().get("device_name") or "").strip()
    return name or platform.processor() or platform.machine() or "unknown"


def memory_bytes() -> int:
    """Bytes of the GPU's memory, which on a Mac is all memory; 0 where that is not known."""
    return _bytes(MEMORY)


def recommended_bytes() -> int:
    """Bytes that the GPU recommends to use at most; 0 where it recommends nothing."""
    return _bytes(RECOMMENDED)


def _bytes(keys: tuple[str, ...]) -> int:
    if backend() == CPU:
        return 0
    info = device_info()
    return next((int(info[key]) for key in keys if info.get(key)), 0)


@contextmanager
def wired() -> Iterator[None]:
    """Keep as much memory resident as the device recommends, as mlx-lm does while it generates.

    Before macOS 15 there is no such limit. Then, and on other backends, nothing changes.
    """
    limit, before = recommended_bytes(), None
    if limit and hasattr(mx, "set_wired_limit"):
        with contextlib.suppress(RuntimeError, ValueError):
            before = mx.set_wired_limit(limit)
    try:
        yield
    finally:
        if before is not None:
            mx.synchronize()
            mx.set_wired_limit(before)


choose_device()  # here, as all that computes imports this
