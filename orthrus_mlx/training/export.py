"""Write the trained checkpoint in the public layout, and prove that its base is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoint.hub import PATTERNS
from ..checkpoint.load import INDEX_FILE
from ..errors import OutputError, TrainingError
from .base import Base, read_tensors
from .loss import View

SHARD_BYTES = 5 << 30  # as Hugging Face and mlx-lm do


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


def write_checkpoint(base: Base, view: View, output: Path) -> str:
    """Write base and view to `output`, whole or not at all; the digest of its base tensors.

    Raises:
        OutputError: if the folder cannot be written.
        TrainingError: if a base tensor came out different from what went in.
    """
    before = base_digest(base.files, base.names)
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = _write_weights(base, view, partial)
        _write_config(base, partial)
        _copy_rest(base.folder, partial)
        after = base_digest(files, base.names)
        if after != before:
            raise TrainingError(
                f"The base tensors written to {output} differ from those of {base.folder} "
                f"(sha256 {after}, before {before}); nothing was kept. Is the disk sound?"
            )
        partial.rename(output)
    except OSError as e:
        raise OutputError(f"The checkpoint cannot be written to {output}: {e}.") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return after


def _write_weights(base: Base, view: View, folder: Path) -> list[Path]:
    tensors = read_tensors(base.files, base.names)
    tensors |= {name: a.astype(base.stored) for name, a in view.items()}
    total = sum(a.nbytes for a in tensors.values())
    shards = _shards(tensors)
    weight_map: dict[str, str] = {}
    files = []
    for number, names in enumerate(shards, start=1):
        part = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = folder / (part if len(shards) > 1 else "model.safetensors")
        shard = {name: tensors.pop(name) for name in names}
        mx.save_safetensors(str(file), shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file.name)
        files.append(file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    if len(shards) > 1:
        _write_json(folder / INDEX_FILE, index)
    return files


def _shards(tensors: View) -> list[list[str]]:
    """Names in order, cut so that no file passes the size limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensors[name].nbytes
    return shards


def _write_config(base: Base, folder: Path) -> None:
    # Code of the base's own is not copied, so nothing may point to it.
    config = {name: value for name, value in base.config.raw.items() if name != "auto_map"}
    _write_json(folder / "config.json", {**config, "architectures": ["OrthrusLM"]})


def _copy_rest(source: Path, folder: Path) -> None:
    """Tokenizer, template, generation settings, terms."""
    for name in PATTERNS:
        is_weights = ".safetensors" in name
        if name != "config.json" and not is_weights and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
