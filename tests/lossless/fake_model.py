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
from orthrus_mlx.decoding.consensus import choose
from orthrus_mlx.decoding.engine import LogitsProcessor

DIFFUSION = -1  # what a diffusion row leaves in its slot


class FakeCache:
    """One layer: slots that are overwritten, and an offset that `trim` moves, like a KVCache's."""

    def __init__(self) -> None:
        self.slots: list[int] = []
        self.offset = 0

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

    kind: str  # "prefill", "verify", "draft", "both"
    start: int  # cached ids before it
    rows: list[int]  # its AR rows
    blocks: list[Block]


class FakeModel:
    """Implements the engine's `DualViewModel`.

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

    def hidden(self, ids: mx.array, cache: list[FakeCache]) -> mx.array:
        assert ids.ndim == 2 and ids.shape[0] == 1
        rows = _ints(ids[0])
        self.log.append(Forward("prefill", cache[0].offset, rows, []))
        self._write(rows, 0, cache)
        return mx.zeros((1, len(rows), self.config.hidden_size))

    def verify(self, ids: mx.array, cache: list[FakeCache]) -> mx.array:
        rows, start = _ints(ids), cache[0].offset
        self.log.append(Forward("verify", start, rows, []))
        self._write(rows, 0, cache)
        return self._ar_logits(len(rows), cache)

    def draft(self, ids: mx.array, cache: list[FakeCache]) -> mx.array:
        block, start = _ints(ids), cache[0].offset
        guesses = self._guess(block, start, len(block) - 1)
        self.log.append(Forward("draft", start, [], [Block(start, block, guesses)]))
        self._write([], len(block), cache)
        return self._one_hot(guesses)

    def verify_and_draft(
        self, ids: mx.array, n_ar: int, depths: Sequence[int], cache: list[FakeCache]
    ) -> tuple[mx.array, mx.array]:
        rows, rest, start = _ints(ids)[:n_ar], _ints(ids)[n_ar:], cache[0].offset
        length = len(rest) // len(depths)
        assert length * len(depths) == len(rest)
        blocks = []
        for i, depth in enumerate(depths):
            block = rest[i * length : (i + 1) * length]
            # A block sees the rows before its anchor, and is no use if these are wrong.
            right = rows[:depth] == self.truth[start : start + depth]
            count = min(length, self.config.block_size - 1)
            guesses = self._guess(block, start + depth, count, seen_right=right)
            blocks.append(Block(start + depth, block, guesses))
        self.log.append(Forward("both", start, rows, blocks))
        self._write(rows, len(rest), cache)
        ahead = mx.stack([self._one_hot(block.guesses) for block in blocks])
        return self._ar_logits(len(rows), cache), ahead

    # ------------------------------------------------------------------------------ the script

    def row(self, history: Sequence[int]) -> np.ndarray:
        """AR logits [vocab_size] after `history`, when every layer holds just that."""
        return self._row([history] * self.config.num_hidden_layers)

    def _row(self, layers: Sequence[Sequence[int]]) -> np.ndarray:
        seen = repr((self.salt, [list(layer) for layer in layers])).encode()
        digest = hashlib.blake2b(seen, digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        return 2 * rng.standard_normal(self.config.vocab_size, dtype=np.float32)

    def _ar_logits(self, n: int, cache: list[FakeCache]) -> mx.array:
        return mx.array(
            np.stack(
                [
                    self._row([layer.ids[: layer.offset - n + 1 + j] for layer in cache])
                    for j in range(n)
                ]
            )
        )

    def _guess(
        self, block: list[int], start: int, count: int, seen_right: bool = True
    ) -> list[int]:
        """Right guesses, where the pattern has it, for a well-formed block at the right place."""
        masks = [self.config.mask_token_id] * (len(block) - 1)
        well_formed = block[1:] == masks and self.truth[start : start + 1] == block[:1]
        well_formed = well_formed and seen_right
        guesses = []
        for position in range(start + 1, start + 1 + count):
            true = self.truth[position] if position < len(self.truth) else position
            right = next(self._rights) and well_formed
            guesses.append((true if right else true + 1) % self.config.vocab_size)
        return guesses

    def _one_hot(self, guesses: list[int]) -> mx.array:
        return mx.array(np.eye(self.config.vocab_size, dtype=np.float32)[guesses])

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
