"""Which tensors a checkpoint holds, and which its config calls for, from the headers alone."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import IncompleteCheckpointError, NotOrthrusError, TensorError, brief
from ..files import check_tensor_file, open_file
from .config import ModelConfig

DIFFUSION_FILE = "orthrus_diff.safetensors"
LFS_POINTER = b"version https://git-lfs"
FLOATS = ("BF16", "F16", "F32")
MX_DTYPES = {  # all that a checkpoint may hold, by safetensors' names
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "U32": mx.uint32,
    "U8": mx.uint8,
}
ITEM_SIZES = {name: dtype.size for name, dtype in MX_DTYPES.items()}  # bytes
DTYPE_NAMES = {name: str(dtype).removeprefix("mlx.core.") for name, dtype in MX_DTYPES.items()}


class TensorInfo(NamedTuple):
    """One tensor as its file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """Name, dtype, shape and file of every tensor, from the headers alone.

    Raises:
        IncompleteCheckpointError: for a truncated or corrupt file.
        TensorError: for a tensor that two files hold.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            check_tensor_file(file, IncompleteCheckpointError)
            with safe_open(file, framework="numpy") as content:
                for name in content.keys():  # noqa: SIM118 (not a mapping)
                    part = content.get_slice(name)
                    info = TensorInfo(part.get_dtype(), tuple(part.get_shape()), file)
                    add_tensor(tensors, name, info)
        except (SafetensorError, OSError) as e:
            pointer = _is_lfs_pointer(file)
            hint = "it is a Git LFS pointer; run `git lfs pull`" if pointer else "download it again"
            raise IncompleteCheckpointError(
                f"{file} is not a whole safetensors file ({brief(e)}): {hint}."
            ) from e
    return tensors


def add_tensor(tensors: dict[str, TensorInfo], name: str, info: TensorInfo) -> None:
    """Add a tensor to `tensors`.

    Raises:
        TensorError: if an earlier file holds it too.
    """
    if name in tensors:
        raise TensorError(
            f"Tensor {name} is in both {tensors[name].file.name} and {info.file.name} of "
            f"{info.file.parent}. Remove the file that does not belong there."
        )
    tensors[name] = info


def _is_lfs_pointer(file: Path) -> bool:
    with open_file(file, IncompleteCheckpointError) as content:
        return content.read(40).startswith(LFS_POINTER)


def check_tensors(tensors: dict[str, TensorInfo], config: ModelConfig, where: str) -> None:
    """Compare the tensors with those that the config calls for.

    Raises:
        NotOrthrusError: if the whole diffusion view is absent.
        TensorError: naming tensors that are missing, unexpected, or of the wrong shape or type.
    """
    from ..model import is_diffusion, sanitize

    found = sanitize(tensors, config)
    expected = expected_shapes(config, found)
    missing = sorted(expected.keys() - found.keys())
    if missing and all(map(is_diffusion, missing)) and not any(map(is_diffusion, found)):
        groups = sorted({name.split(".")[-2] for name in missing})
        raise NotOrthrusError(
            f"{where} has no diffusion view: every layer lacks {', '.join(groups)}. It seems to be "
            f"a plain Qwen3 checkpoint of {config.num_hidden_layers} layers, or a converted one "
            f"whose {DIFFUSION_FILE} was left behind."
        )
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensor(s) missing: {some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"{len(unexpected)} unexpected tensor(s): {some(unexpected)}")
    for name in sorted(expected.keys() & found.keys()):
        shape, dtypes = expected[name]
        if found[name].shape != shape:
            problems.append(
                f"{name} in {found[name].file.name} has shape {list(found[name].shape)}, and "
                f"config.json calls for {list(shape)}"
            )
        if found[name].dtype not in dtypes:
            problems.append(
                f"{name} in {found[name].file.name} is of type {found[name].dtype}; expected "
                f"{' or '.join(dtypes)}"
            )
    if problems:
        raise TensorError(f"{where} does not fit its config.json. " + "; ".join(problems[:6]) + ".")


def expected_shapes(
    config: ModelConfig, tensors: dict[str, TensorInfo]
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape and allowed dtypes of every tensor of a model, packed where `tensors` is packed."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for name, shape in plain_shapes(config).items():
        path = name.removesuffix(".weight")
        packed = len(shape) == 2 and f"{path}.scales" in tensors and f"{path}.weight" in tensors
        if not packed:
            expected[name] = (shape, FLOATS)
            continue
        pack = packing(path, shape[-1], tensors)
        scale_types = FLOATS if pack["mode"] == "affine" else ("U8",)
        rows, groups = shape[:-1], shape[-1] // pack["group_size"]
        expected[name] = ((*rows, shape[-1] * pack["bits"] // 32), ("U32",))
        expected[f"{path}.scales"] = ((*rows, groups), scale_types)
        if pack["mode"] == "affine":
            expected[f"{path}.biases"] = ((*rows, groups), FLOATS)
    return expected


def plain_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the unquantized model (lazy: nothing is allocated)."""
    from ..model import Model

    flat: Any = tree_flatten(Model(config).parameters())
    return {name: tuple(array.shape) for name, array in flat}


def packing(path: str, in_dims: int, tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    """How the weight at `path` was quantized, read off the shapes of its parts.

    The same inference as mlx-lm's `infer_quant_config`, from headers: affine keeps its scales as
    floats; each other mode has one pair of bits and group size.

    Raises:
        TensorError: if no quantization gives these shapes.
    """
    weight, scales = tensors[f"{path}.weight"], tensors[f"{path}.scales"]
    groups = scales.shape[-1] if scales.shape else 0
    columns = weight.shape[-1] if weight.shape else 0
    group_size, bits = in_dims // max(1, groups), columns * 32 // in_dims
    if scales.dtype in FLOATS and bits in (2, 3, 4, 5, 6, 8) and group_size in (32, 64, 128):
        return {"group_size": group_size, "bits": bits, "mode": "affine"}
    modes = {(16, 4): "nvfp4", (32, 4): "mxfp4", (32, 8): "mxfp8"}
    if scales.dtype == "U8" and (group_size, bits) in modes:
        return {"group_size": group_size, "bits": bits, "mode": modes[group_size, bits]}
    raise TensorError(
        f"{path} in {weight.file.name} is packed in a way MLX does not know: weight "
        f"{list(weight.shape)} {weight.dtype}, scales {list(scales.shape)} {scales.dtype}, for "
        f"{in_dims} inputs."
    )


def some(names: list[str], most: int = 4) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
