"""KV caches of earlier texts, found again by the longest prefix that a new prompt shares with one.

What they hold decides how much of a prompt is read, never what is answered.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import GenerationError
from ..files import check_tensor_file
from ..rows import Cache
from .cache import tell, trim


class Held:
    """The cache of one text.

    Attributes:
        cache: its layers.
        ids: what they hold.
        chunks: (ids, chunk size) that were read in chunks alone that exact numerics may rely on;
            (0, 0) for none.
        used: when it was last used, as a number that grows.
    """

    def __init__(
        self, cache: Cache, ids: Sequence[int] | np.ndarray, chunks: tuple[int, int] = (0, 0)
    ):
        self.cache, self.chunks = cache, chunks
        self.ids = np.array(ids, np.int32)
        self.used = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, spare slots included."""
        return sum(layer.nbytes for layer in self.cache)

    def shared(self, prompt: np.ndarray) -> int:
        """How many ids it begins with that `prompt` begins with too."""
        n = min(len(self.ids), len(prompt))
        differ = np.nonzero(self.ids[:n] != prompt[:n])[0]
        return int(differ[0]) if differ.size else n


class PrefixStore:
    """Caches within a budget in bytes; what was used least recently goes first.

    Attributes:
        budget: bytes that idle caches may have together.
    """

    TAKEN = 0.5  # share of a cache that a prompt must want, to have it rather than a copy

    def __init__(self, budget: int):
        self.budget = budget
        self._idle: list[Held] = []
        self._busy: list[Held] = []
        self._clock = itertools.count(1)

    def __len__(self) -> int:
        return len(self._idle)

    @property
    def nbytes(self) -> int:
        """Bytes of all idle caches."""
        return sum(held.nbytes for held in self._idle)

    def find(
        self, prompt: Sequence[int], make: Callable[[], Cache], chunk: int = 0
    ) -> tuple[Cache, int]:
        """A cache that holds the start of `prompt`, for the caller alone, and how much of it.

        One id at least is left to read. An idle cache is taken as it is if most of it is wanted;
        of others just the shared slots are copied. `give_back` or `forget` it in the end.

        Args:
            prompt: ids.
            make: makes an empty cache.
            chunk: take only what was read in chunks of so many ids, for exact numerics; 0: all.
        """
        ids = np.array(prompt, np.int32)[:-1]

        def usable(held: Held) -> int:
            shared = held.shared(ids)
            if not chunk:
                return shared
            read, size = held.chunks
            return min(shared, read) // chunk * chunk if size == chunk else 0

        found = max(
            [*self._idle, *self._busy], key=lambda h: (usable(h), h in self._idle), default=None
        )
        n = usable(found) if found else 0
        if found is None or not n:
            cache, chunks = make(), (0, 0)
        elif found in self._idle and n >= self.TAKEN * len(found.ids):
            self._idle.remove(found)
            cache, chunks = found.cache, found.chunks
            trim(cache, n)
        else:
            cache, chunks = fork(found.cache, n, make()), found.chunks
            found.used = next(self._clock)
        held = Held(cache, ids[:n], (min(n, chunks[0]), chunks[1]))
        self._busy.append(held)
        return cache, n

    def grown(self, cache: Cache, ids: Sequence[int], chunk: int = 0) -> None:
        """Note what a cache in use holds by now, for prompts that may share it.

        Args:
            cache: one that `find` gave.
            ids: what it holds at least.
            chunk: as in `find`, if all of these ids were read in such chunks.
        """
        held = self._of(cache)
        if held is not None:
            held.ids = np.array(ids, np.int32)
            held.chunks = (len(ids) // chunk * chunk, chunk) if chunk else held.chunks

    def give_back(self, cache: Cache, ids: Sequence[int]) -> None:
        """Keep a cache that `find` gave, which holds the first of `ids` now."""
        held = self._of(cache)
        if held is None:
            return
        self._busy.remove(held)
        held.ids = np.array(ids[: cache[0].offset], np.int32)
        held.chunks = (min(held.chunks[0], len(held.ids)), held.chunks[1])
        self.keep(held)

    def keep(self, held: Held) -> None:
        """Keep an idle cache, and let go of what exceeds the budget or is the start of another."""
        if not len(held.ids):
            return
        held.used = next(self._clock)
        self._idle.append(held)
        # Of two caches of which one holds the start of the other, the longer does for both.
        for other in list(self._idle):
            short, long = sorted((held, other), key=lambda h: len(h.ids))
            same = short.chunks[0] <= long.chunks[0] or not short.chunks[0]
            if other is not held and same and long.shared(short.ids) == len(short.ids):
                long.used = max(held.used, other.used)
                self._idle.remove(short)
                if short is held:
                    break
        while self._idle and self.nbytes > self.budget:
            self._idle.remove(min(self._idle, key=lambda h: h.used))

    def forget(self, cache: Cache | None = None) -> None:
        """Do not keep a cache that `find` gave; None for all of them."""
        self._busy = [h for h in self._busy if cache is not None and h.cache is not cache]

    def clear(self) -> None:
        """Give back the memory of all idle caches."""
        self._idle.clear()

    def _of(self, cache: Cache) -> Held | None:
        return next((held for held in self._busy if held.cache is cache), None)

    def save(self, folder: Path, key: str) -> None:
        """Write the idle caches to files in `folder`, for a store with the same `key`."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("prefix-*.safetensors"):
            file.unlink()
        # A cache with a key is this machine's part of one, and no use without the others.
        whole = [held for held in self._idle if not hasattr(held.cache, "key")]
        for n, held in enumerate(sorted(whole, key=lambda h: h.used)):
            path = folder / f"prefix-{n:04}.safetensors"
            save_cache(path, held.cache, held.ids.tolist(), key, held.chunks)

    def load(self, folder: Path, key: str, own: Cache) -> None:
        """Take up what `save` wrote, as far as it fits a model whose empty cache is `own`."""
        for path in sorted(folder.glob("prefix-*.safetensors")):
            if (held := load_cache(path, key, own)) is not None:
                self.keep(held)


def fork(cache: Cache, n: int, empty: Cache) -> Cache:
    """A copy of the first `n` tokens of a cache, in `empty`; waits for the device."""
    for layer, other in zip(empty, cache, strict=True):
        layer.keys, layer.values = (mx.contiguous(a[:, :, :n]) for a in (other.keys, other.values))
        layer.offset = n
    # Once it is computed nothing refers to the other arrays, which stay writable in place.
    mx.eval([(layer.keys, layer.values) for layer in empty])
    tell(empty, "copy", cache, n)
    return empty


def save_cache(
    path: Path, cache: Cache, ids: Sequence[int], key: str, chunks: tuple[int, int] = (0, 0)
) -> None:
    """Write a cache, and the ids that it holds, to a file `*.safetensors`."""
    from mlx_lm.models.cache import save_prompt_cache

    facts = {"key": key, "ids": json.dumps(list(ids)), "chunks": json.dumps(chunks)}
    save_prompt_cache(str(path), cache, facts)


def load_cache(path: Path, key: str, own: Cache) -> Held | None:
    """What `save_cache` wrote, if it fits a model whose empty cache is `own`; else None."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, load_prompt_cache

    try:
        check_tensor_file(path, GenerationError)
        loaded: Any = load_prompt_cache(str(path), return_metadata=True)
        cache, facts = loaded
        ids = json.loads(facts["ids"])
        read, size = json.loads(facts.get("chunks", "[0, 0]"))
        fits = facts["key"] == key and len(cache) == len(own)
        kinds = (KVCache, QuantizedKVCache)  # the key says which
        if fits and all(type(c) in kinds and c.offset == len(ids) for c in cache):
            return Held(cache, ids, (int(read), int(size)))
    except Exception:  # whatever is wrong with the file, doing without costs only time
        pass
    return None
