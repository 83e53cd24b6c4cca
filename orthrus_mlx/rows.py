"""The rows of one forward pass: where each stands, and which cache slots it may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx


class Rows(NamedTuple):
    """The rows of one pass.

    Attributes:
        start: tokens in the cache before it, a number or an array of one.
        n_ar: AR rows, which come first.
        positions: where each row stands, [L]; None where row j stands at `start + j`.
        ar_mask: which of the filled slots the AR rows see.
        diff_mask: which of them the diffusion rows see.
        mask: added to the scores of all rows over all slots shown, in place of both, [L, slots].
    """

    start: int | mx.array
    n_ar: int
    positions: mx.array | None = None
    ar_mask: mx.array | str | None = None
    diff_mask: mx.array | None = None
    mask: mx.array | None = None


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
        return Rows(start, n_ar, ar_mask=ar_mask)
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
    return Rows(start, n_ar, positions, mask=mask)
