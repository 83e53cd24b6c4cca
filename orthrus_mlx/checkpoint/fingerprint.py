"""The fingerprint of a model: name, type and shape of each weight, which decide its kernels.

The fingerprint is that of the stored checkpoint, so `info` can look up measurements from headers
alone, and loading may rearrange weights (q, k and v in one matrix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .tensors import DTYPE_NAMES, TensorInfo

Fingerprint = tuple[str, ...]  # a line for each weight, sorted
Outline = tuple[Any, ...]


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        stored: the fingerprint of its checkpoint.
        loaded: the outline of its parameters, as loading left them.
    """

    stored: Fingerprint
    loaded: Outline


def fingerprint_of(model: Any) -> Fingerprint:
    """The fingerprint of a `Checkpoint`, or of the checkpoint that a model was loaded from.

    A model that was cast or quantized after loading, or never loaded, has the fingerprint of its
    parameters. A model that is not built of MLX modules has an empty one.
    """
    if not isinstance(model, nn.Module):
        return getattr(model, "fingerprint", ())
    origin = getattr(model, "origin", None)
    if origin is not None and origin.loaded == outline(model):
        return origin.stored
    return of_parameters(model)


def of_tensors(tensors: Mapping[str, TensorInfo]) -> Fingerprint:
    """The fingerprint of a checkpoint's tensors."""
    return tuple(
        sorted(f"{name} {DTYPE_NAMES[t.dtype]} {list(t.shape)}" for name, t in tensors.items())
    )


def of_parameters(model: nn.Module) -> Fingerprint:
    """The fingerprint of a model's parameters, written as `of_tensors` does."""
    weights: Any = tree_flatten(model.parameters())
    return tuple(
        sorted(
            f"{name} {str(a.dtype).removeprefix('mlx.core.')} {list(a.shape)}"
            for name, a in weights
        )
    )


def outline(model: nn.Module) -> Outline:
    """The names, types and shapes of a model's parameters, in the order in which they lie in it.

    It says whether they have changed, in a fraction of the time of a fingerprint: every request
    asks for that.
    """
    found: list[Any] = []
    _add_outline(model, found)
    return tuple(found)


def _add_outline(holder: Any, found: list[Any]) -> None:
    named = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for name, value in named:
        if isinstance(value, mx.array):
            found.append((name, value.dtype, value.shape))
        elif isinstance(value, (dict, list, tuple)):
            found.append(name)
            _add_outline(value, found)
            found.append(None)
