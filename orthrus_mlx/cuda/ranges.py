"""What each row of a pass sees, as ranges of KV-cache slots in place of masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..model import concat


class StaticSegment(NamedTuple):
    """The rows of one sequence in a compiled pass, padding included.

    Attributes:
        ar: where its AR rows lie among all rows of the pass.
        diff: where its diffusion rows lie.
        ranges: of its rows, AR rows first, as `ranges` returns them.
    """

    ar: slice
    diff: slice
    ranges: mx.array

    def own(self, x: mx.array) -> mx.array:
        """The segment's rows of `x` [1, heads, rows, head_dim], AR rows first."""
        return concat([x[:, :, s] for s in (self.ar, self.diff) if s.stop > s.start], axis=2)


class StaticRows(NamedTuple):
    """The rows of a compiled pass: everything that changes from pass to pass is an array.

    Attributes:
        n_ar: AR rows of all segments, padding included, which come first.
        ranges: of all rows in the order of the pass, [5, rows].
        segments: one for each sequence.
        mask: of a lone segment, what its ranges say, to be added to the scores, [rows, slots].
        kernels: whether the attention kernels can run, which take ranges.
    """

    n_ar: int
    ranges: mx.array
    segments: tuple[StaticSegment, ...]
    mask: mx.array
    kernels: bool

    def together(self, parts: Sequence[mx.array]) -> mx.array:
        """What the segments have [1, own rows, dim] as [1, rows, dim], in the order of the pass."""
        if len(parts) == 1:
            return parts[0]
        views = [[], []]  # type: list[list[mx.array]]
        for segment, part in zip(self.segments, parts, strict=True):
            n_ar = segment.ar.stop - segment.ar.start
            for view, own in zip(views, (part[:, :n_ar], part[:, n_ar:]), strict=True):
                view += [own] if own.shape[1] else []
        return mx.concatenate(views[0] + views[1], axis=1)


def ranges(
    start: int, n_ar: int, n_diff: int, depths: Sequence[int], padding: int = 0
) -> np.ndarray:
    """Per row: position, end of the visible text, its block's first slot and end, own slot: [5, L].

    A row sees the slots before [1, j], and those from [2, j] up to [3, j], that one not included.
    Its keys and values go to slot [4, j]. `n_ar` AR rows come first, then `n_diff` rows in equal
    blocks, one for each of `depths`, then `padding` diffusion rows: further blocks, whose results
    are not used.
    """
    at_0, moves = _ranges_at_0(n_ar, n_diff, tuple(depths), padding)
    return at_0 + np.int32(start) * moves


@functools.lru_cache(maxsize=256)
def _ranges_at_0(
    n_ar: int, n_diff: int, depths: tuple[int, ...], padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same for a start of 0, and where a start is to be added: all but AR rows' blocks."""
    rows = [(j, j + 1, 0, 0, j) for j in range(n_ar)]
    length, end = n_diff // len(depths), n_ar + n_diff + padding
    for j in range(n_diff + padding):
        block, place = divmod(j, length)
        anchor = depths[block] if block < len(depths) else 0
        own = n_ar + block * length  # a block's slots follow those of the AR rows
        rows.append((anchor + place, anchor, own, min(own + length, end), n_ar + j))
    moves = np.ones((5, len(rows)), np.int32)
    moves[2:4, :n_ar] = 0
    return np.array(rows, np.int32).T, moves


def visible(ranges: mx.array, slots: int) -> mx.array:
    """Which of so many slots rows with these ranges see, [rows, slots]."""
    slot = mx.arange(slots)
    text, first, last = ranges[1:4, :, None]
    return (slot < text) | ((slot >= first) & (slot < last))
