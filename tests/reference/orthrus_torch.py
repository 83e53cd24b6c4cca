"""Orthrus dual-view greedy decoding in plain PyTorch, as a yardstick for faster implementations.

Written from the description of the algorithm, for reading rather than speed: batch 1, eager
attention, no code in common with the package under test. Runs on any torch device and dtype.

The model is a Qwen3 with two views. They share embeddings, layer norms, MLPs, final norm, head and
the KV cache; the diffusion view has its own q/k/v/o projections and q/k norms (`*_diff` weights).

    AR view          causal; reads and extends the cache; its choices are the output
    diffusion view   [anchor, mask, ...] over the cache, each row sees all others; only guesses
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from safetensors.torch import load_file
from torch import Tensor

View = Literal["ar", "diffusion"]

# Fields of config.json that would change the computation, with the only values computed here.
EXPECTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "quantization": None,
}


@dataclass(frozen=True)
class Model:
    weights: dict[str, Tensor]  # Hugging Face names
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    tied: bool  # the embedding matrix is also the output head
    inv_freq: Tensor  # [head_dim / 2], radians per position
    rope_scale: float  # factor on both q and k; 1 except for YaRN
    block_size: int | None  # rows of a draft: the anchor and block_size - 1 masks
    mask_id: int | None


class KVCache:
    """AR keys and values of the committed tokens, one [n_kv_heads, length, head_dim] per layer."""

    def __init__(self, model: Model) -> None:
        like = model.weights["model.embed_tokens.weight"]
        empty = like.new_empty(model.n_kv_heads, 0, model.head_dim)
        self.keys = [empty] * model.n_layers
        self.values = [empty] * model.n_layers

    @property
    def length(self) -> int:
        return self.keys[0].shape[1]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.keys = [k[:, :length] for k in self.keys]
        self.values = [v[:, :length] for v in self.values]


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and all tensors of a folder, wherever the diffusion tensors lie.

    The public layout has them inside model*.safetensors; the other one beside these, in
    orthrus_diff.safetensors, which no index mentions.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
    if (folder / "orthrus_diff.safetensors").exists():
        names.add("orthrus_diff.safetensors")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        tensors |= load_file(folder / name)
    return json.loads((folder / "config.json").read_text()), tensors


def load(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Model:
    """The model in a checkpoint folder."""
    return from_tensors(*read_checkpoint(folder), dtype, device)


def from_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor | np.ndarray],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Model:
    """The model given by the content of config.json and its weights, both by Hugging Face name."""
    for field, expected in EXPECTED.items():
        if config.get(field, expected) != expected:
            raise ValueError(f"{field}={config[field]!r}: only {expected!r} is computed here")
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    inv_freq, rope_scale = rope_frequencies(config, head_dim, at_least_float32(dtype))
    return Model(
        weights={
            name: (t if isinstance(t, Tensor) else torch.tensor(t)).detach().to(device, dtype)
            for name, t in tensors.items()
        },
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied=config.get("tie_word_embeddings", False),
        inv_freq=inv_freq.to(device),
        rope_scale=rope_scale,
        block_size=config.get("block_size"),
        mask_id=config.get("mask_token_id"),
    )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What norms, rotation angles and softmax are computed in."""
    return torch.promote_types(dtype, torch.float32)


