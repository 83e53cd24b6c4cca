"""Small random Orthrus checkpoints, with the public checkpoints' names and layout."""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from orthrus_mlx.rows import Rows, Segment

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def random_config(seed: int = 0, **overrides: Any) -> dict[str, Any]:
    """A `config.json` with sizes drawn from `seed`, then `overrides` (None removes a field)."""
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3])
    layers = draw.choice([1, 2, 3])
    vocab = draw.choice([40, 67, 96])
    config = {
        "architectures": ["OrthrusLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_orthrus.OrthrusLM"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": draw.choice([2, 3, 5, 8, 16]),
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": draw.choice([8, 16, 24]),
        "hidden_act": "silu",
        "hidden_size": draw.choice([32, 48, 64]),
        "initializer_range": 0.02,
        "intermediate_size": draw.choice([48, 64, 96]),
        "layer_types": ["full_attention"] * layers,
        "mask_token_id": vocab - 1,
        "max_position_embeddings": 512,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": kv_heads * draw.choice([1, 2, 4]),
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": None,
        "r": 16,
        "lora_alpha": 32,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": draw.random() < 0.5,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": vocab,
        **overrides,
    }
    if "vocab_size" in overrides and "mask_token_id" not in overrides:
        config["mask_token_id"] = overrides["vocab_size"] - 1
    return {k: v for k, v in config.items() if v is not None or k not in overrides}


def tensor_shapes(config: dict[str, Any], diffusion: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a public checkpoint with this config."""
    dim, hidden, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads = config["num_attention_heads"] * head_dim
    kv_heads = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], dim)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (dim,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (dim,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (hidden, dim)
        shapes[f"{layer}.mlp.up_proj.weight"] = (hidden, dim)
        shapes[f"{layer}.mlp.down_proj.weight"] = (dim, hidden)
        for view in ("", "_diff") if diffusion else ("",):
            shapes[f"{layer}.self_attn.q_proj{view}.weight"] = (heads, dim)
            shapes[f"{layer}.self_attn.k_proj{view}.weight"] = (kv_heads, dim)
            shapes[f"{layer}.self_attn.v_proj{view}.weight"] = (kv_heads, dim)
            shapes[f"{layer}.self_attn.o_proj{view}.weight"] = (dim, heads)
            shapes[f"{layer}.self_attn.q_norm{view}.weight"] = (head_dim,)
            shapes[f"{layer}.self_attn.k_norm{view}.weight"] = (head_dim,)
    shapes["model.norm.weight"] = (dim,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], dim)
    return shapes


def random_weights(
    config: dict[str, Any], seed: int = 0, dtype: mx.Dtype = mx.float32, diffusion: bool = True
) -> dict[str, mx.array]:
    """Weights under which every token matters and logits spread by about 2."""
    key = mx.random.key(seed)
    dim, spread = config["hidden_size"], 0.3
    weights = {}
    for name, shape in tensor_shapes(config, diffusion).items():
        key, own = mx.random.split(key)
        noise = mx.random.normal(shape, key=own)
        if name == "model.embed_tokens.weight":
            value = noise * spread
        elif name == "model.norm.weight":  # with a tied head, logits scale with the embeddings
            value = (1 + 0.1 * noise) * 2 / math.sqrt(dim) / spread
        elif name == "lm_head.weight":
            value = noise * spread
        elif ".q_norm" in name or ".k_norm" in name:  # sharp attention, so that positions matter
            value = 2 * (1 + 0.1 * noise)
        elif len(shape) == 1:
            value = 1 + 0.1 * noise
        elif ".o_proj" in name:
            value = 2 * noise / math.sqrt(shape[-1])
        else:
            value = noise / math.sqrt(shape[-1])
        weights[name] = value.astype(dtype)
    mx.eval(weights)
    return weights


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    weights: dict[str, mx.array],
    shards: int = 1,
    tokenizer_from: Path | None = None,
) -> Path:
    """Write a checkpoint in the public layout: one file, or `shards` files and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    generation = {"eos_token_id": config.get("eos_token_id"), "transformers_version": "5.8.1"}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if tokenizer_from is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_from / name).exists():
                shutil.copyfile(tokenizer_from / name, folder / name)
    if shards == 1:
        save_tensors(folder / "model.safetensors", weights)
        return folder
    names, weight_map = sorted(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        save_tensors(folder / file, {name: weights[name] for name in part})
        weight_map.update(dict.fromkeys(part, file))
    write_index(folder, weight_map, sum(a.nbytes for a in weights.values()))
    return folder


def save_tensors(file: Path, weights: dict[str, mx.array]) -> None:
    """Write one safetensors file as transformers does."""
    mx.save_safetensors(str(file), weights, metadata={"format": "pt"})


def write_index(folder: Path, weight_map: dict[str, str], total_size: int = 0) -> None:
    """Write the index JSON of a sharded checkpoint."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def verify(model: Any, ids: Any, cache: list[Any]) -> mx.array:
    """AR logits [n, vocab_size] of a pass over `ids` [n]."""
    logits: mx.array = model.forward(Rows.verify(mx.array(ids), cache))[0]
    return logits


def draft(model: Any, block: Any, cache: list[Any]) -> mx.array:
    """Logits [n - 1, vocab_size] of the guesses of a draft pass over `block` [n]."""
    logits: mx.array = model.forward(Rows.draft(mx.array(block), cache))[1]
    return logits[:-1]


def verify_and_draft(
    model: Any, ids: Any, n_ar: int, depths: Any, cache: list[Any]
) -> tuple[mx.array, mx.array]:
    """AR logits [n_ar, vocab_size], and those of the blocks beside them, without untrained rows."""
    ids = mx.array(ids)
    blocks = ids[n_ar:].reshape(len(depths), -1)
    segment = Segment(cache, ids[:n_ar], blocks, tuple(depths))
    logits, guesses = model.forward(Rows([segment]))
    return logits, guesses.reshape(*blocks.shape, -1)[:, : model.config.block_size - 1]
