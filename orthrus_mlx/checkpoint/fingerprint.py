"""Which weights a model has, by name, type and shape: what the choice of kernels depends on.

The layout that counts is the checkpoint's, as stored. So `info` finds by headers alone what was
measured with the loaded model, and loading may rearrange weights (q, k and v in one matrix) as it
likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from .tensors import DTYPE_NAMES, TensorInfo

Layout = tuple[str, ...]  # a line for each weight, sorted


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        stored: the layout of its checkpoint.
        loaded: that of its parameters, as loading left them.
    """

    stored: Layout
    loaded: Layout


def layout_of(model: Any) -> Layout:
    """The layout of a `Checkpoint`, or of the checkpoint that a model was loaded from.

    A model that was cast or quantized since then, or that was never loaded, has the layout of its
    parameters; one that is not built of MLX modules has none.
    """
    if not isinstance(model, nn.Module):
        return getattr(model, "layout", ())
    now = of_parameters(model)
    origin = getattr(model, "origin", None)
    return origin.stored if origin is not None and origin.loaded == now else now


def of_tensors(tensors: Mapping[str, TensorInfo]) -> Layout:
    """The layout of a checkpoint's tensors."""
    return tuple(
        sorted(f"{name} {DTYPE_NAMES[t.dtype]} {list(t.shape)}" for name, t in tensors.items())
    )


def of_parameters(model: nn.Module) -> Layout:
    """The layout of a model's parameters, in the words of `of_tensors`."""
    weights: Any = tree_flatten(model.parameters())
    return tuple(
        sorted(
            f"{name} {str(a.dtype).removeprefix('mlx.core.')} {list(a.shape)}"
            for name, a in weights
        )
    )
