"""Calls that MLX has on one backend only, with stand-ins for MLX on Metal, new and old."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx.device import backend

GB = 10**9
M3 = {
    "device_name": "Apple M3 Max",
    "architecture": "applegpu_g15s",
    "memory_size": 64 * GB,
    "max_recommended_working_set_size": 48 * GB,
}


class FakeMlx(SimpleNamespace):
    """MLX as far as `backend` asks it; `limits` holds what was set."""

    DeviceType = mx.DeviceType

    def __init__(self, kind: Any = mx.DeviceType.gpu, **calls: Any):
        super().__init__(**calls)
        self.kind, self.limits = kind, list[int]()

    def default_device(self) -> Any:
        return SimpleNamespace(type=self.kind)

    def synchronize(self) -> None:
        pass


def on(monkeypatch: pytest.MonkeyPatch, fake: FakeMlx) -> FakeMlx:
    monkeypatch.setattr(backend, "mx", fake)
    return fake


def with_limit(fake: FakeMlx) -> FakeMlx:
    def set_wired_limit(limit: int) -> int:
        fake.limits.append(limit)
        return 5 if len(fake.limits) == 1 else 0

    fake.set_wired_limit = set_wired_limit
    return fake


def there(found: bool) -> Any:
    return SimpleNamespace(is_available=lambda: found)


def test_this_machine() -> None:
    assert backend.backend() in (backend.CPU, backend.METAL, backend.CUDA)
    assert backend.device_name() != ""
    with backend.wired():
        pass


def test_metal_of_this_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = with_limit(FakeMlx(device_info=lambda: M3, metal=there(True), cuda=there(False)))
    on(monkeypatch, fake)
    assert backend.backend() == "Metal"
    assert backend.device_name() == "Apple M3 Max"
    assert (backend.memory_bytes(), backend.recommended_bytes()) == (64 * GB, 48 * GB)
    with backend.wired():
        assert fake.limits == [48 * GB]
    assert fake.limits == [48 * GB, 5]


def test_calls_that_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(is_available=lambda: True, device_info=lambda: M3)
    on(monkeypatch, FakeMlx(metal=old))  # without device_info, set_wired_limit and cuda
    assert backend.backend() == "Metal"
    assert backend.recommended_bytes() == 48 * GB
    with backend.wired():
        pass


def test_a_limit_that_macos_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(limit: int) -> int:
        raise ValueError("Setting a wired limit larger than the maximum working set size")

    fake = FakeMlx(device_info=lambda: M3, metal=there(True), set_wired_limit=refuse)
    on(monkeypatch, fake)
    with backend.wired():
        pass


def test_the_limit_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = on(monkeypatch, with_limit(FakeMlx(device_info=lambda: M3, metal=there(True))))
    with pytest.raises(KeyError), backend.wired():
        raise KeyError
    assert fake.limits == [48 * GB, 5]


def test_other_backends_recommend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"device_name": "H100", "total_memory": 80 * GB}
    fake = with_limit(FakeMlx(device_info=lambda: info, metal=there(False), cuda=there(True)))
    on(monkeypatch, fake)
    assert backend.backend() == "CUDA"
    assert (backend.memory_bytes(), backend.recommended_bytes()) == (80 * GB, 0)
    with backend.wired():
        assert fake.limits == []
    fake = with_limit(FakeMlx(mx.DeviceType.cpu, device_info=lambda: M3, metal=there(True)))
    on(monkeypatch, fake)  # the CPU of a Mac
    assert backend.backend() == "CPU"
    assert (backend.memory_bytes(), backend.recommended_bytes()) == (0, 0)
    with backend.wired():
        assert fake.limits == []


def test_a_device_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no device")

    on(monkeypatch, FakeMlx(device_info=broken, metal=there(True)))
    monkeypatch.setattr(backend.platform, "processor", lambda: "")
    monkeypatch.setattr(backend.platform, "machine", lambda: "arm64")
    assert backend.device_info() == {}
    assert backend.device_name() == "arm64"
    assert backend.memory_bytes() == 0


def test_the_environment_can_ask_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    fake = FakeMlx(metal=there(True), set_default_device=chosen.append, cpu="the CPU")
    on(monkeypatch, fake)
    monkeypatch.delenv(backend.DEVICE, raising=False)
    backend.choose_device()
    assert chosen == []
    monkeypatch.setenv(backend.DEVICE, "cpu")
    backend.choose_device()
    assert chosen == ["the CPU"]
