"""Write the trained checkpoint in the public layout, and prove that its base is unchanged."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.staging import staged_folder
from ..checkpoint.write import copy_files, files_to_copy, name_shards, write_index, write_json
from ..errors import OutputError, TrainingError, brief
from .base import Base, read_tensors
from .loss import DiffWeights


def digest(tensors: Iterable[tuple[str, mx.array]]) -> str:
    """The sha256 of names, types, shapes and bytes, in the order given."""
    sha = hashlib.sha256()
    for name, a in tensors:
        sha.update(f"{name} {a.dtype} {a.shape}\n".encode())
        sha.update(np.array(mx.contiguous(a).reshape(-1).view(mx.uint8)).data)
    return sha.hexdigest()


def base_digest(files: list[Path], names: list[str]) -> str:
    """The digest of the base tensors in these weight files."""
    tensors = read_tensors(files, names)
    # Popped one by one, so that no more than one tensor is in memory.
    return digest((name, tensors.pop(name)) for name in sorted(tensors))


def write_checkpoint(base: Base, view: DiffWeights, output: Path) -> str:
    """Write base and view to `output`, whole or not at all; return its base tensors' digest.

    Raises:
        OutputError: if the folder cannot be written.
        TrainingError: if a written base tensor differs from the base's.
    """
    before = base_digest(base.files, base.names)
    tensors = read_tensors(base.files, base.names)
    tensors |= {name: a.astype(base.stored) for name, a in view.items()}
    copied = files_to_copy(base.folder)
    needed = sum(a.nbytes for a in tensors.values()) + sum(path.stat().st_size for path in copied)
    with contextlib.suppress(OSError):
        output.rmdir()  # an empty folder is allowed
    with staged_folder(output, needed) as folder:
        files = _write_weights(tensors, folder)
        _write_config(base, folder)
        copy_files(copied, folder)
        after = base_digest(files, base.names)
        if after != before:
            raise TrainingError(
                f"The base tensors written to {output} differ from those of {base.folder} "
                f"(sha256 {after}, before {before}); nothing was kept. Is the disk sound?"
            )
    return after


def _write_weights(tensors: DiffWeights, folder: Path) -> list[Path]:
    """Write the tensors in name order, in shards, and free each shard once it is written."""
    size = sum(a.nbytes for a in tensors.values())
    parameters = sum(a.size for a in tensors.values())
    shards = name_shards(dict(sorted(tensors.items())))
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    for file, shard in shards.items():
        try:
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "pt"})
        except RuntimeError as e:  # MLX does not say why
            raise OutputError(f"{folder / file} could not be written: {brief(e)}.") from e
        for name in shard:
            del tensors[name]
        shard.clear()
    if len(shards) > 1:
        write_index(folder, weight_map, size, parameters)
    return [folder / file for file in shards]


def _write_config(base: Base, folder: Path) -> None:
    # The base's own code is not copied, so the config must not point to it.
    config = {name: value for name, value in base.config.raw.items() if name != "auto_map"}
    write_json(folder / "config.json", {**config, "architectures": ["OrthrusLM"]})
