"""Write the files of a checkpoint folder, for `convert` and `train`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from ..files import open_part
from .contents import INDEX_FILE
from .hub import TERMS_FILES, TOKENIZER_FILES

MAX_SHARD_GB = 5  # in fact GiB, as in mlx-lm
COPIED_FILES = ("generation_config.json", *TOKENIZER_FILES, *TERMS_FILES)

T = TypeVar("T")  # anything with `nbytes`


def name_shards(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The tensors by file: in order, cut into shards of at most `MAX_SHARD_GB`."""
    from mlx_lm.utils import make_shards

    shards = make_shards(dict(tensors), MAX_SHARD_GB)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def write_index(folder: Path, weight_map: Mapping[str, str], size: int, parameters: int) -> None:
    """Write the index JSON: each tensor's file, total bytes and total parameters."""
    metadata = {"total_size": size, "total_parameters": parameters}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX_FILE, index)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, its fields sorted as mlx-lm sorts them."""
    path.write_text(json.dumps(dict(sorted(content.items())), indent=4) + "\n", encoding="utf-8")


def files_to_copy(source: Path, leave_out: Iterable[str] = ()) -> list[Path]:
    """The tokenizer, generation settings, card and licence that `source` has.

    Raises:
        CheckpointError: for one that must not be copied, such as a link that leaves the folder.
    """
    wanted = [source / name for name in COPIED_FILES if name not in leave_out]
    there = [path for path in wanted if os.path.lexists(path)]
    for path in there:
        open_part(path, CheckpointError).close()
    return there


def copy_files(paths: Iterable[Path], folder: Path) -> None:
    """Copy files of a checkpoint, without their permissions."""
    for path in paths:
        with open_part(path, CheckpointError) as file, (folder / path.name).open("wb") as copy:
            shutil.copyfileobj(file, copy)