def rope_frequencies(
    config: Mapping[str, Any], head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions [head_dim / 2], and the factor on q and k."""
    # transformers 5 writes everything into rope_parameters; before, rope_theta stood at the top
    # level and rope_scaling (null for plain rope) said the rest, with "type" for "rope_type".
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial rotary embeddings are not computed here")

    inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    if kind == "default":
        return inv_freq, 1.0
    if kind == "linear":  # squeeze all positions by the factor
        return inv_freq / rope["factor"], 1.0
    if kind == "yarn":
        window = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        return yarn_frequencies(inv_freq, rope, theta, window), yarn_scale(rope)
    raise ValueError(f"rope type {kind!r} is not computed here")


def yarn_frequencies(
    inv_freq: Tensor, rope: Mapping[str, Any], theta: float, window: int
) -> Tensor:
    """YaRN (arXiv 2309.00071, "NTK-by-parts"): squeeze slow dimensions, leave fast ones alone.

    Pair d turns r(d) = window * theta^(-2d/D) / 2pi times within the original context window.
    Above beta_fast turns it is kept, below beta_slow its angle is divided by the factor, and
    between the two it is blended. The paper blends linearly in r; its authors' code, and those
    that follow it, linearly in d between the two pairs at the limits, rounded outwards. The
    code is what models are trained with, so that is what stands here.
    """
    head_dim = 2 * len(inv_freq)

    def pair_with_turns(r: float) -> float:  # r(d) = r solved for d
        return head_dim * math.log(window / (2 * math.pi * r)) / (2 * math.log(theta))

    low = pair_with_turns(rope.get("beta_fast") or 32)
    high = pair_with_turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    pairs = torch.arange(len(inv_freq), dtype=inv_freq.dtype)
    squeezed = ((pairs - low) / (high - low or 0.001)).clamp(0, 1)
    return squeezed * inv_freq / rope["factor"] + (1 - squeezed) * inv_freq


def yarn_scale(rope: Mapping[str, Any]) -> float:
    """sqrt(1/t) of the YaRN paper: with q and k both times this, logits are sharpened by 1/t."""

    def sharpen(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):  # DeepSeek's two-part form
        return sharpen(rope["mscale"]) / sharpen(rope["mscale_all_dim"])
    return sharpen(1.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle; x [heads, L, D], cos [L, D/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(at_least_float32(x.dtype))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def attention(model: Model, layer: int, x: Tensor, cache: KVCache, view: View) -> Tensor:
    """One layer's attention of rows x [L, hidden] over the cache and themselves, in either view."""
    L, start = len(x), cache.keys[layer].shape[1]
    diff = "_diff" if view == "diffusion" else ""
    wide = at_least_float32(x.dtype)

    def weight(name: str) -> Tensor:
        return model.weights[f"model.layers.{layer}.self_attn.{name}{diff}.weight"]

    def heads(name: str, n: int) -> Tensor:  # [n, L, head_dim]
        return F.linear(x, weight(name)).view(L, n, model.head_dim).transpose(0, 1)

    positions = torch.arange(start, start + L, device=x.device)
    angles = positions.to(wide)[:, None] * model.inv_freq  # [L, head_dim / 2]
    cos = (angles.cos() * model.rope_scale).to(x.dtype)
    sin = (angles.sin() * model.rope_scale).to(x.dtype)

    q, k = heads("q_proj", model.n_heads), heads("k_proj", model.n_kv_heads)
    q = rotate(rms_norm(q, weight("q_norm"), model.norm_eps), cos, sin)
    k = rotate(rms_norm(k, weight("k_norm"), model.norm_eps), cos, sin)
    keys = torch.cat([cache.keys[layer], k], dim=1)  # [n_kv_heads, start + L, head_dim]
    values = torch.cat([cache.values[layer], heads("v_proj", model.n_kv_heads)], dim=1)
    if view == "ar":  # a draft block is seen by itself only: the cache stays the AR view's
        cache.keys[layer], cache.values[layer] = keys, values

    group = model.n_heads // model.n_kv_heads  # query heads that share a key head
    keys, values = (t.repeat_interleave(group, dim=0) for t in (keys, values))
    scores = q @ keys.transpose(1, 2) / math.sqrt(model.head_dim)  # [n_heads, L, start + L]
    if view == "ar":
        later = torch.arange(start + L, device=x.device) > positions[:, None]
        scores = scores.masked_fill(later, -torch.inf)
    out = scores.to(wide).softmax(-1).to(x.dtype) @ values  # [n_heads, L, head_dim]
    return F.linear(out.transpose(0, 1).flatten(1), weight("o_proj"))


def mlp(model: Model, layer: int, x: Tensor) -> Tensor:
    def project(name: str, x: Tensor) -> Tensor:
        return F.linear(x, model.weights[f"model.layers.{layer}.mlp.{name}_proj.weight"])

    return project("down", F.silu(project("gate", x)) * project("up", x))


@torch.no_grad()
def hidden_states(model: Model, ids: Sequence[int], cache: KVCache, view: View) -> Tensor:
    """Final hidden states [L, hidden] of `ids` placed after the cached tokens."""
    embedding = model.weights["model.embed_tokens.weight"]
    x = embedding[torch.tensor(ids, dtype=torch.long, device=embedding.device)]

    def norm(name: str) -> Tensor:
        return rms_norm(x, model.weights[f"model.{name}.weight"], model.norm_eps)

    for i in range(model.n_layers):
        x = x + attention(model, i, norm(f"layers.{i}.input_layernorm"), cache, view)
        x = x + mlp(model, i, norm(f"layers.{i}.post_attention_layernorm"))
    return norm("norm")


@torch.no_grad()
def head(model: Model, hidden: Tensor) -> Tensor:
    """Logits [L, V] of hidden states [L, hidden]."""
    name = "model.embed_tokens.weight" if model.tied else "lm_head.weight"
    return F.linear(hidden, model.weights[name])


def ar_logits(model: Model, ids: Sequence[int]) -> Tensor:
    """AR logits [L, V] of a whole sequence; row i is about position i + 1."""
    return head(model, hidden_states(model, ids, KVCache(model), "ar"))


def draft_block(model: Model, cache: KVCache, anchor: int, block_size: int) -> Tensor:
    """Diffusion logits [block_size, V] of [anchor, mask, ...] placed after the cached tokens.

    Row j is about the position j + 1 after the anchor's.
    """
    block = [anchor] + [model.mask_id] * (block_size - 1)
    return head(model, hidden_states(model, block, cache, "diffusion"))


def draft_logits(
    model: Model, prefix_ids: Sequence[int], anchor: int, block_size: int | None = None
) -> Tensor:
    """`draft_block` after a prefix (which the anchor follows) that the AR view reads first."""
    cache = KVCache(model)
    hidden_states(model, prefix_ids, cache, "ar")
    return draft_block(model, cache, anchor, block_size or model.block_size)


def greedy_ar(
    model: Model, prompt: Sequence[int], max_tokens: int, eos_ids: int | Collection[int]
) -> list[int]:
    """Plain decoding, one token a forward pass; the end token, if reached, comes last."""
    stop = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids)
    cache, output, rows = KVCache(model), [], list(prompt)
    while len(output) < max_tokens and not (output and output[-1] in stop):
        hidden = hidden_states(model, rows, cache, "ar")
        output.append(int(head(model, hidden[-1:]).argmax()))
        rows = output[-1:]
    return output


