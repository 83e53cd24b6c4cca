"""A model of scripted logits over a cache of plain token ids, so that any slip of the engine shows.

The AR logits of a row are a hash of every id that the cache shows at that row, in every layer: a
cache cut one short or one long, a draft or a mask left behind, or a row at the wrong place changes
the whole rest of the output. What the diffusion view guesses is scripted: right or wrong, row by
row, in any pattern.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from orthrus_mlx import ModelConfig, Sampling
from orthrus_mlx.decoding.choosers import LogitsProcessor
from orthrus_mlx.decoding.consensus import choose
from orthrus_mlx.rows import Prepared, Rows

DIFFUSION = -1  # what a diffusion row leaves in its slot


class FakeCache:
    """One layer: slots that are overwritten, and an offset that `trim` moves, like a KVCache's."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.offset = 0
        self.truth: list[int] | None = None  # of this cache's text alone; see `FakeModel.truth`

    def write(self, entries: Sequence[int]) -> None:
        self.slots[self.offset : self.offset + len(entries)] = entries
        self.offset += len(entries)

    def trim(self, n: int) -> int:
        n = min(self.offset, n)
        self.offset -= n
        return n

    @property
    def ids(self) -> list[int]:
        return self.slots[: self.offset]

    @property
    def state(self) -> mx.array:
        return mx.array(self.slots, dtype=mx.int32)

    def size(self) -> int:
        return self.offset

    def is_trimmable(self) -> bool:
        return True


class Block(NamedTuple):
    """Diffusion rows as the model saw them."""

    start: int  # position of the anchor
    ids: list[int]
    guesses: list[int]  # what they guessed, the first for position start + 1


class Forward(NamedTuple):
    """One forward pass as the model saw it."""

    kind: str  # "verify" (the prompt is read so too), "draft", "both"
    start: int  # cached ids before it
    rows: list[int]  # its AR rows
    blocks: list[Block]


class FakeModel:
    """Implements the engine's `Runner`.

    Attributes:
        truth: the ids that a perfect drafter would propose, by position; see `script`.
        log: every forward pass since.
        interrupt_at: raise KeyboardInterrupt at this step (each layer of each pass has two).
    """

    def __init__(
        self,
        vocab_size: int = 23,
        block_size: int = 5,
        layers: int = 2,
        max_positions: int = 4096,
        salt: int = 0,
    ) -> None:
        self.config = ModelConfig.from_dict(
            {
                "model_type": "qwen3",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": layers,
                "num_attention_heads": 1,
                "head_dim": 8,
                "vocab_size": vocab_size,
                "max_position_embeddings": max_positions,
                "rope_theta": 1e4,
                "block_size": block_size,
                "mask_token_id": vocab_size - 1,
            }
        )
        self.salt = salt
        self.interrupt_at: int | None = None
        self.script([], [True])

    def script(self, truth: Sequence[int], pattern: Sequence[bool]) -> None:
        """Let guesses be right or wrong about `truth`, row after row, as `pattern` says."""
        self.truth = list(truth)
        self.log: list[Forward] = []
        self._rights = itertools.cycle(pattern)
        self._steps = 0

    # ---------------------------------------------------------------- what the engine calls

    def make_cache(self) -> list[FakeCache]:
        return [FakeCache() for _ in range(self.config.num_hidden_layers)]

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        ar_logits, block_logits = [], []
        for segment in rows.segments:
            cache, start = segment.cache, segment.cache[0].offset
            truth = cache[0].truth if cache[0].truth is not None else self.truth
            ar = [] if segment.ar is None else _ints(segment.ar)
            ids = [] if segment.blocks is None else segment.blocks.tolist()
            blocks = []
            for block, depth in zip(ids, segment.depths, strict=False):
                # A block sees the rows before its anchor, and is no use if these are wrong.
                right = ar[:depth] == truth[start : start + depth]
                count = min(len(block), self.config.block_size - 1) if ar else len(block) - 1
                guesses = self._guess(truth, block, start + depth, count, seen_right=right)
                blocks.append(Block(start + depth, block, guesses))
                # Rows whose guess must not be used say the same wrong id.
                block_logits += self._one_hot([*guesses, *[0] * (len(block) - count)])
            kind = "both" if ar and blocks else "verify" if ar else "draft"
            self.log.append(Forward(kind, start, ar, blocks))
            self._write(ar, sum(map(len, ids)), cache)
            ar_logits += self._ar_logits(len(ar), cache)
        width = self.config.vocab_size
        return (
            mx.array(np.array(ar_logits, np.float32).reshape(-1, width)),
            mx.array(np.array(block_logits, np.float32).reshape(-1, width)),
        )

    def start(self, outputs: list[mx.array], waiting: Sequence[Prepared]) -> None:
        mx.async_eval(outputs)

    def first_not_finite(self) -> str | None:
        return None

    # ------------------------------------------------------------------------------ the script

    def row(self, history: Sequence[int]) -> np.ndarray:
        """AR logits [vocab_size] after `history`, when every layer holds just that."""
        return self._row([history] * self.config.num_hidden_layers)

    def _row(self, layers: Sequence[Sequence[int]]) -> np.ndarray:
        seen = repr((self.salt, [list(layer) for layer in layers])).encode()
        digest = hashlib.blake2b(seen, digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        return 2 * rng.standard_normal(self.config.vocab_size, dtype=np.float32)

    def _ar_logits(self, n: int, cache: list[FakeCache]) -> list[np.ndarray]:
        return [
            self._row([layer.ids[: layer.offset - n + 1 + j] for layer in cache]) for j in range(n)
        ]

    def _guess(
        self, truth: list[int], block: list[int], start: int, count: int, seen_right: bool
    ) -> list[int]:
        """Right guesses, where the pattern has it, for a well-formed block at the right place."""
        masks = [self.config.mask_token_id] * (len(block) - 1)
        well_formed = block[1:] == masks and truth[start : start + 1] == block[:1]
        well_formed = well_formed and seen_right
        guesses = []
        for position in range(start + 1, start + 1 + count):
            true = truth[position] if position < len(truth) else position
            right = next(self._rights) and well_formed
            guesses.append((true if right else true + 1) % self.config.vocab_size)
        return guesses

    def _one_hot(self, guesses: list[int]) -> list[np.ndarray]:
        return list(np.eye(self.config.vocab_size, dtype=np.float32)[guesses])

    def _write(self, ar: list[int], n_diffusion: int, cache: list[FakeCache]) -> None:
        for layer in cache:
            self._step()
            layer.write([*ar, *[DIFFUSION] * n_diffusion])
            self._step()
            layer.trim(n_diffusion)

    def _step(self) -> None:
        self._steps += 1
        if self._steps == self.interrupt_at:
            raise KeyboardInterrupt


def _ints(ids: mx.array) -> list[int]:
    assert ids.ndim == 1
    values: list[int] = ids.tolist()
    return values


def plain_decoding(
    model: FakeModel,
    prompt: Sequence[int],
    max_tokens: int,
    eos: frozenset[int] = frozenset(),
    sampling: Sampling | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> list[int]:
    """What one-token-at-a-time decoding must write, worked out without the engine."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_tokens:
        logits = mx.array(model.row(ids))[None]
        for processor in processors:
            logits = processor(mx.array(ids), logits)
        if sampling is None:
            token = int(np.argmax(np.array(logits[0])))
        else:
            token = int(choose(logits, len(ids), sampling).item())
        ids.append(token)
        if token in eos:
            break
    return ids[len(prompt) :]
