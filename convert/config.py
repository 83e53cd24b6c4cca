"""The `config.json` of a converted checkpoint: plain Qwen3 to stock mlx-lm, Orthrus to us."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..checkpoint.config import ModelConfig
from .options import Options


def output_config(config: ModelConfig, options: Options) -> dict[str, Any]:
    """The source's fields without its remote code, the inferred fields, and the quantization."""
    output = {k: v for k, v in config.raw.items() if k != "auto_map"}
    output["architectures"] = ["Qwen3ForCausalLM"]
    output["model_type"] = config.model_type
    # Fields that stock mlx-lm requires and a config may leave to defaults.
    for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"):
        output[name] = getattr(config, name)
    output["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        output["rope_scaling"] = config.rope_scaling
    if options.dtype is not None:
        output["dtype"] = options.dtype
        output.pop("torch_dtype", None)
    if options.ar is not None:
        # The AR view's record is enough: here and in mlx-lm, each tensor's packing is read off its
        # shape.
        output["quantization"] = asdict(options.ar)
        output["quantization_config"] = output["quantization"]
    return output
