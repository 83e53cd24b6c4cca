"""The dual-view transformer: Qwen3 whose attention has a second, diffusion, set of projections.

Both views share embeddings, layer norms, MLPs, the final norm, the head and one KV cache; each
has its own q/k/v/o projections and q/k norms (arXiv 2605.12825, section 3). Module names are
those of the public checkpoints, so weights load without a map.

A forward pass carries AR rows, diffusion rows, or AR rows followed by diffusion rows:

- AR rows continue the cached text, causally, and stay in the cache.
- Diffusion rows are a block [anchor, mask, ...] that starts at the first uncached position; they
  see all cached text and the whole block, not the AR rows beside them, and leave no trace.

The model knows nothing of decoding: which rows to run, and what to make of them, is the engine's.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import initialize_rope

from .config import ModelConfig


class Attention(nn.Module):
    """Grouped-query attention with one set of projections a view."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = config.num_key_value_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5

        self.q_proj = nn.Linear(dim, self.n_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * head_dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)

        self.q_proj_diff = nn.Linear(dim, self.n_heads * head_dim, bias=False)
        self.k_proj_diff = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.v_proj_diff = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.o_proj_diff = nn.Linear(self.n_heads * head_dim, dim, bias=False)
        self.q_norm_diff = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm_diff = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)

        self.rope = initialize_rope(
            head_dim,
            base=config.rope_theta,
            traditional=False,
            scaling_config=config.rope_scaling,
            max_position_embeddings=config.max_position_embeddings,
        )

    def project(
        self, x: mx.array, offset: int | mx.array, diffusion: bool
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values [B, heads, L, head_dim] of one view; `x` is [B, L, dim].

        Row j sits at position `offset + j`.
        """
        B, L, _ = x.shape
        if diffusion:
            q, k, v = self.q_proj_diff(x), self.k_proj_diff(x), self.v_proj_diff(x)
            q_norm, k_norm = self.q_norm_diff, self.k_norm_diff
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            q_norm, k_norm = self.q_norm, self.k_norm
        q = q_norm(q.reshape(B, L, self.n_heads, -1)).transpose(0, 2, 1, 3)
        k = k_norm(k.reshape(B, L, self.n_kv_heads, -1)).transpose(0, 2, 1, 3)
        v = v.reshape(B, L, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        return self.rope(q, offset=offset), self.rope(k, offset=offset), v

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None
    ) -> mx.array:
        """Attention output [B, L, n_heads * head_dim], before the output projection."""
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        B, _, L, _ = out.shape
        return out.transpose(0, 2, 1, 3).reshape(B, L, -1)

    def __call__(
        self, x: mx.array, n_ar: int, cache: KVCache, block_mask: mx.array | None
    ) -> mx.array:
        """Attention of `n_ar` AR rows followed by diffusion rows; `x` is [1, L, dim].

        `block_mask` [n_diff, cached + L] hides the AR rows from the diffusion rows; it is only
        needed when both are present.
        """
        start, L = cache.offset, x.shape[1]
        if n_ar == L:
            q, k, v = self.project(x, start, diffusion=False)
            k, v = cache.update_and_fetch(k, v)
            return self.o_proj(self.attend(q, k, v, "causal" if L > 1 else None))
        if n_ar == 0:
            q, k, v = self.project(x, start, diffusion=True)
            k, v = cache.update_and_fetch(k, v)
            return self.o_proj_diff(self.attend(q, k, v, None))

        # Both views: one write to the cache, AR rows first, so that they land where they belong.
        # A second write within one evaluation would make MLX copy the whole cache.
        q_ar, k_ar, v_ar = self.project(x[:, :n_ar], start, diffusion=False)
        q, k, v = self.project(x[:, n_ar:], start, diffusion=True)
        k, v = cache.update_and_fetch(
            mx.concatenate([k_ar, k], axis=2), mx.concatenate([v_ar, v], axis=2)
        )
        end = start + n_ar
        ar = self.attend(q_ar, k[:, :, :end], v[:, :, :end], "causal" if n_ar > 1 else None)
        diff = self.attend(q, k, v, block_mask)
        return mx.concatenate([self.o_proj(ar), self.o_proj_diff(diff)], axis=1)


class MLP(nn.Module):
    """SwiGLU feed-forward, shared by the views."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, dim] -> [B, L, dim]."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class TransformerBlock(nn.Module):
    """One layer: attention and MLP, each behind a norm and a residual."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(
        self, x: mx.array, n_ar: int, cache: KVCache, block_mask: mx.array | None
    ) -> mx.array:
        """[1, L, dim] -> [1, L, dim]."""
        h = x + self.self_attn(self.input_layernorm(x), n_ar, cache, block_mask)
        return h + self.mlp(self.post_attention_layernorm(h))


class Qwen3Model(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [TransformerBlock(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Model(nn.Module):
    """A dual-view model; called as mlx-lm calls its models, it is plain Qwen3."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model_type = config.model_type
        self.model = Qwen3Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[TransformerBlock]:
        """The transformer layers (mlx-lm's `make_prompt_cache` counts them)."""
        return self.model.layers

    def make_cache(self) -> list[KVCache]:
        """One mlx-lm `KVCache` a layer, shared by both views."""
        return [KVCache() for _ in self.layers]

    def hidden(self, ids: mx.array, cache: list[KVCache], n_ar: int | None = None) -> mx.array:
        """Final hidden states [1, L, dim] of rows `ids` [1, L]: `n_ar` AR rows, then a block.

        On return the cache has grown by the AR rows (all rows where `n_ar` is None).
        """
        L = ids.shape[1]
        n_ar = L if n_ar is None else n_ar
        start = cache[0].offset
        h = self.model.embed_tokens(ids)
        mask = block_mask(start, n_ar, L - n_ar) if 0 < n_ar < L else None
        for layer, layer_cache in zip(self.model.layers, cache, strict=True):
            h = layer(h, n_ar, layer_cache, mask)
            if n_ar < L:
                layer_cache.trim(L - n_ar)
        return h

    def logits(self, hidden: mx.array) -> mx.array:
        """Final norm and head: [..., dim] -> [..., vocab_size]."""
        hidden = self.model.norm(hidden)
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    def __call__(self, inputs: mx.array, cache: list[KVCache] | None = None) -> mx.array:
        """Next-token logits [1, L, vocab_size] of the AR view for ids [1, L]."""
        return self.logits(self.hidden(inputs, cache or self.make_cache()))

    def verify(self, ids: mx.array, cache: list[KVCache]) -> mx.array:
        """AR logits [L, vocab_size] of rows `ids` [L], which stay in the cache.

        Row j is the choice for the position after it.
        """
        return self.logits(self.hidden(ids[None], cache))[0]

    def draft(self, ids: mx.array, cache: list[KVCache]) -> mx.array:
        """Diffusion logits [L - 1, vocab_size] of a block `ids` [L]; the cache stays as it was.

        Row j guesses the position after it; the last row has no use and is not computed.
        """
        return self.logits(self.hidden(ids[None], cache, n_ar=0)[:, :-1])[0]

    def verify_and_draft(
        self, ids: mx.array, n_ar: int, cache: list[KVCache]
    ) -> tuple[mx.array, mx.array]:
        """One pass over `n_ar` AR rows and a block: their logits, as `verify` and `draft` give."""
        # The head sees every row, though the last is of no use: its row count is then the pass's.
        logits = self.logits(self.hidden(ids[None], cache, n_ar))[0]
        return logits[:n_ar], logits[n_ar:-1]


def block_mask(start: int, n_ar: int, n_diff: int) -> mx.array:
    """Which slots diffusion rows see: [n_diff, start + n_ar + n_diff], all but the AR rows."""
    slots = mx.arange(start + n_ar + n_diff)
    seen = (slots < start) | (slots >= start + n_ar)
    return mx.broadcast_to(seen, (n_diff, slots.size))


DIFFUSION_GROUPS = (
    "q_proj_diff",
    "k_proj_diff",
    "v_proj_diff",
    "o_proj_diff",
    "q_norm_diff",
    "k_norm_diff",
)


def is_diffusion(name: str) -> bool:
    """Whether a tensor or module of this name belongs to the diffusion view alone."""
    return any(part.endswith("_diff") for part in name.split("."))


def sanitize(weights: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Drop what checkpoints may hold and no model needs: a tied head, rotary buffers."""
    return {
        name: value
        for name, value in weights.items()
        if "rotary_emb.inv_freq" not in name
        and not (config.tie_word_embeddings and name.startswith("lm_head."))
    }
