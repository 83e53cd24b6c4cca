"""How far the host runs ahead of the device within one pass."""

from __future__ import annotations

from collections import deque
from typing import Any

import mlx.core as mx

MAX_BYTES_IN_FLIGHT = 32 << 20  # of a pass, before the host waits for the device


class InFlight:
    """A pass that is submitted to the device a few layers at a time.

    The device begins while the host prepares the rest. What a submission computes stays in memory
    until the device has finished it, so a host that is a whole pass ahead would hold all of the
    pass: hundreds of megabytes at real sizes. Once `MAX_BYTES_IN_FLIGHT` is exceeded, the host
    waits before it submits more. The device always keeps one submission to work on.
    """

    def __init__(self) -> None:
        self._begun = mx.get_active_memory()
        self._submitted: deque[Any] = deque()

    def submit(self, *arrays: Any) -> None:
        """Have the device compute these, after what was submitted before."""
        while (
            len(self._submitted) > 1 and mx.get_active_memory() - self._begun > MAX_BYTES_IN_FLIGHT
        ):
            mx.eval(self._submitted.popleft())
        mx.async_eval(*arrays)
        self._submitted.append(arrays[0])
