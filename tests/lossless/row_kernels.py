"""A small model whose bits depend on how many rows a pass has, as on a GPU; a CPU's never do.

Each "kernel" adds its own fixed noise to the logits. It is far smaller than the usual distance of
two logits but now and then larger than that of the best two, so that a decode forward with a row
count of another kernel writes other tokens soon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from orthrus_mlx import ModelConfig
from orthrus_mlx.decoding.cache import trim
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.device.probe import Probe
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows, Segment
from tests import helpers

NOISE = 0.1
LOOK_AHEAD = 4
CONFIG = helpers.random_config(
    block_size=32,
    head_dim=16,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_key_value_heads=1,
    num_attention_heads=2,
    vocab_size=64,
    max_position_embeddings=600,
    tie_word_embeddings=True,
)

Kernel = Callable[[int, int], int]  # (rows of the pass, keys that it sees) -> number of a kernel


def by_rows(rows: int, keys: int) -> int:
    """As on a recent Mac, roughly: vector kernels for few rows, tiles for many."""
    return 1 if rows == 1 else 2 if rows <= 5 else 3 if rows <= 15 else 4


class RowKernels(Model):
    """The random model, with one kernel's noise on the logits of every pass."""

    kernel: Kernel = staticmethod(by_rows)

    def backbone(self, rows: Rows) -> mx.array:
        self.keys_seen = rows.starts[0] + rows.n_ar + rows.n_diff
        return super().backbone(rows)

    def logits(self, hidden: mx.array) -> mx.array:
        return super().logits(hidden) + self.noise(hidden.shape[-2])

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        (segment,) = rows.segments
        guesses = [] if segment.blocks is None else self.look_ahead(segment)
        logits, blocks = super().forward(rows)
        if not guesses:
            return logits, blocks
        chosen = mx.arange(self.config.vocab_size) == mx.array(guesses)[:, None]
        return logits, chosen.astype(mx.float32)

    def look_ahead(self, segment: Segment) -> list[int]:
        """Guesses that mostly are accepted, where an untrained view's never are.

        The first `LOOK_AHEAD` of each block are the AR view's, row by row; the rest are wrong.
        """
        cache, start, guesses = segment.cache, segment.cache[0].offset, list[int]()
        assert segment.blocks is not None
        for depth, block in zip(segment.depths, segment.blocks, strict=True):
            if depth and segment.ar is not None:
                super().forward(Rows.verify(segment.ar[:depth], cache))
            anchor, found = block[:1], [0] * block.size
            for place in range(min(LOOK_AHEAD, block.size)):
                anchor = mx.argmax(super().forward(Rows.verify(anchor, cache))[0], axis=-1)
                found[place] = int(anchor.item())
            guesses += found
            trim(cache, start)
        return guesses

    def noise(self, rows: int) -> mx.array:
        key = mx.random.key(self.kernel(rows, self.keys_seen))
        return NOISE * mx.random.uniform(-1, 1, (self.config.vocab_size,), key=key)


class UnlikeRows(RowKernels):
    """Every row of a pass has bits of its own, by its place: nothing but single rows agree."""

    def noise(self, rows: int) -> mx.array:
        shape = (rows, self.config.vocab_size)
        return NOISE * mx.random.uniform(-1, 1, shape, key=mx.random.key(rows))


class Restless(RowKernels):
    """No pass gives the bits of the one before."""

    def noise(self, rows: int) -> mx.array:
        return NOISE * mx.random.uniform(-1, 1, (self.config.vocab_size,))


def probed(model: Any) -> Probe:
    """A quick probe, kept as the result for this model."""
    found = numerics.probe(model, contexts=(24,), steps=())
    numerics.store_probe(model, found)
    return found


def build(kind: type[Model] = RowKernels, **changes: Any) -> Any:
    """The same random weights each time; their two best logits often lie close."""
    config = CONFIG | changes
    model = kind(ModelConfig.from_dict(config))
    model.load_weights(list(helpers.random_weights(config, seed=3).items()), strict=True)
    model.eval()
    return model
