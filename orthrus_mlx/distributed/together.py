"""Load a model over all ranks, each its own part at the same time."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint.contents import Checkpoint
from ..checkpoint.read import inspect, load_tokenizer, resolve
from ..device.memory import check_memory
from ..errors import DistributedError
from .alone import better_alone
from .cut import share
from .group import Group, join
from .leader import LeadingModel
from .sharded import ShardedModel, config_of, read_part


def load_together(
    path: str | Path, revision: str | None, lazy: bool, adapter: bool
) -> tuple[Any, Any] | None:
    """What `orthrus_mlx.load` returns on rank 0; the other ranks follow, and never return.

    None where this process is to load the whole model: on its own, or as one machine is faster.

    Raises:
        DistributedError: if the model cannot be cut so often, or another rank cannot load it.
    """
    group = join()
    if group is None or not group.open:
        return None
    if group.rank:
        from .follower import follow

        follow(group)
    if adapter:
        raise DistributedError(
            "An adapter changes the weights of one machine only. Fuse it into the model first "
            "(mlx_lm.fuse), or start the command without mlx.launch."
        )
    checkpoint = inspect(resolve(path, revision))
    config_of(checkpoint, group.size)  # before the others read anything
    if better_alone(checkpoint, group):
        group.leave()
        return None
    number, group.models = group.models, group.models + 1
    group.tell(
        {
            "op": "load",
            "path": str(path),
            "revision": revision,
            "lazy": lazy,
            "number": number,
        }
    )
    model, folder = load_part(group, path, revision, lazy, number, checkpoint)
    for link, answer in zip(group.links, group.answers(), strict=True):
        if error := answer.get("error"):
            raise DistributedError(f"Rank {link.rank} on {link.name} cannot load it: {error}")
        if answer["digest"] != digest(model):
            raise DistributedError(
                f"Rank {link.rank} on {link.name} has another checkpoint at {path}. Copy the same "
                "folder to all machines, or name the revision."
            )
    weakref.finalize(model, _unload, group, number)
    model.tokenizer = load_tokenizer(folder)
    return model, model.tokenizer


def _unload(group: Group, number: int) -> None:
    """Have the other ranks forget a model that is gone here."""
    if group.open:
        group.tell({"op": "unload", "model": number})


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
