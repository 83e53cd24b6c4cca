"""Reads a prompt into a KV cache, in chunks whose borders do not depend on who else is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..rows import Cache, Rows
from .sequence import Request

if TYPE_CHECKING:
    from .engine import Runner

# Bytes of MLX's unused buffers that prefill leaves to decoding, which would allocate them again in
# its first cycles. Where there are more, as after a long prompt, all are given back.
RETAINED_CACHE_BYTES = 64 << 20


class Prefill:
    """All of a prompt but its last id, the first anchor, on its way into the cache.

    Chunks end at multiples of `prefill_step_size`, counted from the start of the text, so that the
    same ids are read by the same passes however much of them the cache held before. A KV cache is
    quantized at such ends alone, for what is read behind sees it so: smaller chunks do not.

    Attributes:
        done: whether all is read.
    """

    def __init__(self, runner: Runner, request: Request, cache: Cache):
        self._runner, self._request, self._cache = runner, request, cache
        self._ids = mx.array(request.prompt)
        self._start = cache[0].offset
        self._read, self._total = 0, len(request.prompt)
        self._say = request.on_progress or (lambda done, total: None)
        self.done = False

    def chunk(self, most: int | None = None) -> None:
        """Read the next chunk, of `most` ids where row counts are free; waits for the device."""
        if not self._read:
            self._say(0, self._total)
        step = self._request.prefill_step_size
        if self._read < self._total - 1:
            at = self._start + self._read
            size = step - at % step
            if most is not None and not self._request.exact_chunk:
                size = min(size, most)
            ids = self._ids[self._read : min(self._read + size, self._total - 1)]
            self._runner.forward(Rows.verify(ids, self._cache))
            # Only the cache is evaluated: no logits are computed, nor the last layer's MLP.
            whole = (at + ids.size) % step == 0 or self._read + ids.size == self._total - 1
            if self._request.quantization is not None and whole:
                self._request.quantization.apply(self._cache)
            mx.eval([layer.state for layer in self._cache])
            if mx.get_cache_memory() > RETAINED_CACHE_BYTES:
                mx.clear_cache()
            self._read += ids.size
            self._say(self._read, self._total)
        if self._read >= self._total - 1:
            self.done = True
            self._say(self._total, self._total)


def prefill(runner: Runner, request: Request, cache: Cache) -> None:
    """Read the whole prompt."""
    reading = Prefill(runner, request, cache)
    while not reading.done:
        reading.chunk()
