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
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import KVCache
from mlx_lm.models.rope_utils import initialize_rope

from .config import ModelConfig
from .joined import Joined, join, products

LAYERS_AT_ONCE = 4  # handed to the device together; fewer cost the host more
# MLX's CUDA backend plans 16-bit attention over several rows anew for each shape, which takes
# 70 ms, and gives up after some hundred plans. Passes of up to so many rows therefore come in few
# shapes there: they are filled up to a power of two of rows, and see a power of two of the cache's
# slots, those not filled yet behind a mask. (Kernels may change wherever the number of slots does;
# `numerics.STEPS` are all such places.)
FEW_SHAPES = hasattr(mx, "cuda") and mx.cuda.is_available()
MOST_ROWS = 128
LEAST_SLOTS = 1024


class Rows(NamedTuple):
    """The rows of one pass.

    Attributes:
        start: tokens in the cache before it.
        n_ar: AR rows, which come first.
        positions: where each row stands, [L]; None where row j stands at `start + j`.
        ar_mask: which of the filled slots the AR rows see.
        diff_mask: which of them the diffusion rows see.
        slots: cache slots shown to all rows together, in place of those that are filled.
        mask: added to the scores of all rows then, [L, slots].
    """

    start: int
    n_ar: int
    positions: mx.array | None
    ar_mask: mx.array | str | None
    diff_mask: mx.array | None
    slots: int = 0
    mask: mx.array | None = None


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
        self._qkv = join([self.q_proj, self.k_proj, self.v_proj])
        self._qkv_diff = join([self.q_proj_diff, self.k_proj_diff, self.v_proj_diff])

    def project(self, x: mx.array, diffusion: bool) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values [B, L, heads, head_dim] of one view; `x` is [B, L, dim].

        Queries and keys are normed, and not rotated yet.
        """
        B, L, _ = x.shape
        if diffusion:
            parts, joined = (self.q_proj_diff, self.k_proj_diff, self.v_proj_diff), self._qkv_diff
            q_norm, k_norm = self.q_norm_diff, self.k_norm_diff
        else:
            parts, joined = (self.q_proj, self.k_proj, self.v_proj), self._qkv
            q_norm, k_norm = self.q_norm, self.k_norm
        q, k, v = products(x, parts, joined)
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

    def __call__(self, x: mx.array, rows: Rows, cache: KVCache) -> mx.array:
        """Attention of the rows [1, L, dim] of one pass, before the residual."""
        n = rows.n_ar
        views = []
        if n:
            views.append(self.project(x[:, :n], diffusion=False))
        if n < x.shape[1]:
            views.append(self.project(x[:, n:], diffusion=True))
        q, k, v = (
            mx.concatenate(list(both), axis=1) if len(both) > 1 else both[0]
            for both in zip(*views, strict=True)
        )
        # One write to the cache, AR rows first, so that they land where they belong. A second
        # write within one evaluation would make MLX copy the whole cache.
        q, k = self.rotate(q, rows), self.rotate(k, rows)
        k, v = cache.update_and_fetch(k, v.transpose(0, 2, 1, 3))
        ar: Any = None
        diff: Any = None
        if rows.slots:
            held: Any = (cache.keys, cache.values)
            k, v = (a[:, :, : rows.slots] for a in held)
            both = self.attend(q, k, v, rows.mask)
            ar, diff = both[:, :n], both[:, n:]
        else:
            if n:
                end = rows.start + n
                ar = self.attend(q[:, :, :n], k[:, :, :end], v[:, :, :end], rows.ar_mask)
            if n < x.shape[1]:
                diff = self.attend(q[:, :, n:], k, v, rows.diff_mask)
        outs = [self.o_proj(ar)] if n else []
        if n < x.shape[1]:
            outs.append(self.o_proj_diff(diff))
        return mx.concatenate(outs, axis=1) if len(outs) > 1 else outs[0]


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
        self._gate_up = join([self.gate_proj, self.up_proj])

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, dim] -> [B, L, dim]."""
        gate, up = products(x, (self.gate_proj, self.up_proj), self._gate_up)
        return self.down_proj(swiglu(gate, up))


