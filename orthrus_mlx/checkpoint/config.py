"""`config.json` read and checked: everything the model needs to know about its own shape.

Field names are those of Qwen3's `config.json`, so a `ModelConfig` also serves as `args` for code
written against mlx-lm's models.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from .. import files
from ..errors import ConfigError, IncompleteCheckpointError, NotOrthrusError

# The rope types that mlx-lm's `initialize_rope` builds and that depend on nothing but the position.
# ("dynamic" changes its base with the context length, which would change keys already cached.)
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
ROPE_REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
# Numbers that rope types read, each with its exclusive lower bound.
ROPE_NUMBERS = {
    "factor": 0,
    "low_freq_factor": 0,
    "high_freq_factor": 0,
    "original_max_position_embeddings": 1,
    "beta_fast": 0,
    "beta_slow": 0,
    "mscale": -1,
    "mscale_all_dim": -1,
}
MODEL_TYPES = ("qwen3", "orthrus")  # two names of one architecture
# Types with a recurrent state, which no KV cache rolls back: qwen3_next, qwen3_5, qwen3_5_moe...
HYBRID = re.compile(r"qwen3_(next|[5-9])")
QUANTIZATION_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")

# Upper bounds: far above every real model, far below what would exhaust memory.
LIMITS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 11,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
    "block_size": 1 << 10,
}


@dataclass(frozen=True)
class Quantization:
    """The quantization record of `config.json`, named as in `mx.quantize`.

    It is the checkpoint's default; how each tensor was packed is read off its shape.
    """

    group_size: int
    bits: int
    mode: str = "affine"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a dual-view model.

    `block_size` counts the rows of a draft: the anchor and `block_size - 1` masks, hence
    `block_size - 1` usable drafts.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    tie_word_embeddings: bool
    block_size: int
    mask_token_id: int
    eos_token_ids: tuple[int, ...] = ()
    quantization: Quantization | None = None
    model_type: str = "qwen3"
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "config.json") -> ModelConfig:
        """Check `raw`, the content of `where`, field by field.

        Raises:
            ConfigError: naming the field and what was expected of it.
            NotOrthrusError: for a config without `block_size` and `mask_token_id`.
        """
        read = _Reader(raw, where)
        check_architecture(raw, where)
        model_type = raw["model_type"]
        if not is_orthrus(raw):
            plain = model_type in MODEL_TYPES
            raise NotOrthrusError(
                f"{where} names no block_size and mask_token_id: this is a plain {model_type} "
                "checkpoint without a diffusion view. Use mlx-lm for it, "
                + ("give it a view with `orthrus-mlx train`, " if plain else "")
                + "or load an Orthrus checkpoint such as chiennv/Orthrus-Qwen3-1.7B."
            )
        if model_type not in MODEL_TYPES:
            raise ConfigError(
                f"{where}: model_type is {model_type!r}; Orthrus checkpoints are built on 'qwen3'."
            )
        heads = read.size("num_attention_heads")
        kv_heads = read.size("num_key_value_heads", default=heads)
        hidden = read.size("hidden_size")
        if heads % kv_heads:
            raise ConfigError(
                f"{where}: num_attention_heads ({heads}) is not a multiple of "
                f"num_key_value_heads ({kv_heads})."
            )
        head_dim = read.size("head_dim", default=max(1, hidden // heads))
        if head_dim % 2:
            raise ConfigError(f"{where}: head_dim ({head_dim}) must be even for rotary embeddings.")
        read.refuse("attention_bias", "biases in the attention projections")
        read.refuse("use_sliding_window", "sliding-window attention")
        activation = raw.get("hidden_act", "silu")
        if activation != "silu":
            raise ConfigError(f"{where}: hidden_act is {activation!r}; only 'silu' is known.")
        vocab = read.size("vocab_size")
        rope_theta, rope_scaling = read.rope()
        return cls(
            hidden_size=hidden,
            intermediate_size=read.size("intermediate_size"),
            num_hidden_layers=read.size("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab,
            max_position_embeddings=read.size("max_position_embeddings"),
            rms_norm_eps=read.positive("rms_norm_eps", default=1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
            block_size=read.size("block_size", least=2),
            mask_token_id=read.token("mask_token_id", vocab),
            eos_token_ids=read.tokens("eos_token_id", vocab),
            quantization=read.quantization("quantization")
            or read.quantization("quantization_config"),
            raw=raw,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read and check `folder/config.json`."""
        return cls.from_dict(read_json(folder / "config.json"), str(folder / "config.json"))


