"""A rank's part of a model: loading it, and telling it from that of another checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint.contents import Checkpoint
from ..checkpoint.read import inspect, resolve
from ..device.memory import check_memory
from .cut import share
from .group import Group
from .leader import LeadingModel
from .sharded import ShardedModel, config_of, read_part


def load_part(
    group: Group,
    path: str | Path,
    revision: str | None,
    lazy: bool,
    number: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[Any, Path]:
    """Load this rank's part, and say where the checkpoint lies here."""
    checkpoint = checkpoint or inspect(resolve(path, revision))
    config = config_of(checkpoint, group.size)
    held = share(checkpoint.tensors, group.size)
    if not lazy:
        needed = held.others if group.rank else held.weights
        check_memory(needed, f"one part in {group.size} of {path}")
    model: Any = (
        ShardedModel(config, group.comm) if group.rank else LeadingModel(config, group, number)
    )
    model.alike = group.alike
    return read_part(model, checkpoint, group.rank, group.size, lazy), checkpoint.folder


def digest(model: Any) -> str:
    """What tells two checkpoints apart: the weights that every rank holds whole, but large ones."""
    found = hashlib.sha256()
    parameters: Any = tree_flatten(model.parameters())
    for name, array in sorted(parameters, key=lambda item: item[0]):
        if "norm" in name:
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.asarray(array.astype(mx.float32)).tobytes())
        elif not name.startswith("lm_head"):
            found.update(f"{name} {array.dtype}".encode())
    return found.hexdigest()
