"""A small model whose bits depend on how many rows a pass has, as on a GPU; a CPU's never do.

Each "kernel" adds its own fixed noise to the logits. It is far smaller than the usual distance of
two logits but now and then larger than that of the best two, so that a decode forward with a row
count of another kernel writes other tokens soon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from orthrus_mlx import ModelConfig
from orthrus_mlx.decoding.engine import cut_cache
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.device.probe import Probe
from orthrus_mlx.model import Model
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

    def hidden(self, ids: mx.array, cache: list[Any], *more: Any, **named: Any) -> mx.array:
        self.keys_seen = cache[0].offset + ids.shape[1]
        return super().hidden(ids, cache, *more, **named)

    def logits(self, hidden: mx.array) -> mx.array:
        return super().logits(hidden) + self.noise(hidden.shape[-2])

    def draft(self, ids: mx.array, cache: list[Any]) -> mx.array:
        return self.look_ahead(ids, cache, ids.size - 1)

    def verify_and_draft(
        self, ids: mx.array, n_ar: int, depths: Sequence[int], cache: list[Any]
    ) -> tuple[mx.array, mx.array]:
        start, ahead = cache[0].offset, []
        for depth, block in zip(depths, ids[n_ar:].reshape(len(depths), -1), strict=True):
            if depth:
                super().verify(ids[:depth], cache)
            ahead.append(self.look_ahead(block, cache, min(block.size, self.config.block_size - 1)))
            cut_cache(cache, start)
        return super().verify_and_draft(ids, n_ar, depths, cache)[0], mx.stack(ahead)

    def look_ahead(self, block: mx.array, cache: list[Any], count: int) -> mx.array:
        """Guesses that mostly stand, where an untrained view's never do: the AR view, row by row.

        The first `LOOK_AHEAD` of them; the rest are wrong.
        """
        start, anchor, guesses = cache[0].offset, block[:1], [0] * count
        for place in range(min(LOOK_AHEAD, len(guesses))):
            anchor = mx.argmax(super().verify(anchor, cache), axis=-1)
            guesses[place] = anchor.item()  # type: ignore[assignment]
        cut_cache(cache, start)
        return (mx.arange(self.config.vocab_size) == mx.array(guesses)[:, None]).astype(mx.float32)

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
    numerics._store(numerics._probe_file(model), found)
    return found


def build(kind: type[Model] = RowKernels, **changes: Any) -> Any:
    """The same random weights each time; their two best logits often lie close."""
    config = CONFIG | changes
    model = kind(ModelConfig.from_dict(config))
    model.load_weights(list(helpers.random_weights(config, seed=3).items()), strict=True)
    model.eval()
    return model