def is_orthrus(raw: dict[str, Any]) -> bool:
    """Whether a `config.json` speaks of a diffusion view."""
    return raw.get("block_size") is not None and raw.get("mask_token_id") is not None


def check_architecture(raw: dict[str, Any], where: str) -> None:
    """Refuse a `config.json` without a model type, and the hybrids of Qwen3.5 by name.

    Raises:
        ConfigError: saying what the checkpoint is, and what runs it.
    """
    model_type, layers = raw.get("model_type"), raw.get("layer_types")
    if not isinstance(model_type, str):
        raise ConfigError(
            f"{where}: model_type is {model_type!r}; an Orthrus checkpoint says 'qwen3'."
        )
    linear = isinstance(layers, list) and "linear_attention" in layers
    if linear or HYBRID.match(model_type):
        raise ConfigError(
            f"{where}: {model_type!r} with linear-attention layers, as in Qwen3-Next and Qwen3.5, "
            "is not supported yet: such layers keep a state that cannot be rolled back when a "
            "draft is rejected. Use mlx-lm to run it without drafts."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        IncompleteCheckpointError: if the file is absent.
        ConfigError: if it is not a JSON object.
        UnsafeCheckpointError: for a link that leaves the checkpoint.
    """
    if not os.path.lexists(path):
        raise IncompleteCheckpointError(
            f"{path} is missing. A checkpoint folder holds config.json, tokenizer files and "
            "model*.safetensors; was the download or copy cut short?"
        )
    content = files.read_json(path, ConfigError, files.part_bytes(path), folder=path.parent)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} should hold a JSON object, not a {type(content).__name__}.")
    return content


class _Reader:
    """Typed, bounded access to the fields of one `config.json`."""

    def __init__(self, raw: dict[str, Any], where: str):
        self.raw, self.where = raw, where

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_int(value) or not least <= value <= LIMITS[name]:
            raise ConfigError(
                f"{self.where}: {name} is {value!r}; expected a whole number from {least} to "
                f"{LIMITS[name]}."
            )
        return value

    def positive(self, name: str, default: float) -> float:
        value = self.raw.get(name, default)
        if not _is_number(value) or not value > 0:
            raise ConfigError(f"{self.where}: {name} is {value!r}; expected a positive number.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {name} is {value!r}; expected true or false.")
        return value

    def refuse(self, name: str, what: str) -> None:
        if self.raw.get(name):
            raise ConfigError(
                f"{self.where}: {name} is {self.raw[name]!r}, but {what} is not supported "
                "(no Orthrus checkpoint uses it)."
            )

    def token(self, name: str, vocab: int) -> int:
        value = self.raw.get(name)
        if not _is_int(value) or not 0 <= value < vocab:
            raise ConfigError(
                f"{self.where}: {name} is {value!r}; expected a token id from 0 to {vocab - 1}."
            )
        return value

    def tokens(self, name: str, vocab: int) -> tuple[int, ...]:
        value = self.raw.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(_is_int(i) and 0 <= i < vocab for i in ids):
            raise ConfigError(
                f"{self.where}: {name} is {value!r}; expected token ids from 0 to {vocab - 1}."
            )
        return tuple(ids)

    def rope(self) -> tuple[float, dict[str, Any] | None]:
        """Base and scaling, from `rope_parameters` (transformers 5) or the older two fields."""
        nested = self.raw.get("rope_parameters") or {}
        scaling = self.raw.get("rope_scaling") or nested
        if not isinstance(nested, dict) or not isinstance(scaling, dict):
            raise ConfigError(f"{self.where}: rope_parameters and rope_scaling must be objects.")
        theta = nested.get("rope_theta", self.raw.get("rope_theta", scaling.get("rope_theta")))
        if not _is_number(theta) or not theta > 1:
            raise ConfigError(
                f"{self.where}: rope_theta is {theta!r} (looked for at the top level and in "
                "rope_parameters); expected a number above 1."
            )
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in ROPE_TYPES:
            raise ConfigError(
                f"{self.where}: rope type {kind!r} is not supported; known are "
                f"{', '.join(ROPE_TYPES)}."
            )
        if kind == "default":
            return float(theta), None
        scaling = {k: v for k, v in scaling.items() if v is not None and k != "type"}
        for name in ROPE_REQUIRED[kind]:
            if name not in scaling:
                raise ConfigError(f"{self.where}: rope type {kind!r} needs the field {name!r}.")
        for name, above in ROPE_NUMBERS.items():
            value = scaling.get(name, above + 1)
            if not _is_number(value) or not value > above:
                raise ConfigError(
                    f"{self.where}: rope {name} is {value!r}; expected a number above {above}."
                )
        for name in ("short_factor", "long_factor"):
            self.rope_factors(name, scaling.get(name))
        if scaling.get("low_freq_factor", 1) >= scaling.get("high_freq_factor", 4):
            raise ConfigError(f"{self.where}: rope low_freq_factor must be below high_freq_factor.")
        if kind == "yarn":
            scaling = self.yarn(scaling)
        return float(theta), {**scaling, "rope_type": kind}

    def rope_factors(self, name: str, value: Any) -> None:
        """Refuse a `value` that is not one positive number per pair of head dimensions."""
        if value is None:
            return
        heads = self.size("num_attention_heads")
        default = max(1, self.size("hidden_size") // heads)
        pairs = self.size("head_dim", default=default) // 2
        if (
            not isinstance(value, list)
            or len(value) != pairs
            or not all(_is_number(v) and v > 0 for v in value)
        ):
            raise ConfigError(
                f"{self.where}: rope {name} must list {pairs} positive numbers, half of head_dim."
            )

    def yarn(self, scaling: dict[str, Any]) -> dict[str, Any]:
        """YaRN's record with Hugging Face's defaults, or a refusal where mlx-lm's YaRN differs."""
        one_mscale = bool(scaling.get("mscale")) != bool(scaling.get("mscale_all_dim"))
        for name, unusual in (
            ("attention_factor", scaling.get("attention_factor") is not None),
            ("truncate", scaling.get("truncate") is False),
            ("mscale", one_mscale),
        ):
            if unusual:
                raise ConfigError(
                    f"{self.where}: YaRN's {name!r}, as set here, has no counterpart in mlx-lm's "
                    "rope, so the model would not be computed as trained."
                )
        original = scaling.get("original_max_position_embeddings")
        return {
            **scaling,
            "original_max_position_embeddings": original or self.size("max_position_embeddings"),
        }

    def quantization(self, name: str) -> Quantization | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, dict) or "bits" not in value or "group_size" not in value:
            method = value.get("quant_method") if isinstance(value, dict) else value
            raise ConfigError(
                f"{self.where}: {name} ({method!r}) is not MLX's own quantization record "
                "(group_size, bits, mode). Convert from the unquantized checkpoint with "
                "`orthrus-mlx convert -q`."
            )
        bits, group, mode = value["bits"], value["group_size"], value.get("mode", "affine")
        if mode not in QUANTIZATION_MODES:
            raise ConfigError(
                f"{self.where}: {name}.mode is {mode!r}; known are {', '.join(QUANTIZATION_MODES)}."
            )
        if not _is_int(bits) or bits not in (2, 3, 4, 5, 6, 8):
            raise ConfigError(f"{self.where}: {name}.bits is {bits!r}; expected 2 to 6, or 8.")
        if not _is_int(group) or group not in (16, 32, 64, 128):
            raise ConfigError(
                f"{self.where}: {name}.group_size is {group!r}; expected 16, 32, 64 or 128."
            )
        return Quantization(group_size=group, bits=bits, mode=mode)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that stays one in float32, and whose square does."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == 0 or 1e-18 < abs(value) < 1e18
