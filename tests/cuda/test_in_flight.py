"""A pass is submitted part by part, and what is in flight stays small."""

from __future__ import annotations

from typing import Any

import pytest

from orthrus_mlx.cuda import in_flight
from orthrus_mlx.cuda.in_flight import MAX_BYTES_IN_FLIGHT, InFlight


class Device:
    """Computes nothing until it is waited for; each part takes `size` bytes until then."""

    def __init__(self, size: int):
        self.size = size
        self.under_way: list[Any] = []
        self.most = self.waits = 0

    def get_active_memory(self) -> int:
        return 10_000 + self.size * len(self.under_way)

    def async_eval(self, *arrays: Any) -> None:
        self.under_way.append(arrays[0])
        self.most = max(self.most, len(self.under_way))

    def eval(self, array: Any) -> None:
        assert array is self.under_way[0], "the oldest first"
        self.under_way.pop(0)
        assert self.under_way, "the device is never left without work"
        self.waits += 1


@pytest.mark.parametrize(
    ("size", "most"),
    [
        (1000, 12),
        (MAX_BYTES_IN_FLIGHT // 4, 5),
        (MAX_BYTES_IN_FLIGHT // 2 + 1, 2),
        (10 * MAX_BYTES_IN_FLIGHT, 2),
    ],
)
def test_the_host_waits_once_much_is_in_flight(
    monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    device = Device(size)
    monkeypatch.setattr(in_flight, "mx", device)
    parts = InFlight()
    for part in range(12):
        parts.submit([part], "what else it computes")
    assert device.most == most
    assert device.waits == 12 - len(device.under_way)


def test_all_that_is_submitted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(0)
    given: list[Any] = []
    monkeypatch.setattr(device, "async_eval", lambda *arrays: given.extend(arrays))
    monkeypatch.setattr(in_flight, "mx", device)
    parts = InFlight()
    parts.submit("hidden states", "caches")
    parts.submit("outputs")
    assert given == ["hidden states", "caches", "outputs"]