def greedy_two_pass(
    model: Model,
    prompt: Sequence[int],
    max_tokens: int,
    eos_ids: int | Collection[int],
    block_size: int | None = None,
) -> tuple[list[int], list[int]]:
    """The paper's cycle of a draft pass and a verify pass.

    Returns the ids, and for each cycle how many of its block_size - 1 drafts the AR view agreed
    with. That counts the whole agreeing prefix, also where the output was cut short inside it.
    """
    stop = {eos_ids} if isinstance(eos_ids, int) else set(eos_ids)
    block_size = block_size or model.block_size
    if max_tokens < 1:
        return [], []

    # The AR view reads the prompt and chooses the first token. From here on the last output token
    # is the anchor: committed, but not yet in the cache.
    cache = KVCache(model)
    output = [int(head(model, hidden_states(model, prompt, cache, "ar")[-1:]).argmax())]
    accepted: list[int] = []
    while len(output) < max_tokens and output[-1] not in stop:
        anchor, committed = output[-1], cache.length
        # 1. Draft. The last row is dropped: at its position the verify pass chooses by itself.
        drafts = draft_block(model, cache, anchor, block_size).argmax(-1)[:-1].tolist()
        # 2. Verify. Row j holds the AR view's choice, given that drafts 1..j all stand.
        verified = head(model, hidden_states(model, [anchor, *drafts], cache, "ar"))
        choices = verified.argmax(-1).tolist()
        # 3. Keep the agreeing prefix and the AR view's own choice after it; roll back the rest.
        agreed = 0
        while agreed < len(drafts) and drafts[agreed] == choices[agreed]:
            agreed += 1
        cache.crop(committed + 1 + agreed)
        accepted.append(agreed)
        for token in choices[: agreed + 1]:
            output.append(token)
            if token in stop or len(output) == max_tokens:
                break
    return output, accepted
