"""Load the base: a plain Qwen3, or an Orthrus checkpoint to train further, as a dual-view model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..checkpoint import load_tokenizer, resolve, weight_files
from ..config import ModelConfig, read_json
from ..errors import ConfigError, TrainingError
from ..model import DIFFUSION_GROUPS, Model, is_diffusion, sanitize
from ..tensors import TensorInfo, check_tensors, plain_shapes, read_headers
from .options import TrainOptions

DEFAULT_BLOCK_SIZE = 32
MLX_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}


@dataclass(frozen=True)
class Base:
    """A base checkpoint in memory.

    Attributes:
        folder: where its files lie.
        config: its shape, with the block size and mask id of the view under training.
        files: its weight files.
        names: its own tensors, without those of a diffusion view, in name order.
        has_view: whether it came with a diffusion view.
        stored: the type that its weights are stored in.
        dtype: the type to compute in.
        model: the dual-view model, in `dtype`; every weight is frozen.
        tokenizer: mlx-lm's `TokenizerWrapper`.
    """

    folder: Path
    config: ModelConfig
    files: list[Path]
    names: list[str]
    has_view: bool
    stored: mx.Dtype
    dtype: mx.Dtype
    model: Model
    tokenizer: Any


def load_base(options: TrainOptions) -> Base:
    """Load `options.model`; a plain Qwen3 gets a view that starts as a copy of its own attention.

    Raises:
        CheckpointError: saying what is wrong with the checkpoint.
        TrainingError: for one that is sound but cannot be trained.
    """
    folder = resolve(options.model, options.revision)
    files = weight_files(folder)
    raw = read_json(folder / "config.json")
    found = read_headers(files)
    if raw.get("quantization") or any(name.endswith(".scales") for name in found):
        raise TrainingError(
            f"{folder} is quantized, and a view is trained on full weights: the frozen ones are "
            "copied into the result bit for bit. Train on the unquantized checkpoint, then "
            "quantize the result with `orthrus-mlx convert -q`."
        )
    tokenizer = load_tokenizer(folder)
    has_view = any(map(is_diffusion, found))
    if has_view and (raw.get("block_size") is None or raw.get("mask_token_id") is None):
        raise ConfigError(
            f"{folder / 'config.json'} names no block_size and mask_token_id, but the weights hold "
            "a diffusion view: config.json has been replaced. Restore the original."
        )
    config = view_config(raw, options, tokenizer, folder)
    check_tensors(found if has_view else _with_copies(found), config, str(folder))
    names = sorted(sanitize({n: found[n] for n in found if not is_diffusion(n)}, config))
    stored = _stored_dtype([found[name] for name in names])
    # float16 has too little range for gradients.
    default = mx.float32 if stored == mx.float16 else stored
    dtype = getattr(mx, options.dtype) if options.dtype else default

    weights = read_tensors(files, [*names, *filter(is_diffusion, found)])
    model = Model(config)
    for name, _ in tree_flatten(model.parameters()):
        if is_diffusion(name) and not has_view:
            weights[name] = weights[copied_from(name)]
    model.load_weights([(name, a.astype(dtype)) for name, a in weights.items()], strict=True)
    model.freeze()
    model.eval()
    mx.eval(model.parameters())
    return Base(
        folder, config, files, names, has_view, stored, dtype, model=model, tokenizer=tokenizer
    )


def view_config(
    raw: dict[str, Any], options: TrainOptions, tokenizer: Any, folder: Path
) -> ModelConfig:
    """The checked config of the dual-view model to be.

    Raises:
        ConfigError: for an unsupported base.
        TrainingError: if the vocabulary has no id left to stand for "to be drafted".
    """
    block_size = options.block_size or raw.get("block_size") or DEFAULT_BLOCK_SIZE
    mask = options.mask_token_id
    mask = raw.get("mask_token_id") if mask is None else mask
    vocab = raw.get("vocab_size")
    if mask is None:
        used = set(tokenizer.get_vocab().values())
        first_free = max(used, default=-1) + 1
        if not isinstance(vocab, int) or first_free >= vocab:
            raise TrainingError(
                f"The tokenizer of {folder} uses all {vocab} ids of the vocabulary, so none is "
                "left to mark a token that is to be drafted. Name one that your texts never "
                "contain: --mask-token-id N."
            )
        mask = first_free
    elif isinstance(vocab, int) and mask >= vocab:
        raise TrainingError(f"mask_token_id is {mask}; the ids of {folder} end at {vocab - 1}.")
    merged = {**raw, "block_size": block_size, "mask_token_id": mask}
    try:
        return ModelConfig.from_dict(merged, str(folder / "config.json"))
    except ConfigError as e:
        if raw.get("model_type") == "qwen3":
            raise
        raise ConfigError(f"{e} Give a Qwen3 checkpoint, such as Qwen/Qwen3-0.6B.") from None


def read_tensors(files: list[Path], names: list[str]) -> dict[str, mx.array]:
    """The named tensors, left on disk until they are used."""
    wanted, tensors = set(names), {}
    for file in files:
        content = mx.load(str(file))
        assert isinstance(content, dict)
        tensors |= {name: a for name, a in content.items() if name in wanted}
    return tensors


def copied_from(name: str) -> str:
    """The tensor of the AR view that a tensor of the diffusion view starts as a copy of."""
    return name.replace("_diff.", ".")


def view_names(config: ModelConfig) -> list[str]:
    """The tensors of the diffusion view, in name order."""
    return sorted(name for name in plain_shapes(config) if is_diffusion(name))


def _with_copies(found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The headers as they would read with the starting copies beside their sources."""
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
    return MLX_DTYPES[max(sorted(set(kinds)), key=kinds.count)]
