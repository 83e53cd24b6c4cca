"""Does a model fit? What it needs, beside what the device recommends and has."""

from __future__ import annotations

import os
import warnings

import mlx.core as mx

from ..errors import CheckpointError
from .backend import memory_bytes, recommended_bytes

CLOSE = 0.9  # of what is recommended: caches and activations come on top (mlx-lm warns there too)


class MemoryWarning(UserWarning):
    """A model that fits, but not within what its device recommends."""


def check_memory(needed: int, name: str) -> None:
    """Compare the weights of a model, in bytes, with the memory of the device.

    Says nothing where MLX computes on a CPU, or on a device that recommends no size.

    Raises:
        CheckpointError: if the weights alone are larger than all memory.
    """
    if fits(needed):
        return
    weights = f"The weights of {name} need {needed / 1e9:.1f} GB"
    advice = "Quantize them (orthrus-mlx convert -q), or take a smaller model."
    total = memory_bytes()
    if total and needed > total:
        raise CheckpointError(f"{weights}, and this machine has {total / 1e9:.1f} GB. {advice}")
    limit = f"this device recommends to use {recommended_bytes() / 1e9:.1f} GB at most"
    text = f"{weights}, and {limit}. It can become very slow. {advice}"
    warnings.warn(text, MemoryWarning, stacklevel=3)


def fits(needed: int) -> bool:
    """Whether so many bytes of weights are well within what the device recommends, if it does."""
    recommended = recommended_bytes()
    return not recommended or needed <= CLOSE * recommended


def memory_for_caches() -> int:
    """Bytes that KV caches may come to, beside what MLX's arrays take now.

    On a GPU `CLOSE` of what the device recommends, or has, is used in all; elsewhere half of the
    machine's memory.
    """
    limit = CLOSE * (recommended_bytes() or memory_bytes()) or 0.5 * machine_memory()
    return max(0, int(limit) - mx.get_active_memory())


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
