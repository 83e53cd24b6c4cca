"""Building the demo: both rounds of drafting, and the numerics of the evaluation."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.device.probe import Probe
from recipes.demo import build, evaluate

pytestmark = pytest.mark.full


def test_the_second_round_goes_on_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: runs.append(command))
    build.train_drafting(tmp_path, tmp_path / "out", ["--iters", "3"])

    def last(command: list[str], flag: str) -> str:
        return command[max(i for i, word in enumerate(command) if word == flag) + 1]

    first, second = runs
    assert last(first, "--model") == str(tmp_path / "base")
    assert last(second, "--model") == last(first, "--output")
    assert last(second, "--output") == str(tmp_path / "out")
    assert last(first, "--data") != last(second, "--data")
    assert [last(run, "--learning-rate") for run in runs] == ["1.2e-3", "6e-4"]
    assert [last(run, "--iters") for run in runs] == ["3", "3"]


def test_each_round_has_its_share_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ROUNDS", (build.Round(3, ""), build.Round(5, "")))
    build.write_corpus(tmp_path, count=8, seed=0)
    whole, first, second = (
        (tmp_path / folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        for folder in ("data", "drafting-1", "drafting-2")
    )
    assert (first, second) == (whole[:3], whole[:5])


def test_a_finished_checkpoint_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["build", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="exists already"):
        build.main()


@pytest.mark.parametrize(
    ("classes", "numerics"), [(((1,),), "fast"), (((1,), (8, 16)), "exact"), ((), "fast")]
)
def test_the_evaluation_is_exact_where_several_rows_agree(
    classes: tuple[tuple[int, ...], ...], numerics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(classes, fused=(), disagreement=0.1, cost_ms={1: 1.0, 8: 1.1, 16: 1.2})

    def cached_probe(model: Any) -> Probe:
        return probe

    monkeypatch.setattr(evaluate, "cached_probe", cached_probe)
    assert evaluate.best_numerics(None) == numerics
