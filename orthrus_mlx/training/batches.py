"""Which texts and anchors make up step n: a pure function of the data, the seed and n.

So a resumed run sees what an uninterrupted one would have seen, and nothing needs saving.
Batches have few shapes: texts of similar length go together, padded to a rung of a ladder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Example

ANCHOR_SPACING = 8  # one anchor to this many tokens, unless told otherwise: the paper's density

_ORDER, _ANCHORS = 0, 1  # what a random stream is for; part of its key


@dataclass(frozen=True)
class Batch:
    """The arrays of one step.

    Attributes:
        ids: texts, padded at the end [B, L].
        anchors: the position of each block's anchor [B, A].
        ends: where the answer of that block ends, exclusive; 0 for a block that is not there
            [B, A].
        n_tokens: ids that are not padding.
    """

    ids: NDArray[np.int32]
    anchors: NDArray[np.int32]
    ends: NDArray[np.int32]
    n_tokens: int


class Batches:
    """The batches of a data set; `batches[n]` is that of step n, for any n from 0."""

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        anchors: int | None,
        max_length: int,
        seed: int,
    ):
        self.examples = examples
        self.batch_size = batch_size
        self.anchors = anchors
        self.max_length = max_length
        self.seed = seed
        self.lengths = np.array([len(example.ids) for example in examples])
        self._epoch: tuple[int, list[NDArray[np.int64]]] | None = None

    @property
    def per_epoch(self) -> int:
        """Batches that see every text once (up to the ones that do not fill a batch)."""
        return max(1, len(self.examples) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        chosen = self._epoch[1][place]
        return self._fill(chosen, self._random(_ANCHORS, step))

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number])

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Which texts make up each batch of an epoch."""
        random = self._random(_ORDER, epoch)
        wanted = self.per_epoch * self.batch_size
        order = random.permutation(len(self.examples))
        order = np.resize(order, wanted)  # leaves out the rest, or repeats a small data set
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches = np.split(order, self.per_epoch)
        return [batches[i] for i in random.permutation(len(batches))]

    def _fill(self, chosen: NDArray[np.int64], random: np.random.Generator) -> Batch:
        length = padded_length(int(self.lengths[chosen].max()), self.max_length)
        n_anchors = self.anchors or max(1, length // ANCHOR_SPACING)
        ids = np.zeros((len(chosen), length), np.int32)
        anchors = np.zeros((len(chosen), n_anchors), np.int32)
        ends = np.zeros((len(chosen), n_anchors), np.int32)
        for row, i in enumerate(chosen):
            ids[row, : self.lengths[i]] = self.examples[i].ids
            places, place_ends = _anchor_places(self.examples[i])
            picked = random.permutation(len(places))[:n_anchors]
            anchors[row, : len(picked)] = places[picked]
            ends[row, : len(picked)] = place_ends[picked]
        return Batch(ids, anchors, ends, int(self.lengths[chosen].sum()))


def padded_length(length: int, max_length: int) -> int:
    """The next rung: 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, ..., `max_length` at most."""
    rung = 32
    while rung < length:
        half = 1 << (rung.bit_length() - 1)  # the largest power of two within
        step = 32 if rung < 128 else half // 2
        rung += step
    return max(length, min(rung, max_length))


def _anchor_places(example: Example) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where an anchor can stand, and where the answer ends that it stands in or right before.

    Decoding starts at the token before an answer; behind its last token there is nothing to draft.
    """
    places = [np.arange(max(a.start - 1, 0), a.end - 1) for a in example.answers]
    ends = np.repeat([a.end for a in example.answers], [len(p) for p in places])
    return np.concatenate(places), ends
