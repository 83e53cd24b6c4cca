"""What a checkpoint folder holds: its weight files, and whether they fit its config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .. import metal
from ..errors import (
    CheckpointNotFoundError,
    ConfigError,
    IncompleteCheckpointError,
    NotOrthrusError,
    UnsafeCheckpointError,
)
from ..files import check_inside
from .config import ModelConfig, read_json
from .fingerprint import Fingerprint, of_tensors
from .tensors import DIFFUSION_FILE, TensorInfo, check_tensors, expected_shapes, some

INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, checked against its own config without reading a weight.

    Attributes:
        folder: its folder.
        config: its shape.
        tensors: every tensor that the model takes, by name.
    """

    folder: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo]

    @property
    def files(self) -> list[Path]:
        """The weight files, in name order."""
        return sorted({info.file for info in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        """Bytes of all its weights."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def fingerprint(self) -> Fingerprint:
        """Name, type and shape of every tensor."""
        return of_tensors(self.tensors)

    @property
    def kernels(self) -> str | None:
        """What tells apart our own kernels that its model will run here; None for MLX's."""
        return metal.kernels_for(self)


def check(folder: Path, tensors: dict[str, TensorInfo]) -> Checkpoint:
    """Check that `folder`'s config and the headers' `tensors` fit together.

    Raises:
        CheckpointError: naming the file or tensors at fault.
    """
    config = read_config(folder, tensors)
    check_tensors(tensors, config, str(folder))
    wanted = expected_shapes(config, tensors)
    return Checkpoint(folder, config, {name: tensors[name] for name in wanted})


def read_config(folder: Path, tensors: dict[str, TensorInfo]) -> ModelConfig:
    """The config of a checkpoint; for one that is not Orthrus, an error that says what it is.

    Raises:
        NotOrthrusError: naming the groups of tensors that are missing.
        ConfigError: also for a plain config beside weights that do hold a diffusion view.
    """
    from ..model import DIFFUSION_GROUPS, is_diffusion

    try:
        return ModelConfig.from_folder(folder)
    except NotOrthrusError as e:
        if any(map(is_diffusion, tensors)):
            raise ConfigError(
                f"{folder / 'config.json'} names no block_size and mask_token_id, but the weights "
                "hold a diffusion view: config.json has been replaced. Restore the original."
            ) from e
        raise NotOrthrusError(
            f"{e} None of its {len(tensors)} tensors belongs to a diffusion view: every layer "
            f"lacks {', '.join(DIFFUSION_GROUPS)}."
        ) from e


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: those of its index, or all by name.

    Raises:
        UnsafeCheckpointError: for pickle weights, or an index that leaves the folder.
        IncompleteCheckpointError: for a missing file.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"There is no folder {folder}.")
    try:
        present = frozenset(path.name for path in folder.iterdir())
    except OSError as e:
        raise CheckpointNotFoundError(f"{folder} cannot be read: {e.strerror}.") from e
    files = [folder / name for name in weight_names(folder, present)]
    for file in files:
        check_inside(file, folder)
    return files


def weight_names(folder: Path, present: frozenset[str]) -> list[str]:
    """The weight files among the names `present`; `folder` holds the index, if there is one.

    Raises:
        CheckpointError: as `weight_files` does.
    """
    index = folder / INDEX_FILE
    if INDEX_FILE in present:
        names, named_by = _indexed_files(index), str(index)
    else:
        names = sorted(n for n in present if n.startswith("model") and n.endswith(".safetensors"))
        names, named_by = _numbered_files(names), f"The numbering of the shards in {folder}"
    if not names:
        pickles = sorted(n for n in present if n.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")))
        if pickles:
            raise UnsafeCheckpointError(
                f"{folder} holds pickle weights ({', '.join(pickles[:3])}), which can run code "
                "when opened and are refused. Use a safetensors version of the checkpoint."
            )
        raise IncompleteCheckpointError(
            f"{folder} holds no model*.safetensors{_partial_download(folder)}. A checkpoint folder "
            "holds config.json, tokenizer files and model*.safetensors."
        )
    if missing := [name for name in names if name not in present]:
        raise IncompleteCheckpointError(
            f"{named_by} calls for {len(missing)} file(s) that are not there: {some(missing)}"
            f"{_partial_download(folder)}. Download them again."
        )
    if DIFFUSION_FILE in present and DIFFUSION_FILE not in names:
        names.append(DIFFUSION_FILE)
    return names


def _numbered_files(names: list[str]) -> list[str]:
    """`names`, and every shard that the numbering -00001-of-0000N of one of them calls for."""
    wanted = set(names)
    for name in names:
        if match := re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(\.safetensors)", name):
            start, _, count, end = match.groups()
            wanted |= {f"{start}{i + 1:05d}-of-{count}{end}" for i in range(min(int(count), 10000))}
    return sorted(wanted)


def _indexed_files(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise IncompleteCheckpointError(f"{index} has no usable weight_map. Download it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UnsafeCheckpointError(
                f"{index} names {name!r}; only safetensors files beside it are read."
            )
    return names


def _partial_download(folder: Path) -> str:
    """A hint if the folder has traces of an unfinished download, else no text.

    They lie in the folder itself, or where `hf download --local-dir` keeps them.
    """
    traces = [
        path
        for place in (folder, folder / ".cache" / "huggingface" / "download")
        if place.is_dir()
        for path in place.iterdir()
        if path.suffix in (".incomplete", ".part", ".crdownload")
    ]
    return f" (a download seems unfinished: {traces[0].name})" if traces else ""
