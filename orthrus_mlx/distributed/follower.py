"""What every rank but rank 0 does: load its part, run what it is told, leave when told to.

It plans nothing, samples nothing and counts nothing but its passes.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from typing import Any, NoReturn

import mlx.core as mx
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from ..checkpoint.read import ready
from ..device.probe import one_layer
from ..errors import DistributedError, OrthrusError, brief
from ..rows import Cache, Rows, Segment
from .control import Word, end_process
from .group import Group
from .leader import from_rank_0
from .sharded import ShardedModel


def follow(group: Group) -> NoReturn:
    """Follow rank 0 until it leaves; then this process ends."""
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches every rank on a terminal; what it means is rank 0's to say.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    models: dict[int, Part] = {}
    passes = 0
    try:
        while True:
            word = group.receive()
            match word["op"]:
                case "bye":
                    _drain(models)
                    group.links[0].send({"op": "left", **figures(passes)})
                    group.links[0].close()
                    if threading.current_thread() is not threading.main_thread():
                        os._exit(0)  # SystemExit would end this thread alone
                    raise SystemExit(0)
                case "load":
                    group.links[0].send(_load(group, word, models))
                case "report":
                    _drain(models)
                    group.links[0].send({"op": "report", **figures(passes)})
                case "unload":
                    models.pop(word["model"], None)
                case _:
                    passes += models[word["model"]].obey(word)
    except Exception as error:
        if isinstance(error, RuntimeError):  # MLX's, perhaps as another rank is dead: rank 0 knows
            time.sleep(1)
        group.links[0].send({"op": "failed", "why": f"{type(error).__name__}: {brief(error)}"})
        end_process()
    raise AssertionError("unreachable")


def figures(passes: int) -> Word:
    """What a rank has done, and the bytes of its arrays."""
    return {"passes": passes, "memory": mx.get_active_memory(), "peak": mx.get_peak_memory()}


def _drain(models: dict[int, Part]) -> None:
    for model in models.values():
        model.settle()


def _load(group: Group, word: Word, models: dict[int, Part]) -> Word:
    """Load a part; what went wrong is rank 0's to say."""
    from .part import digest, load_part

    group.alike = word["alike"]
    try:
        model, _ = load_part(group, word["path"], word["revision"], word["lazy"], word["number"])
    except OrthrusError as error:
        return {"op": "loaded", "error": str(error)}
    models[word["number"]] = Part(model, group)
    return {"op": "loaded", "digest": digest(model)}


class Part:
    """One rank's part of a model, and of its KV caches.

    Attributes:
        caches: by key; a layer's offset is where the next pass is to start, or further.
    """

    def __init__(self, model: ShardedModel, group: Group):
        self.model, self.group = model, group
        self.caches: dict[int, Cache] = {}
        self._running: mx.array | None = None
        self._take_up()

    def _take_up(self) -> None:
        """Have the model by its number of layers, with modules and weights as they are now."""
        one = one_layer(self.model)  # which rank 0 measures with
        self._models = {len(one.layers): one, len(self.model.layers): self.model}

    def obey(self, word: Word) -> int:
        """Do what a word says; how many passes that took."""
        for key in word["gone"]:
            self.caches.pop(key, None)
        match word["op"]:
            case "run":
                self.run(word)
                return 1
            case "copy":
                source, tokens = self._known(word["from"], word["tokens"]), word["tokens"]
                target = self.model.make_cache()
                for layer, other in zip(target, source, strict=True):
                    both = other.keys, other.values
                    layer.keys, layer.values = (mx.contiguous(a[:, :, :tokens]) for a in both)
                    layer.offset = tokens
                self.settle()
                mx.eval([(layer.keys, layer.values) for layer in target])
                self.caches[word["to"]] = target
            case "repeat":
                self._repeat(self._known(word["to"], word["read"]), word["read"], word["length"])
            case "dtype":
                self.model.set_dtype(getattr(mx, word["dtype"]))
                ready(self.model)
                self._take_up()
            case other:
                raise DistributedError(f"rank 0 has another version: it said {other!r}")
        return 0

    def run(self, word: Word) -> None:
        """Run a pass.

        It is built while the one before is still running, and starts after that: only then can it
        write to the caches in place. A pass with diffusion rows may start while it is built.
        """
        segments = [self._segment(part, word["layers"]) for part in word["segments"]]
        rows = Rows(segments)
        none = mx.zeros(rows.n_ar + rows.n_diff, mx.int32)
        rows.ids = from_rank_0(none, self.group.comm, self.model.config.vocab_size)[None]
        if rows.n_diff:
            self.settle()
        h = self._models[word["layers"]].backbone(rows)
        rows.drop_diffusion()
        self.settle()
        mx.async_eval(h)
        self._running = h

    def settle(self) -> None:
        """Wait for the pass that is running."""
        if self._running is not None:
            mx.eval(self._running)
            self._running = None

    def _segment(self, part: Word, layers: int) -> Segment:
        key, start = part["cache"], part["start"]
        if key not in self.caches and not start:
            self.caches[key] = [KVCache() for _ in range(layers)]
        cache = self._known(key, start)
        if not part["keep"]:
            cache = [_apart(layer) for layer in cache]
        for layer in cache:
            layer.offset = start
        if part["quantized"] and not isinstance(cache[0], QuantizedKVCache):
            group_size, bits = part["quantized"]
            cache[:] = [
                QuantizedKVCache(group_size, bits)
                if layer.keys is None
                else layer.to_quantized(group_size, bits)
                for layer in cache
            ]
        blocks = None if part["blocks"] is None else mx.zeros(part["blocks"], mx.int32)
        ar = mx.zeros(part["ar"], mx.int32) if part["ar"] else None
        return Segment(cache, ar, blocks, tuple(part["depths"]))

    def _known(self, key: int, tokens: int) -> Cache:
        """The cache of a key, which has to hold so many tokens."""
        cache = self.caches.get(key)
        if cache is None or cache[0].offset < tokens:
            raise DistributedError(
                f"the ranks are out of step: KV cache {key} is to hold {tokens} tokens and holds "
                f"{'none' if cache is None else cache[0].offset}"
            )
        return cache

    def _repeat(self, cache: Cache, read: int, length: int) -> None:
        """Continue a cache of `read` tokens with the same ones up to `length`."""
        times = -(-length // read)
        for layer in cache:
            layer.offset = read
            keys, values = (
                mx.concatenate([a[:, :, :read]] * times, axis=2)[:, :, read:length]
                for a in (layer.keys, layer.values)
            )
            layer.update_and_fetch(keys, values)
        self.settle()
        mx.eval([(layer.keys, layer.values) for layer in cache])


def _apart(layer: Any) -> Any:
    """A layer that shares its arrays with `layer`; writing to it leaves that one as it is."""
    other = copy.copy(layer)
    for name in ("keys", "values"):
        held: Any = getattr(layer, name)
        if isinstance(held, mx.array):
            held = held[...]
        elif held is not None:
            held = [part[...] for part in held]
        setattr(other, name, held)
    return other
