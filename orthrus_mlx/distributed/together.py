"""Load a model over all ranks, each its own part at the same time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from ..checkpoint.read import inspect, load_tokenizer, resolve
from ..errors import DistributedError
from .alone import better_alone
from .follower import follow
from .group import Group, join
from .part import digest, load_part
from .sharded import config_of


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
            "alike": group.alike,
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
