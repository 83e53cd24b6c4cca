"""The fingerprint of a model: name, type and shape of each weight, which decide its kernels.

The fingerprint is that of the stored checkpoint, so `info` can look up measurements from headers
alone, and loading may rearrange weights (q, k and v in one matrix).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from .tensors import DTYPE_NAMES, TensorInfo

Fingerprint = tuple[str, ...]  # a line for each weight, sorted


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        stored: the fingerprint of its checkpoint.
        loaded: the fingerprint of its parameters, as loading left them.
    """

    stored: Fingerprint
    loaded: Fingerprint


def fingerprint_of(model: Any) -> Fingerprint:
    """The fingerprint of a `Checkpoint`, or of the checkpoint that a model was loaded from.

    A model that was cast or quantized after loading, or never loaded, has the fingerprint of its
    parameters. A model that is not built of MLX modules has an empty one.
    """
    if not isinstance(model, nn.Module):
        return getattr(model, "fingerprint", ())
    now = of_parameters(model)
    origin = getattr(model, "origin", None)
    return origin.stored if origin is not None and origin.loaded == now else now


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
