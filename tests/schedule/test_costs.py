"""Costs are measured once and kept, and need no disk."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.decoding.cost_model import Costs
from orthrus_mlx.device import calibrate as calibration
from orthrus_mlx.device.calibrate import device_costs
from tests.lossless.fake_model import FakeModel


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "calibrate", counted := Counted())
    counted.calls = 0
    return tmp_path / "cache"


class Counted:
    calls = 0

    def __call__(self, model: Any, block_size: int, progress: Any = None) -> Costs:
        Counted.calls += 1
        return Costs({1: 1.0, 8: 2.0}, {8: 2.5}, {(8, 8): 3.0}, plain=0.9)


def test_costs_are_measured_once_and_kept(folder: Path) -> None:
    Counted.calls = 0
    first, second = (device_costs(FakeModel(), 8) for _ in range(2))
    assert asdict(first) == asdict(second) and Counted.calls == 1
    device_costs(FakeModel(), 16)
    assert Counted.calls == 2  # another block size has other sizes to measure


WHOLE = {"verify": {"1": 1.0, "8": 2.0}, "draft": {"8": 2.5}, "fused": [[8, 8, 3.0]], "plain": 0.9}
DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "7",
    "{}",
    "\0\0",
    "[" * 100_000,
    b"\xff\xfe",
    '{"verify": {"1": "fast"}}',
    json.dumps({"verify": {}}),
    json.dumps(WHOLE),  # well formed, but nobody's
    *(
        json.dumps({**WHOLE, "sha256": "0", field: value})
        for field in WHOLE
        for value in (None, [], {}, "x", -1, 1e999, {"1": 1e-320}, {"-5": 1}, [[1]], {"1": [1]})
    ),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_file_that_cannot_be_used_is_measured_again(folder: Path, content: str | bytes) -> None:
    Counted.calls = 0
    expected = device_costs(FakeModel(), 8)
    (file,) = folder.glob("costs-*.json")
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert asdict(device_costs(FakeModel(), 8)) == asdict(expected) and Counted.calls == 2
    assert json.loads(file.read_text())["verify"] == {"1": 1.0, "8": 2.0}


@pytest.mark.parametrize("at", range(0, 240, 15))
def test_a_changed_figure_is_measured_again(folder: Path, at: int) -> None:
    Counted.calls = 0
    expected = device_costs(FakeModel(), 8)
    (file,) = folder.glob("costs-*.json")
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 1
    file.write_bytes(content)
    assert asdict(device_costs(FakeModel(), 8)) == asdict(expected) and Counted.calls == 2


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(folder: Path) -> None:
    expected = device_costs(FakeModel(), 8)
    (file,) = folder.glob("costs-*.json")
    file.unlink()
    os.mkfifo(file)
    assert asdict(device_costs(FakeModel(), 8)) == asdict(expected)


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "file" / "cache"))
    assert device_costs(FakeModel(), 8).verify[1] == 1.0
