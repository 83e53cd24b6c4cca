"""How far the host runs ahead of the device within one pass."""

from __future__ import annotations

from collections import deque
from typing import Any

import mlx.core as mx

PORTION = 2  # layers that are handed to the device together, but where `few_shapes.WIDE` says one
MOST = 32 << 20  # bytes that a pass may have in flight before the host waits for the device


class Ahead:
    """A pass that is handed to the device part by part.

    The device begins while the host prepares the rest. What a part computes stays in memory until
    the device is through with it, so that a host that is a whole pass ahead would hold all of the
    pass: hundreds of megabytes at real sizes. Once `MOST` bytes are in flight it waits before it
    hands over more, and always leaves the device one part to work on.
    """

    def __init__(self) -> None:
        self._begun = mx.get_active_memory()
        self._parts: deque[Any] = deque()

    def hand_over(self, *arrays: Any) -> None:
        """Have the device compute these, behind what it was given before."""
        while len(self._parts) > 1 and mx.get_active_memory() - self._begun > MOST:
            mx.eval(self._parts.popleft())
        mx.async_eval(*arrays)
        self._parts.append(arrays[0])
