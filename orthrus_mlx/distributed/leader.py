"""Rank 0's model: it runs passes as any model does, and tells the other ranks to run them too.

Invariant: a pass is told exactly when it starts here, and what is told starts here. Ranks would
otherwise wait inside passes that never come, or add up the parts of different ones.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ..checkpoint.config import ModelConfig
from ..checkpoint.read import ready
from ..decoding.interrupts import uninterrupted
from ..errors import DistributedError
from ..rows import Cache, Prepared, Rows
from .control import RACE
from .group import Group
from .sharded import ShardedModel


class Key:
    """What a KV cache is called among the ranks; when it is gone here, the others forget it."""

    _numbers = itertools.count(1)

    def __init__(self, dropped: deque[int]):
        self.number = next(Key._numbers)
        weakref.finalize(self, dropped.append, self.number)


class SharedCache(list[Any]):
    """A KV cache of which every rank holds its heads. A copy of the list has the same key."""

    key: Key
    model: LeadingModel

    def tell(self, what: str, *of: Any) -> None:
        """Have the other ranks do to their parts what was done to this one, but by a pass.

        `copy` takes the first tokens of another cache: (cache, tokens). `repeat` continues the
        cache with its own first tokens again: (how many, up to which length).
        """
        word = {"op": what, "to": self.key.number}
        if what == "copy":
            source, tokens = of
            self.model.tell(word | {"from": key_of(source).number, "tokens": tokens})
        else:
            read, length = of
            self.model.tell(word | {"read": read, "length": length})


def key_of(cache: Cache) -> Key:
    """The key of a cache.

    Raises:
        DistributedError: for one that the other ranks do not know.
    """
    if not isinstance(cache, SharedCache):
        raise DistributedError(
            "This KV cache was made or read on one machine, and each rank has to hold a part of "
            "it. Make one with `model.make_cache()`, and read the prompt again."
        )
    return cache.key


class LeadingModel(ShardedModel):
    """Rank 0's part of a model, which the others run along with it.

    Attributes:
        group: all ranks.
        several: what measurements of this model depend on beside it: ranks, engine, devices.
    """

    def __init__(self, config: ModelConfig, group: Group, number: int):
        super().__init__(config, group.comm)
        self.group, self.number = group, number
        self.several = (group.size, group.backend, *group.devices)
        self._dropped: deque[int] = deque()

    def make_cache(self) -> Cache:
        """A new KV cache, of which this rank holds its heads."""
        cache = SharedCache(super().make_cache())
        cache.key, cache.model = Key(self._dropped), self
        return cache

    def tell(self, word: dict[str, Any]) -> None:
        """Send a word about this model, and which caches are gone."""
        gone = [self._dropped.popleft() for _ in range(len(self._dropped))]
        self.group.tell({**word, "model": self.number, "gone": gone})

    def backbone(self, rows: Rows) -> mx.array:
        """As `Model.backbone`: the pass starts, here and elsewhere, unless it is only prepared."""
        for segment in rows.segments:
            key_of(segment.cache)
        if rows.prepared:
            return self._hidden(rows)
        with self._whole():
            self.tell(self.word(rows, [True] * len(rows.segments)))
            hidden = self._hidden(rows)
            self._begin(hidden)
        return hidden

    def start(self, outputs: list[mx.array], waiting: Sequence[Prepared]) -> None:
        """As `Model.start`; the other ranks hear of prepared passes now."""
        live: dict[int, tuple[Rows, set[int]]] = {}
        for rows, place in waiting:
            live.setdefault(id(rows), (rows, set()))[1].add(place)
        with self._whole():
            for rows, places in live.values():
                assert rows.hidden is not None
                self.tell(self.word(rows, [n in places for n in range(len(rows.segments))]))
                self._begin(rows.hidden)
            super().start(outputs, waiting)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is told in here also starts; if it cannot, the ranks part."""
        with uninterrupted():
            try:
                yield
            except BaseException as error:
                if isinstance(error, RuntimeError):
                    time.sleep(RACE)  # of a rank that is lost this process ends in here
                self.group.break_off()
                raise

    def _hidden(self, rows: Rows) -> mx.array:
        """Build a pass. Its ids reach the other ranks inside it: not all are known here yet."""
        rows.ids = from_rank_0(rows.ids.reshape(-1), self.group.comm, self.config.vocab_size)[None]
        hidden = super().backbone(rows)
        if rows.prepared:
            rows.hidden = hidden
        return hidden

    def _begin(self, hidden: mx.array) -> None:
        """Hand the whole pass to the device: the others run all of it, its last layer too."""
        self.group.last = hidden
        mx.async_eval(hidden)

    def word(self, rows: Rows, kept: Sequence[bool]) -> dict[str, Any]:
        """What the other ranks need to run a pass.

        Of a segment that is not kept, whose sequence was given up after the pass was prepared,
        nothing may be written to the cache: another sequence may have it by now.
        """
        parts = []
        for segment, start, keep in zip(rows.segments, rows.starts, kept, strict=True):
            layer = segment.cache[0]
            bits = getattr(layer, "bits", None)
            parts.append(
                {
                    "cache": key_of(segment.cache).number,
                    "start": start,
                    "ar": segment.n_ar,
                    "blocks": None if segment.blocks is None else list(segment.blocks.shape),
                    "depths": list(segment.depths),
                    "quantized": None if bits is None else [layer.group_size, bits],
                    "keep": keep,
                }
            )
        return {"op": "run", "layers": len(self.layers), "segments": parts}

    def set_dtype(self, dtype: mx.Dtype, *predicate: Any) -> None:
        """As `nn.Module.set_dtype`, on every rank.

        Raises:
            DistributedError: for a predicate, which cannot be sent.
        """
        if predicate:
            raise DistributedError("Over several machines set_dtype takes no predicate.")
        self.tell({"op": "dtype", "dtype": str(dtype).removeprefix("mlx.core.")})
        super().set_dtype(dtype)
        ready(self)


def from_rank_0(ids: mx.array, comm: Any, vocab_size: int) -> mx.array:
    """Rank 0's ids [n], on every rank."""
    told = mx.distributed.all_gather(ids.astype(mx.int32), group=comm)[: ids.size]
    # When a rank dies MLX returns whatever is in memory, and rows of embeddings far away would be
    # read: this process would crash before it can say what happened.
    return told % vocab_size
