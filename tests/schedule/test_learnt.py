"""What drafts showed is kept for a model's next text, and a damaged file is as good as none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import mlx_generate
from orthrus_mlx.decoding.plan import DIFFUSION
from orthrus_mlx.decoding.scheduler import Evidence
from orthrus_mlx.device import calibrate as calibration
from orthrus_mlx.device.learnt import Learnt
from tests.lossless.fake_model import FakeModel, plain_decoding
from tests.schedule.test_scheduler import NOMINAL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "calibrate", lambda *_: NOMINAL)
    return tmp_path / "cache"


def seen() -> Evidence:
    evidence = Evidence(credit=3.0)
    for _ in range(20):
        evidence.add(DIFFUSION, 4, 4, chances=[0.9] * 4)
        evidence.add("copy", 3, 1)
    return evidence


def test_the_next_text_begins_with_it(folder: Path) -> None:
    learnt, evidence = Learnt(FakeModel()), seen()
    assert learnt.evidence() == Evidence()
    learnt.keep(evidence)
    found = Learnt(FakeModel()).evidence()
    assert found == evidence.of_another_text() != Evidence()
    found.add(DIFFUSION, 4, 0)
    Learnt(FakeModel()).begin(found)  # it is not empty
    assert found != evidence.of_another_text()
    empty = Evidence()
    Learnt(FakeModel()).begin(empty)
    assert empty == evidence.of_another_text()
    assert Learnt(FakeModel()).evidence() == evidence.of_another_text()


@pytest.mark.parametrize(
    "change",
    [
        {"counts": {DIFFUSION: [5.0, 1.0]}},
        {"counts": {DIFFUSION: [-1.0, 1.0]}},
        {"counts": {DIFFUSION: [1.0]}},
        {"counts": []},
        {"credit": float("nan")},
        {"credit": None},
        {"doubts": [1e300, 1.0]},
    ],
)
def test_what_cannot_be_is_not_believed(
    folder: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orthrus_mlx.device import measured

    Learnt(FakeModel()).keep(seen())
    (file,) = folder.glob("evidence-*.json")
    raw = {**json.loads(file.read_text()), **change}
    raw.pop(measured.DIGEST)
    file.write_text(json.dumps({**raw, measured.DIGEST: measured._digest(raw)}))
    assert Learnt(FakeModel()).evidence() == Evidence()
    file.write_text("{")
    assert Learnt(FakeModel()).evidence() == Evidence()


@pytest.mark.parametrize("right", [True, False])
def test_an_answer_is_kept_and_changes_no_ids(folder: Path, right: bool) -> None:
    prompt = [3, 1, 4]
    model = FakeModel(block_size=16)
    expected = plain_decoding(model, prompt, 80)
    for _ in range(3):
        model.script([*prompt, *expected], [right])
        assert list(mlx_generate(model, prompt, [], 80)) == expected
    low, _ = Learnt(model).evidence().rates(DIFFUSION)
    usual, _ = Evidence().rates(DIFFUSION)
    assert low < usual if right else low > usual


def test_other_modes_keep_nothing(folder: Path) -> None:
    model = FakeModel()
    for options in ({"mode": "ar"}, {"mode": "parallel"}, {"calibrate": False}):
        assert len(list(mlx_generate(model, [3, 1], [], 9, **options))) == 9
    assert not list(folder.glob("evidence-*.json"))
