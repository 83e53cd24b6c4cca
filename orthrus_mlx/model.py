"""The dual-view transformer: Qwen3 whose attention has a second, diffusion, set of projections.

Both views share embeddings, layer norms, MLPs, the final norm, the head and one KV cache; each
has its own q/k/v/o projections and q/k norms (arXiv 2605.12825, section 3). Module names are
those of the public checkpoints, so weights load without a map.

A forward pass carries AR rows, diffusion rows, or both (`orthrus_mlx.rows`):

- AR rows continue the cached text, causally, and stay in the cache.
- Diffusion rows are blocks [anchor, mask, ...]. A block sees all text before its anchor, and
  itself in both directions. It leaves no trace.

The model knows nothing of decoding: which rows to run, and what to make of them, is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import initialize_rope

from .checkpoint.config import ModelConfig
from .rows import Cache, Prepared, Rows

AR, DIFFUSION = "", "_diff"  # the views, as the names of their projections end
QKV = tuple[mx.array, mx.array, mx.array]


class Attention(nn.Module):
    """Grouped-query attention: a set of projections for each view, and one KV cache."""

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

    def project(self, x: mx.array, view: str) -> QKV:
        """Normed queries and keys, not rotated yet, and values of one view.

        `x` is [B, L, dim]; each result is [B, heads, L, head_dim].
        """
        B, L, _ = x.shape
        q = self[f"q_proj{view}"](x).reshape(B, L, self.n_heads, -1)
        k = self[f"k_proj{view}"](x).reshape(B, L, self.n_kv_heads, -1)
        v = self[f"v_proj{view}"](x).reshape(B, L, self.n_kv_heads, -1)
        q, k = self[f"q_norm{view}"](q), self[f"k_norm{view}"](k)
        return q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def attend(
        self, q: mx.array, k: Any, v: Any, mask: mx.array | str | None, cache: Any = None
    ) -> mx.array:
        """Attention output [B, L, n_heads * head_dim], before the output projection.

        `k` and `v` are what `cache` holds: arrays, or quantized ones in three parts.
        """
        which: Any = mask
        out = scaled_dot_product_attention(q, k, v, cache, self.scale, which)
        B, _, L, _ = out.shape
        return out.transpose(0, 2, 1, 3).reshape(B, L, -1)

    def __call__(self, x: mx.array, rows: Rows, caches: Sequence[Any]) -> mx.array:
        """Attention of the rows [1, L, dim] of one pass; `caches` holds one KV cache a segment."""
        a, views = rows.n_ar, []
        if rows.n_ar:
            views.append(self.project(x[:, :a], AR))
        if rows.n_diff:
            views.append(self.project(x[:, a:], DIFFUSION))
        q, k, v = (concat(both, axis=2) for both in zip(*views, strict=True))
        q, k = rotate(self.rope, q, rows.positions), rotate(self.rope, k, rows.positions)

        ar, diff = [], []
        for span, cache in zip(rows.spans, caches, strict=True):
            # One write, AR rows first, so that they land where they belong. A second write
            # within one evaluation would make MLX copy the whole cache.
            keys, values = cache.update_and_fetch(span.own(k), span.own(v))
            if span.n_ar:
                seen = keys, values
                if span.n_diff:
                    seen = tree_map(lambda a, end=span.text: a[:, :, :end], seen)
                ar.append(self.attend(q[:, :, span.ar], *seen, span.ar_mask, cache))
            if span.n_diff:
                diff.append(self.attend(q[:, :, span.diff], keys, values, span.diff_mask, cache))
        outputs = [self.o_proj(concat(ar, axis=1))] if ar else []
        outputs += [self.o_proj_diff(concat(diff, axis=1))] if diff else []
        return concat(outputs, axis=1)


def rotate(rope: nn.Module, x: mx.array, positions: int | mx.array) -> mx.array:
    """Rotary embedding of [1, heads, L, head_dim], at consecutive positions or at those given."""
    if isinstance(positions, int):
        return rope(x, offset=positions)
    # Each row as a text of its own, at its own offset: [L, heads, 1, head_dim].
    return rope(x.transpose(2, 1, 0, 3), offset=positions).transpose(2, 1, 0, 3)


def concat(parts: Sequence[mx.array], axis: int) -> mx.array:
    """The parts as one array; a single one as it is."""
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=axis)


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

    def __call__(self, x: mx.array, rows: Rows, caches: Sequence[Any]) -> mx.array:
        """[1, L, dim] -> [1, L, dim]."""
        h = x + self.self_attn(self.input_layernorm(x), rows, caches)
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
        with own_random_state():
            self.model = Qwen3Model(config)
            if not config.tie_word_embeddings:
                self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def layers(self) -> list[TransformerBlock]:
        """The transformer layers (mlx-lm's `make_prompt_cache` counts them)."""
        return self.model.layers

    def make_cache(self) -> Cache:
        """One mlx-lm `KVCache` a layer, shared by both views."""
        return [KVCache() for _ in self.layers]

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        """Run one pass; the caches of its segments grow by their AR rows.

        Returns the logits of all AR rows [n_ar, vocab_size], row j being the choice for the
        position after it, and those of all diffusion rows [n_diff, vocab_size], row j of a block
        being a guess for the position after it. (In a block of `block_size` the last row is
        untrained.)
        """
        logits = self.logits(self.backbone(rows)).squeeze(0)  # `[0]` would copy them
        rows.drop_diffusion()
        return logits[: rows.n_ar], logits[rows.n_ar :]

    def start(self, outputs: list[mx.array], waiting: Sequence[Prepared]) -> None:
        """Hand prepared passes to the device, for the sequences that wait; does not wait itself."""
        mx.async_eval(outputs)

    def first_not_finite(self) -> str | None:
        """The name of the first parameter that holds NaN or infinite values, if one does."""
        parameters: Any = tree_flatten(self.parameters())
        return next((name for name, a in parameters if not bool(mx.isfinite(a).all())), None)

    def backbone(self, rows: Rows) -> mx.array:
        """Hidden states [1, rows, dim] behind the last layer; the caches grow by all rows."""
        h = self.model.embed_tokens(rows.ids)
        for i, layer in enumerate(self.layers):
            h = layer(h, rows, [segment.cache[i] for segment in rows.segments])
        return h

    def logits(self, hidden: mx.array) -> mx.array:
        """Final norm and head: [..., dim] -> [..., vocab_size]."""
        hidden = self.model.norm(hidden)
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    def __call__(self, inputs: mx.array, cache: Cache | None = None) -> mx.array:
        """Next-token logits [1, L, vocab_size] of the AR view for ids [1, L]."""
        return self.forward(Rows.verify(inputs[0], cache or self.make_cache()))[0][None]


@contextmanager
def own_random_state() -> Iterator[None]:
    """Keep the caller's `mx.random` sequence, of which MLX's layers take their first weights."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)  # the key of a seed is its two halves


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