class TransformerBlock(nn.Module):
    """One layer: attention and MLP, each behind a norm and a residual."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, rows: Rows, cache: KVCache) -> mx.array:
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
        until the next call. Weights changed in place are not noticed: call it again.
        """
        for layer in self.layers:
            layer.self_attn.pack()
            layer.mlp.pack()

    @property
    def joined(self) -> bool:
        """Whether passes run joined projections (where these can be joined at all)."""
        attention, mlp = self.layers[0].self_attn, self.layers[0].mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        gate_up = (mlp.gate_proj, mlp.up_proj)
        pairs = ((attention._qkv, qkv), (mlp._gate_up, gate_up))
        return any(joined is not None and joined.still_of(parts) for joined, parts in pairs)

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
        n_diff, few = L - kept, FEW_SHAPES and 1 < L <= MOST_ROWS
        spare = power_of_two(L) - L if few else 0
        h = self.model.embed_tokens(mx.pad(ids, [(0, 0), (0, spare)]) if spare else ids)
        slots = reserve(cache, L + spare, self.config, h.dtype) if few else 0
        rows = lay_out(cache[0].offset, kept, n_diff, depths, spare, slots, h.dtype)
        for i, (layer, layer_cache) in enumerate(zip(self.model.layers, cache, strict=True), 1):
            h = layer(h, rows, layer_cache)
            layer_cache.trim(n_diff + spare)
            # The host waits for drafting passes: let the device begin while it builds the rest.
            if n_diff and i % LAYERS_AT_ONCE == 0:
                mx.async_eval(h)
        return h[:, :L] if spare else h

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


def lay_out(
    start: int,
    n_ar: int,
    n_diff: int,
    depths: Sequence[int],
    spare: int = 0,
    slots: int = 0,
    dtype: mx.Dtype = mx.float32,
) -> Rows:
    """The rows of a pass: `n_ar` AR rows, then `n_diff` in blocks of one length, one for a depth.

    `spare` rows behind them, whose results nobody wants, are of the view of the last one. With
    `slots`, the one mask is to be added to scores in `dtype`.
    """
    if not n_diff:
        n_ar += spare
    ar_mask = "causal" if n_ar > 1 else None
    if not slots and not (n_ar and n_diff):  # one view, and all that is filled to see
        return Rows(start, n_ar, None, ar_mask, None)
    slot = mx.arange(slots or start + n_ar + n_diff) - start
    positions = diff_mask = None
    seen = [slot <= mx.arange(n_ar)[:, None]] if n_ar else []
    if n_diff:
        length = n_diff // len(depths)
        n_diff += spare  # as further blocks
        place = mx.arange(n_diff)
        depth = mx.array([*depths, *[0] * spare])[place // length]
        # A block sees the text before its anchor, and its own slots, which follow the AR rows.
        own = (slot >= n_ar) & (slot < n_ar + n_diff)
        own = own & ((slot - n_ar) // length == (place // length)[:, None])
        diff_mask = (slot < depth[:, None]) | own
        seen.append(diff_mask)
        if n_ar:
            positions = mx.concatenate([mx.arange(n_ar), depth + place % length]) + start
    if not slots:
        return Rows(start, n_ar, positions, ar_mask, diff_mask)
    mask = mx.where(mx.concatenate(seen), mx.array(0, dtype), mx.array(-mx.inf, dtype))
    return Rows(start, n_ar, positions, None, None, slots, mask)


def reserve(cache: list[KVCache], rows: int, config: ModelConfig, dtype: mx.Dtype) -> int:
    """Make room for `rows` more tokens; returns how many slots to show, a power of two."""
    slots = max(LEAST_SLOTS, power_of_two(cache[0].offset + rows))
    for layer in cache:
        for name in ("keys", "values"):
            held: Any = getattr(layer, name)
            if held is None:
                held = mx.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype)
            if held.shape[2] < slots:
                room = (0, slots - layer.offset)
                held = mx.pad(held[:, :, : layer.offset], [(0, 0), (0, 0), room, (0, 0)])
                setattr(layer, name, held)
    return slots


def power_of_two(n: int) -> int:
    """The smallest power of two that is no less than `n`."""
    return 1 << (n - 1).bit_length()


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
