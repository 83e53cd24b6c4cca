"""The rows of one forward pass: whose they are, where each stands, and what it may see.

A pass is `[1, rows, dim]`, whatever it carries: rows are the batch. Each sequence contributes one
segment, with its own KV cache. Layers that treat rows alike (embeddings, norms, projections, MLP,
head) see all rows at once; attention runs once a segment.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

Cache = list[Any]  # one KV cache a layer, as mlx-lm's `make_prompt_cache` makes them


class Segment(NamedTuple):
    """The rows of one sequence in a pass.

    Attributes:
        cache: the sequence's KV cache. The pass adds the AR rows to it.
        ar: ids [n] of the AR rows, which continue the cached text; None for none.
        blocks: ids [blocks, length] of the diffusion rows, [anchor, mask, ...] each; None for none.
        depths: for each block, behind how many AR rows of this pass its anchor stands: a block
            sees the cached text, that many AR rows, and itself in both directions.
    """

    cache: Cache
    ar: mx.array | None = None
    blocks: mx.array | None = None
    depths: tuple[int, ...] = (0,)

    @property
    def n_ar(self) -> int:
        """The number of AR rows."""
        return 0 if self.ar is None else self.ar.size

    @property
    def n_diff(self) -> int:
        """The number of diffusion rows."""
        return 0 if self.blocks is None else self.blocks.size


class Span(NamedTuple):
    """Where a segment's rows lie in the pass, and what they see.

    Attributes:
        n_ar: its AR rows, which lie at `ar` among all rows of the pass.
        n_diff: its diffusion rows, which lie at `diff`.
        text: KV-cache slots of its text: those filled before the pass, and those of its AR rows.
        ar_mask: which of these each AR row sees.
        diff_mask: which slots each diffusion row sees, [n_diff, text + n_diff]; None for all.
        alone: whether the pass has no other segment.
    """

    n_ar: int
    n_diff: int
    ar: slice
    diff: slice
    text: int
    ar_mask: str | None
    diff_mask: mx.array | None
    alone: bool

    def own(self, x: mx.array) -> mx.array:
        """The segment's rows of `x` [1, heads, rows, head_dim], AR rows first."""
        if self.alone:
            return x
        if self.n_ar and self.n_diff:
            return mx.concatenate([x[:, :, self.ar], x[:, :, self.diff]], axis=2)
        return x[:, :, self.ar if self.n_ar else self.diff]


class Rows:
    """All rows of one pass: the AR rows of every segment, then the diffusion rows of every segment.

    Attributes:
        segments: one for each sequence.
        starts: tokens in each one's cache before the pass.
        n_ar: AR rows in all.
        n_diff: diffusion rows in all.
        prepared: whether the pass is only built for now; `Runner.start` runs it, if ever.
        hidden: what a prepared pass computes, kept by runners that need it to start one.
    """

    def __init__(self, segments: Sequence[Segment], prepared: bool = False):
        self.segments = tuple(segments)
        self.prepared = prepared
        self.hidden: mx.array | None = None
        # Taken now: the caches grow while the pass runs.
        self.starts: list[int] = [segment.cache[0].offset for segment in self.segments]
        self.n_ar = sum(segment.n_ar for segment in self.segments)
        self.n_diff = sum(segment.n_diff for segment in self.segments)

    @classmethod
    def verify(cls, ids: mx.array, cache: Cache) -> Rows:
        """AR rows `ids` [n] of one sequence."""
        return cls([Segment(cache, ar=ids)])

    @classmethod
    def draft(cls, block: mx.array, cache: Cache) -> Rows:
        """One block [length] of one sequence, anchored behind its cached text."""
        return cls([Segment(cache, blocks=block[None])])

    @functools.cached_property
    def ids(self) -> mx.array:
        """Ids [1, rows]."""
        ar = [segment.ar for segment in self.segments if segment.ar is not None]
        diff = [s.blocks.reshape(-1) for s in self.segments if s.blocks is not None]
        parts = [*ar, *diff]
        return (parts[0] if len(parts) == 1 else mx.concatenate(parts))[None]

    @functools.cached_property
    def positions(self) -> int | mx.array:
        """Where the rows stand: [rows], or the first one's position where all are consecutive."""
        placed = list(zip(self.starts, self.segments, strict=True))
        runs = [(start, segment.n_ar) for start, segment in placed if segment.n_ar]
        runs += [
            (start + depth, segment.n_diff // len(segment.depths))
            for start, segment in placed
            if segment.n_diff
            for depth in segment.depths
        ]
        if len(runs) == 1:
            return runs[0][0]
        return mx.array(np.concatenate([np.arange(first, first + n) for first, n in runs]))

    @functools.cached_property
    def spans(self) -> list[Span]:
        """Where each segment's rows lie, and what they see."""
        spans, ar, diff = [], 0, self.n_ar
        for start, segment in zip(self.starts, self.segments, strict=True):
            n_ar, n_diff = segment.n_ar, segment.n_diff
            mask = None
            if n_diff and (n_ar or len(segment.depths) > 1):
                mask = block_mask(start, n_ar, n_diff, segment.depths)
            spans.append(
                Span(
                    n_ar,
                    n_diff,
                    ar=slice(ar, ar + n_ar),
                    diff=slice(diff, diff + n_diff),
                    text=start + n_ar,
                    ar_mask="causal" if n_ar > 1 else None,
                    diff_mask=mask,
                    alone=len(self.segments) == 1,
                )
            )
            ar, diff = ar + n_ar, diff + n_diff
        return spans

    def drop_diffusion(self) -> None:
        """Take the diffusion rows out of the caches: the blocks of a pass leave no trace."""
        for segment in self.segments:
            if segment.n_diff:
                for layer in segment.cache:
                    layer.trim(segment.n_diff)


class Prepared(NamedTuple):
    """A sequence's place in a pass that is prepared: which segment is its own."""

    rows: Rows
    segment: int


def block_mask(start: int, n_ar: int, n_diff: int, depths: Sequence[int]) -> mx.array:
    """Which slots diffusion rows see, [n_diff, start + n_ar + n_diff].

    `start` slots hold the cached text. Those of the AR rows follow, then those of the blocks, which
    are equally long and one for each depth.
    """
    slot = np.arange(start + n_ar + n_diff)
    block = np.repeat(np.arange(len(depths)), n_diff // len(depths))[:, None]
    text = start + np.array(depths)[block]
    first = start + n_ar + block * (n_diff // len(depths))
    return mx.array((slot < text) | ((slot >= first) & (slot < first + n_diff // len(depths))))
