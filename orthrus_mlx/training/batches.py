"""Choose the texts and anchors of step n: a pure function of the data, the seed and n.

A resumed run therefore sees the batches of an uninterrupted one, and no state is saved.
Batches have few shapes: texts of similar length share a batch, padded to one of few lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Example

ANCHOR_SPACING = 8  # default tokens per anchor, the paper's density

_ORDER, _ANCHORS = 0, 1  # purpose of a random stream, part of its key


@dataclass(frozen=True)
class Batch:
    """The arrays of one step.

    Attributes:
        ids: texts, padded at the end [B, L].
        anchors: the position of each block's anchor [B, A].
        ends: the exclusive end of each block's answer; 0 for an unused block [B, A].
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
        """Batches in an epoch; texts that do not fill a last batch are left out."""
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
        """The indices of the texts in each batch of an epoch."""
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
    """The next of 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, ..., at most `max_length`."""
    padded = 32
    while padded < length:
        half = 1 << (padded.bit_length() - 1)  # the largest power of two up to `padded`
        step = 32 if padded < 128 else half // 2
        padded += step
    return max(length, min(padded, max_length))


def _anchor_places(example: Example) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each allowed anchor position, and the exclusive end of the answer drafted from it.

    The first anchor is the token before an answer; the last one leaves one token to draft.
    """
    places = [np.arange(max(a.start - 1, 0), a.end - 1) for a in example.answers]
    ends = np.repeat([a.end for a in example.answers], [len(p) for p in places])
    return np.concatenate(places), ends
