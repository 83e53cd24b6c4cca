"""The dual-view transformer: Qwen3 whose attention has a second, diffusion, set of projections.

Both views share embeddings, layer norms, MLPs, the final norm, the head and one KV cache; each
has its own q/k/v/o projections and q/k norms (arXiv 2605.12825, section 3). Module names are
those of the public checkpoints, so weights load without a map.

A forward pass carries AR rows, diffusion rows, or AR rows followed by diffusion rows:

- AR rows continue the cached text, causally, and stay in the cache.
- Diffusion rows are blocks [anchor, mask, ...]. The anchor of each is the token of one of the AR
  rows beside it (where there are none, the first uncached one): a block sees all text before its
  anchor, and itself, both ways. It leaves no trace.

The model knows nothing of decoding: which rows to run, and what to make of them, is the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import initialize_rope

from .checkpoint.config import ModelConfig
from .cuda import attention as few_rows_attention
from .cuda import compiled as few_shapes
from .cuda import norm_rope as few_rows_inputs
from .cuda.compiled import Passes, Slots
from .cuda.fused import Joined, join, products
from .cuda.in_flight import PORTION, Ahead
from .cuda.matmul import by_view, product
from .rows import Rows, lay_out

QKV = ("q_proj", "k_proj", "v_proj")
QKV_DIFF = ("q_proj_diff", "k_proj_diff", "v_proj_diff")
GATE_UP = ("gate_proj", "up_proj")


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
        self._qkv: Joined | None = None
        self._qkv_diff: Joined | None = None

    def pack(self) -> None:
        """Compute q, k and v of a view as one product from now on; see `join`."""
        self._qkv = join(self, QKV)
        self._qkv_diff = join(self, QKV_DIFF)

    def projections(self, diffusion: bool) -> tuple[Sequence[str], Joined | None]:
        """Those of one view to queries, keys and values: their names, and them joined."""
        return (QKV_DIFF, self._qkv_diff) if diffusion else (QKV, self._qkv)

    def project(self, x: mx.array, diffusion: bool) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values [B, L, heads, head_dim] of one view; `x` is [B, L, dim].

        Queries and keys are normed, and not rotated yet.
        """
        B, L, _ = x.shape
        q, k, v = products(x, self, *self.projections(diffusion))
        q_norm = self.q_norm_diff if diffusion else self.q_norm
        k_norm = self.k_norm_diff if diffusion else self.k_norm
        q = q_norm(q.reshape(B, L, self.n_heads, -1))
        k = k_norm(k.reshape(B, L, self.n_kv_heads, -1))
        return q, k, v.reshape(B, L, self.n_kv_heads, -1)

    def rotate(self, x: mx.array, rows: Rows) -> mx.array:
        """Rotary embedding of [1, L, heads, head_dim]; the result is [1, heads, L, head_dim]."""
        if rows.positions is None:
            return self.rope(x.transpose(0, 2, 1, 3), offset=rows.start)
        # Positions that do not simply rise: each row as a text of its own, at its own offset.
        rotated = self.rope(x[0][:, :, None], offset=rows.positions)  # [L, heads, 1, head_dim]
        return rotated.transpose(2, 1, 0, 3)

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None
    ) -> mx.array:
        """Attention output [B, L, n_heads * head_dim], before the output projection."""
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        B, _, L, _ = out.shape
        return out.transpose(0, 2, 1, 3).reshape(B, L, -1)

    def side_by_side(self, x: mx.array, n_ar: int) -> mx.array:
        """Queries, keys and values of a pass in one array [1, L, ...], as projected."""
        ar, diff = (
            both.product if both and both.still_of(self) and not both.parts[0].training else None
            for both in (self._qkv, self._qkv_diff)
        )
        if (ar or not n_ar) and (diff or n_ar == x.shape[1]):
            return by_view(ar, diff, x, n_ar)
        pairs = zip(QKV, QKV_DIFF, strict=True)
        parts = [by_view(getattr(self, a), getattr(self, b), x, n_ar) for a, b in pairs]
        return mx.concatenate(parts, axis=-1)

    def inputs(self, x: mx.array, rows: Rows) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values [1, heads, L, head_dim] of a pass, normed and rotated."""
        n = rows.n_ar
        if rows.ranges is not None:
            projected = self.side_by_side(x, n)
            if few_rows_inputs.prepares(self, projected):
                return few_rows_inputs.prepare(self, projected, n, rows.ranges)
        if n in (0, x.shape[1]):
            q, k, v = self.project(x, not n)
        else:
            views = zip(self.project(x[:, :n], False), self.project(x[:, n:], True), strict=True)
            q, k, v = (mx.concatenate(list(both), axis=1) for both in views)
        return self.rotate(q, rows), self.rotate(k, rows), v.transpose(0, 2, 1, 3)

    def __call__(self, x: mx.array, rows: Rows, cache: KVCache | Slots) -> mx.array:
        """Attention of the rows [1, L, dim] of one pass, before the residual."""
        n, L = rows.n_ar, x.shape[1]
        q, k, v = self.inputs(x, rows)
        # One write to the cache, AR rows first, so that they land where they belong. A second
        # write within one evaluation would make MLX copy the whole cache.
        k, v = cache.update_and_fetch(k, v)
        if rows.ranges is not None and few_rows_attention.fits(self, q, k, v):
            out = few_rows_attention.attend(q, k, v, rows.ranges, self.scale)
        elif rows.mask is not None:
            out = self.attend(q, k, v, rows.mask)
        elif n in (0, L):
            out = self.attend(q, k, v, rows.ar_mask if n else rows.diff_mask)
        else:
            end: Any = rows.start + n
            ar = self.attend(q[:, :, :n], k[:, :, :end], v[:, :, :end], rows.ar_mask)
            diff = self.attend(q[:, :, n:], k, v, rows.diff_mask)
            views = [product(self.o_proj, ar), product(self.o_proj_diff, diff)]
            return mx.concatenate(views, axis=1)
        return by_view(self.o_proj, self.o_proj_diff, out, n)


class MLP(nn.Module):
    """SwiGLU feed-forward, shared by the views."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self._gate_up: Joined | None = None

    def pack(self) -> None:
        """Compute both inner products as one from now on; see `join`."""
        self._gate_up = join(self, GATE_UP)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, dim] -> [B, L, dim]."""
        gate, up = products(x, self, GATE_UP, self._gate_up)
        return product(self.down_proj, swiglu(gate, up))


class TransformerBlock(nn.Module):
    """One layer: attention and MLP, each behind a norm and a residual."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, rows: Rows, cache: KVCache | Slots) -> mx.array:
        """[1, L, dim] -> [1, L, dim]."""
        h = x + self.self_attn(self.input_layernorm(x), rows, cache)
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
        self._passes: Passes | None = None

    @property
    def layers(self) -> list[TransformerBlock]:
        """The transformer layers (mlx-lm's `make_prompt_cache` counts them)."""
        return self.model.layers

    def make_cache(self) -> list[KVCache]:
        """One mlx-lm `KVCache` a layer, shared by both views."""
        return [KVCache() for _ in self.layers]

    def pack(self) -> None:
        """Compute projections that read the same input as one product from now on.

        Fewer and larger matrix products; the parameters keep their names. Weights or modules that
        are replaced later (another type, other packing, an adapter) are used as they are, unjoined,
        until the next call. What is changed in place is not noticed: call it again.
        """
        self._passes = None
        if not self.training:
            self.eval()  # parts too that `nn.quantize` put in since
        for layer in self.layers:
            layer.self_attn.pack()
            layer.mlp.pack()

    @property
    def joined(self) -> bool:
        """Whether passes run joined projections, wherever these could be joined."""
        attention, mlp = self.layers[0].self_attn, self.layers[0].mlp
        groups = (attention, attention._qkv), (attention, attention._qkv_diff), (mlp, mlp._gate_up)
        return any(joined for _, joined in groups) and all(
            joined.still_of(owner) for owner, joined in groups if joined
        )

    def hidden(
        self,
        ids: mx.array,
        cache: list[KVCache],
        n_ar: int | None = None,
        depths: Sequence[int] = (0,),
    ) -> mx.array:
        """Final hidden states [1, L, dim] of rows `ids` [1, L]: `n_ar` AR rows, then blocks.

        The blocks are equally long; the anchor of each is the AR row at its depth. On return the
        cache has grown by the AR rows (all rows where `n_ar` is None).
        """
        L = ids.shape[1]
        kept = L if n_ar is None else n_ar
        if len(cache) != len(self.layers):
            raise ValueError(f"A cache of {len(cache)} layers for a model of {len(self.layers)}.")
        if few_shapes.NEEDED and 1 < L <= few_shapes.MOST_ROWS:
            if self._passes is None or not self._passes.still_of(self):
                self._passes = Passes(self)
            return self._passes.run(ids, cache, kept, depths)
        rows = lay_out(cache[0].offset, kept, L - kept, depths)
        h, ahead = ids, Ahead()
        for first in range(0, len(cache), PORTION):
            h = self.run(h, rows, cache[first : first + PORTION], first)
            # The host waits for drafting passes: let the device begin while it builds the rest.
            if kept < L and not self.training:
                ahead.hand_over(h)
        for layer in cache:
            layer.trim(L - kept)
        return h

    def run(
        self, h: mx.array, rows: Rows, cache: Sequence[KVCache | Slots], first: int
    ) -> mx.array:
        """The layers from `first` on, one for each of `cache`, over the rows of one pass.

        Returns [1, L, dim]; `h` is of the same shape, or the ids [1, L] if `first` is 0. The rows
        stay in the cache.
        """
        h = h if first else self.model.embed_tokens(h)
        layers = self.model.layers[first : first + len(cache)]
        for layer, layer_cache in zip(layers, cache, strict=True):
            h = layer(h, rows, layer_cache)
        return h

    def logits(self, hidden: mx.array) -> mx.array:
        """Final norm and head: [..., dim] -> [..., vocab_size]."""
        hidden = self.model.norm(hidden)
        if self.config.tie_word_embeddings:
            embeddings = self.model.embed_tokens
            return product(embeddings, hidden, embeddings.as_linear)
        return product(self.lm_head, hidden)

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
        self, ids: mx.array, n_ar: int, depths: Sequence[int], cache: list[KVCache]
    ) -> tuple[mx.array, mx.array]:
        """One pass over `n_ar` AR rows and a block for each of `depths`, all of one length.

        Returns the logits of the AR rows, as `verify` gives them, and those of the blocks
        [blocks, length, vocab_size], as `draft` gives them for a block whose anchor stands `depth`
        places behind the first AR row. The last row of a block guesses as well as others, but in a
        block of `block_size`, where it learnt nothing in training and is left out.
        """
        logits = self.logits(self.hidden(ids[None], cache, n_ar, depths))[0]
        blocks = logits[n_ar:].reshape(len(depths), -1, logits.shape[-1])
        return logits[:n_ar], blocks[:, : self.config.block_size - 1]


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
