"""The loss: KL(AR view || diffusion view) at the masked positions of many blocks per text.

The frozen AR view reads each text once. Blocks attend to its keys and values; its logits are the
targets. A block is what decoding drafts from: [anchor, mask, ...], starting at the anchor's
position. It sees the AR keys before the anchor and the whole block. Each row predicts the next
token; the last row predicts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..model import AR, DIFFUSION, Attention, Model, TransformerBlock

# Logits in one chunk, so that thousands of rows over a vocabulary of 150,000 fit in a laptop's
# memory.
CHUNK = 1 << 26

DiffWeights = dict[str, mx.array]  # the weights under training, by name


class TeacherPass(NamedTuple):
    """The AR view's pass over the texts: the targets, and the keys and values for blocks.

    Attributes:
        keys: of each layer, rotated [B, n_kv_heads, L, head_dim].
        values: of each layer [B, n_kv_heads, L, head_dim].
        logits: [B, L, vocab_size]; those at position p predict position p + 1.
    """

    keys: list[mx.array]
    values: list[mx.array]
    logits: mx.array


def read_texts(model: Model, ids: mx.array) -> TeacherPass:
    """Run the AR view over texts [B, L], padded at their ends."""
    keys, values = [], []
    h = model.model.embed_tokens(ids)
    for layer in model.layers:
        attention = layer.self_attn
        q, k, v = rotated(attention, layer.input_layernorm(h), 0, diffusion=False)
        h = h + attention.o_proj(attention.attend(q, k, v, "causal"))
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        keys.append(k)
        values.append(v)
    return TeacherPass(keys, values, model.logits(h))


def block_hidden(
    model: Model,
    view: DiffWeights,
    teacher: TeacherPass,
    ids: mx.array,
    anchors: mx.array,
    checkpoint: bool = False,
) -> mx.array:
    """Final hidden states [B, A, K, dim] of the blocks at `anchors` [B, A] of texts `ids` [B, L].

    Args:
        model: the dual-view model.
        view: the diffusion weights to use, in the model's type.
        teacher: the AR view's pass over the texts.
        ids: the texts.
        anchors: position of each block's anchor.
        checkpoint: recompute each layer in the backward pass.
    """
    B, A = anchors.shape
    K = model.config.block_size
    first = mx.take_along_axis(ids, anchors, axis=1)[..., None]  # [B, A, 1]
    masks = mx.full((B, A, K - 1), model.config.mask_token_id, ids.dtype)
    h = model.model.embed_tokens(mx.concatenate([first, masks], axis=-1).reshape(B * A, K))
    # The AR slots that a block sees: those before its anchor. [B, 1, 1, A, 1, L]
    seen = (mx.arange(ids.shape[1]) < anchors[..., None])[:, None, None, :, None, :]

    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}."
        weights = {n.removeprefix(prefix): w for n, w in view.items() if n.startswith(prefix)}
        run = _layer(layer, anchors.reshape(-1), seen)
        run = mx.checkpoint(run) if checkpoint else run
        h = run(weights, h, teacher.keys[i], teacher.values[i])
    return h.reshape(B, A, K, -1)


def _layer(
    layer: TransformerBlock, starts: mx.array, seen: mx.array
) -> Callable[[DiffWeights, mx.array, mx.array, mx.array], mx.array]:
    """One layer over blocks [B * A, K, dim], as a function of its weights."""

    def run(weights: DiffWeights, h: mx.array, k_text: mx.array, v_text: mx.array) -> mx.array:
        idle = dict(tree_flatten(layer.parameters()))
        set_weights(layer, weights)
        attention = layer.self_attn
        x = layer.input_layernorm(h)
        h = h + attention.o_proj_diff(attend(attention, x, starts, k_text, v_text, seen))
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        set_weights(layer, {name: idle[name] for name in weights})
        return h

    return run


def attend(
    attention: Attention,
    x: mx.array,
    starts: mx.array,
    k_text: mx.array,
    v_text: mx.array,
    seen: mx.array,
) -> mx.array:
    """Attention of blocks `x` [B * A, K, dim] over their text and themselves.

    One product scores all blocks of a text against its keys, so the keys are never copied. One
    softmax spans the scores over the text and over the block.
    """
    B, n_kv, L, D = k_text.shape
    K = x.shape[1]
    A, G = x.shape[0] // B, attention.n_heads // n_kv
    q, k, v = rotated(attention, x, starts, diffusion=True)  # [B * A, heads, K, D]
    q = (q * attention.scale).reshape(B, A, n_kv, G, K, D).transpose(0, 2, 3, 1, 4, 5)
    k, v = (a.reshape(B, A, n_kv, 1, K, D).transpose(0, 2, 3, 1, 4, 5) for a in (k, v))

    flat = q.reshape(B, n_kv, G * A * K, D)
    over_text = (flat @ k_text.swapaxes(-1, -2)).reshape(B, n_kv, G, A, K, L)
    over_text = mx.where(seen, over_text, mx.finfo(over_text.dtype).min)
    over_block = q @ k.swapaxes(-1, -2)  # [B, n_kv, G, A, K, K]
    scores = mx.concatenate([over_text, over_block], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)

    out = weights[..., :L].reshape(B, n_kv, G * A * K, L) @ v_text
    out = out.reshape(B, n_kv, G, A, K, D) + weights[..., L:] @ v
    return out.transpose(0, 3, 4, 1, 2, 5).reshape(B * A, K, attention.n_heads * D)


def rotated(
    attention: Attention, x: mx.array, offset: int | mx.array, diffusion: bool
) -> list[mx.array]:
    """Queries, keys and values [B, heads, L, head_dim] of one view; `x` starts at `offset`."""
    q, k, v = attention.project(x, DIFFUSION if diffusion else AR)
    return [attention.rope(q, offset=offset), attention.rope(k, offset=offset), v]


def kl(
    model: Model, hidden: mx.array, logits: mx.array, rows: mx.array, weight: mx.array
) -> mx.array:
    """Sum of `weight` x KL(teacher || student) over R rows.

    Args:
        model: the dual-view model, for its output head.
        hidden: the student's hidden states [R, dim].
        logits: the teacher's logits [N, vocab_size].
        rows: index of each row's target in `logits` [R].
        weight: each row's weight [R].
    """
    R, vocab = hidden.shape[0], logits.shape[-1]

    def part(at: slice, hidden: mx.array) -> mx.array:
        student = log_softmax(model.logits(hidden))
        target = log_softmax(logits[rows[at]])
        return ((mx.exp(target) * (target - student)).sum(axis=-1) * weight[at]).sum()

    size = max(1, CHUNK // vocab)
    if size >= R:
        return part(slice(None), hidden)
    chunks = [slice(at, at + size) for at in range(0, R, size)]
    return sum((mx.checkpoint(partial(part, c))(hidden[c]) for c in chunks), mx.array(0.0))


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities in float32, over the last axis."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def block_loss(
    model: Model,
    view: DiffWeights,
    teacher: TeacherPass,
    ids: mx.array,
    anchors: mx.array,
    ends: mx.array,
    checkpoint: bool = False,
) -> mx.array:
    """Mean KL over the rows whose target lies in the answer of their block.

    Row j of the block at anchor s predicts position s + j + 1; its target is the AR row at s + j.
    """
    (B, L), K = ids.shape, model.config.block_size
    hidden = block_hidden(model, view, teacher, ids, anchors, checkpoint)[:, :, :-1]
    at = anchors[..., None] + mx.arange(K - 1)  # [B, A, K - 1]
    inside = at + 1 < ends[..., None]
    # No number here depends on a shape, so one compiled kernel serves all shapes.
    rows = mx.arange(0, B * L, L)[:, None, None] + mx.where(inside, at, 0)
    weight = inside.astype(mx.float32)
    total = kl(
        model,
        hidden.reshape(-1, hidden.shape[-1]),
        teacher.logits.reshape(-1, teacher.logits.shape[-1]),
        rows.reshape(-1),
        weight.reshape(-1),
    )
    return total / mx.maximum(weight.sum(), 1)


def cast(view: DiffWeights, dtype: mx.Dtype) -> DiffWeights:
    """The weights under training in the type to compute in."""
    return {name: a.astype(dtype) for name, a in view.items()}


def set_weights(model: nn.Module, weights: DiffWeights) -> None:
    """Set some weights of a model, or of a part of one."""
    model.update(tree_unflatten(list(weights.items())))
