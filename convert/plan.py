"""Plan which tensors a conversion writes, in what shape and into which file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint.config import ModelConfig, Quantization
from ..checkpoint.contents import Checkpoint
from ..checkpoint.tensors import DIFFUSION_FILE, TensorInfo
from ..checkpoint.write import name_shards
from ..errors import ConversionError
from ..model import Model, is_diffusion
from .options import DTYPES, Options
from .writer import TensorSpec


@dataclass(frozen=True)
class Step:
    """One source tensor and what is written for it: one tensor, or the parts of a packed one."""

    name: str
    source: TensorInfo
    dtype: str
    packing: Quantization | None
    outputs: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(spec.nbytes for spec in self.outputs)

    @property
    def parameters(self) -> int:
        """Number of parameters, unpacked."""
        return prod(self.source.shape)


@dataclass(frozen=True)
class PlannedFile:
    """One safetensors file of the output and the steps that fill it."""

    name: str
    steps: tuple[Step, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """Every tensor of the file."""
        return [spec for step in self.steps for spec in step.outputs]


def make_plan(checkpoint: Checkpoint, options: Options) -> list[PlannedFile]:
    """Lay out the output files: the AR view's shards, then the diffusion view's one file.

    Raises:
        ConversionError: for a source that is quantized already, or a group size that fits nothing.
    """
    if packed := [name for name in checkpoint.tensors if name.endswith(".scales")]:
        raise ConversionError(
            f"{checkpoint.folder} is quantized already ({len(packed)} packed tensors), and packing "
            "twice would lose quality. Convert from the original checkpoint; a folder that "
            "orthrus-mlx converted needs no second conversion."
        )
    steps = list(_steps(checkpoint, options))
    ar = [step for step in steps if not is_diffusion(step.name)]
    diffusion = [step for step in steps if is_diffusion(step.name)]
    _check_packs_something(ar, options.ar)
    _check_packs_something(diffusion, options.diffusion)

    shards = name_shards({step.name: step for step in ar})
    files = [PlannedFile(name, tuple(shard.values())) for name, shard in shards.items()]
    return [*files, PlannedFile(DIFFUSION_FILE, tuple(diffusion))]


def _steps(checkpoint: Checkpoint, options: Options) -> Iterator[Step]:
    inputs = quantizable(checkpoint.config)
    for name, source in checkpoint.tensors.items():
        path = name.removesuffix(".weight")
        dtype = source.dtype if options.dtype is None else DTYPES[options.dtype]
        packing = options.diffusion if is_diffusion(name) else options.ar
        # mlx-lm's rule: what can be packed and divides into groups is packed, embeddings included.
        if packing is not None and (path not in inputs or inputs[path] % packing.group_size):
            packing = None
        if packing is None:
            outputs = [TensorSpec(name, dtype, source.shape)]
        else:
            outputs = _packed(path, source.shape, dtype, packing)
        yield Step(name, source, dtype, packing, tuple(outputs))


def quantizable(config: ModelConfig) -> dict[str, int]:
    """Path and number of inputs of every module that MLX can quantize."""
    leaves: Any = tree_flatten(Model(config).leaf_modules(), is_leaf=nn.Module.is_module)
    return {
        path: module.weight.shape[-1] for path, module in leaves if hasattr(module, "to_quantized")
    }


def _packed(
    path: str, shape: tuple[int, ...], dtype: str, packing: Quantization
) -> list[TensorSpec]:
    rows, inputs = shape
    scales = (rows, inputs // packing.group_size)
    parts = [TensorSpec(f"{path}.weight", "U32", (rows, inputs * packing.bits // 32))]
    if packing.mode != "affine":
        return [*parts, TensorSpec(f"{path}.scales", "U8", scales)]
    return [
        *parts,
        TensorSpec(f"{path}.scales", dtype, scales),
        TensorSpec(f"{path}.biases", dtype, scales),
    ]


def _check_packs_something(steps: list[Step], packing: Quantization | None) -> None:
    if packing is not None and not any(step.packing for step in steps):
        raise ConversionError(
            f"No matrix of this checkpoint divides into groups of {packing.group_size} inputs, so "
            "there is nothing to quantize. Take a smaller q_group_size."
        )


def source_bytes(files: list[PlannedFile]) -> int:
    """Bytes to read."""
    return sum(step.source.nbytes for file in files for step in file.steps)


def output_bytes(files: list[PlannedFile]) -> int:
    """Bytes to write, without headers."""
    return sum(step.nbytes for file in files for step in file.steps)
