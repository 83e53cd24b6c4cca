"""Load the base: a plain Qwen3, or an Orthrus checkpoint to train further, as a dual-view model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.config import MODEL_TYPES, ModelConfig, check_architecture, is_orthrus, read_json
from ..checkpoint.contents import weight_files
from ..checkpoint.read import explained, load_tokenizer, resolve
from ..checkpoint.tensors import MX_DTYPES, TensorInfo, check_tensors, plain_shapes, read_headers
from ..errors import ConfigError, TrainingError
from ..model import DIFFUSION_GROUPS, Model, is_diffusion, sanitize
from .options import TrainOptions

DEFAULT_BLOCK_SIZE = 32


@dataclass(frozen=True)
class Base:
    """A base checkpoint in memory.

    Attributes:
        folder: the folder with its files.
        config: its shape, with the block size and mask id of the view under training.
        files: its weight files.
        names: its own tensors, without those of a diffusion view, in name order.
        stored: the type that its weights are stored in.
        dtype: the type to compute in.
        model: the dual-view model, in `dtype`; every weight is frozen.
        tokenizer: mlx-lm's `TokenizerWrapper`.
    """

    folder: Path
    config: ModelConfig
    files: list[Path]
    names: list[str]
    stored: mx.Dtype
    dtype: mx.Dtype
    model: Model
    tokenizer: Any


def load_base(options: TrainOptions) -> Base:
    """Load `options.model`; a plain Qwen3 gets a view that starts as a copy of its own attention.

    Raises:
        CheckpointError: saying what is wrong with the checkpoint.
        TrainingError: if it is valid but cannot be trained.
    """
    folder = resolve(options.model, options.revision)
    with explained(folder):
        files = weight_files(folder)
        raw = read_json(folder / "config.json")
        found = read_headers(files)
    has_view = any(map(is_diffusion, found))
    # 1. Check that the files hold a base, before any weight is read.
    _check_kind(raw, found, has_view, folder)
    block_size = options.block_size or raw.get("block_size") or DEFAULT_BLOCK_SIZE
    config = _config(raw, folder, block_size, raw.get("mask_token_id") or 0)
    check_tensors(found if has_view else _with_copies(found), config, str(folder))
    tokenizer = load_tokenizer(folder)
    mask = _mask_token_id(options, config, tokenizer, folder, has_view)
    config = _config(raw, folder, block_size, mask)

    # 2. Build the model.
    names = sorted(sanitize({n: found[n] for n in found if not is_diffusion(n)}, config))
    stored = _stored_dtype([found[name] for name in names])
    # float16 has too little range for gradients.
    default = mx.float32 if stored == mx.float16 else stored
    dtype = getattr(mx, options.dtype) if options.dtype else default
    weights = read_tensors(files, [*names, *filter(is_diffusion, found)])
    if not has_view:
        weights |= {name: weights[copied_from(name)] for name in view_names(config)}
    model = Model(config)
    model.load_weights([(name, a.astype(dtype)) for name, a in weights.items()], strict=True)
    model.freeze()
    mx.eval(model.parameters())
    return Base(folder, config, files, names, stored, dtype, model, tokenizer)


def _check_kind(
    raw: dict[str, Any], found: dict[str, TensorInfo], has_view: bool, folder: Path
) -> None:
    check_architecture(raw, str(folder / "config.json"))
    if raw["model_type"] not in MODEL_TYPES:
        raise ConfigError(
            f"{folder / 'config.json'}: model_type is {raw['model_type']!r}; a diffusion view "
            "is trained for a Qwen3 checkpoint, such as Qwen/Qwen3-0.6B."
        )
    quantized = raw.get("quantization") or raw.get("quantization_config")
    if quantized or any(name.endswith(".scales") for name in found):
        raise TrainingError(
            f"{folder} is quantized, and a view is trained on full weights: the frozen ones are "
            "copied into the result bit for bit. Train on the unquantized checkpoint, then "
            "quantize the result with `orthrus-mlx convert -q`."
        )
    if has_view and not is_orthrus(raw):
        raise ConfigError(
            f"{folder / 'config.json'} names no block_size and mask_token_id, but the weights hold "
            "a diffusion view: config.json has been replaced. Restore the original."
        )


def _config(raw: dict[str, Any], folder: Path, block_size: int, mask: int) -> ModelConfig:
    merged = {**raw, "block_size": block_size, "mask_token_id": mask}
    return ModelConfig.from_dict(merged, str(folder / "config.json"))


def _mask_token_id(
    options: TrainOptions, config: ModelConfig, tokenizer: Any, folder: Path, has_view: bool
) -> int:
    """The id asked for, else the checkpoint's, else the first that the tokenizer leaves unused."""
    vocab = config.vocab_size
    if options.mask_token_id is not None:
        if options.mask_token_id >= vocab:
            raise TrainingError(
                f"mask_token_id is {options.mask_token_id}; the ids of {folder} end at {vocab - 1}."
            )
        return options.mask_token_id
    if has_view:
        return config.mask_token_id
    first_free = max(tokenizer.get_vocab().values(), default=-1) + 1
    if first_free >= vocab:
        raise TrainingError(
            f"The tokenizer of {folder} uses all {vocab} ids of the vocabulary, so none is left to "
            "mark a token that is to be drafted. Name one that your texts never contain: "
            "--mask-token-id N."
        )
    return first_free


def read_tensors(files: list[Path], names: list[str]) -> dict[str, mx.array]:
    """The named tensors, left on disk until they are used."""
    wanted = set(names)
    tensors: dict[str, mx.array] = {}
    for file in files:
        content = mx.load(str(file))
        assert isinstance(content, dict)
        tensors |= {name: a for name, a in content.items() if name in wanted}
    return tensors


def copied_from(name: str) -> str:
    """The AR tensor that the diffusion tensor `name` starts as a copy of."""
    return name.replace("_diff.", ".")


def view_names(config: ModelConfig) -> list[str]:
    """The tensors of the diffusion view, in name order."""
    return sorted(name for name in plain_shapes(config) if is_diffusion(name))


def _with_copies(found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The headers, and those of the copies that the diffusion view starts from."""
    copies = {
        name.replace(copied_from(group), group): info
        for name, info in found.items()
        for group in (f".{group}." for group in DIFFUSION_GROUPS)
        if copied_from(group) in name
    }
    return {**found, **copies}


def _stored_dtype(infos: list[TensorInfo]) -> mx.Dtype:
    """The type that most of the weights are stored in."""
    kinds = [info.dtype for info in infos]
    return MX_DTYPES[max(sorted(set(kinds)), key=kinds.count)]
