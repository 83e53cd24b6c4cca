"""The rows of one forward pass: where each stands, and which cache slots it may see."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class Rows(NamedTuple):
    """The rows of one pass.

    Attributes:
        start: tokens in the cache before it, a number or an array of one.
        n_ar: AR rows, which come first.
        positions: where each row stands, [L]; None where row j stands at `start + j`.
        ar_mask: which of the filled slots the AR rows see.
        diff_mask: which of them the diffusion rows see.
        mask: added to the scores of all rows over all slots shown, in place of both, [L, slots].
        ranges: the same as `ranges` below says it, for kernels that know it.
    """

    start: int | mx.array
    n_ar: int
    positions: mx.array | None = None
    ar_mask: mx.array | str | None = None
    diff_mask: mx.array | None = None
    mask: mx.array | None = None
    ranges: mx.array | None = None


def lay_out(start: int, n_ar: int, n_diff: int, depths: Sequence[int]) -> Rows:
    """The rows of a pass: `n_ar` AR rows, then `n_diff` in equal blocks, one for each depth."""
    ar_mask = "causal" if n_ar > 1 else None
    if not (n_ar and n_diff):  # one view, and all that is filled to see
        return Rows(start, n_ar, ar_mask=ar_mask)
    seen = ranges(start, n_ar, n_diff, depths)
    return Rows(start, n_ar, seen[0], ar_mask, visible(seen[:, n_ar:], start + n_ar + n_diff))


def ranges(start: int, n_ar: int, n_diff: int, depths: Sequence[int], spare: int = 0) -> mx.array:
    """Where each row of a pass stands, two ranges of slots that it sees, and its own, [5, rows].

    Row j stands at [0, j]. It sees the text, the slots before [1, j], and its block, those from
    [2, j] up to [3, j], that one not included. Its keys and values go to slot [4, j]. `spare`
    diffusion rows behind the others, whose results nobody wants, are further blocks.
    """
    at_0, moves = _ranges_at_0(n_ar, n_diff, tuple(depths), spare)
    return mx.array(at_0 + start * moves)


@functools.lru_cache(maxsize=256)
def _ranges_at_0(
    n_ar: int, n_diff: int, depths: tuple[int, ...], spare: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for a start of 0, and where a start is to be added: all but AR rows' blocks."""
    rows = [(j, j + 1, 0, 0, j) for j in range(n_ar)]
    length, end = n_diff // len(depths), n_ar + n_diff + spare
    for j in range(n_diff + spare):
        block, place = divmod(j, length)
        anchor = depths[block] if block < len(depths) else 0
        own = n_ar + block * length  # a block's slots follow those of the AR rows
        rows.append((anchor + place, anchor, own, min(own + length, end), n_ar + j))
    moves = np.ones((5, len(rows)), np.int32)
    moves[2:4, :n_ar] = 0
    return np.array(rows, np.int32).T, moves


def visible(seen: mx.array, slots: int) -> mx.array:
    """Which of so many slots rows with these `ranges` see, [rows, slots]."""
    slot = mx.arange(slots)
    text, first, last = seen[1:4, :, None]
    return (slot < text) | ((slot >= first) & (slot < last))
