"""`orthrus-mlx train` from flags and files to a checkpoint that the other commands load."""

import os
import signal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orthrus_mlx import load
from orthrus_mlx.cli.app import app
from orthrus_mlx.cli.train import shown
from orthrus_mlx.training.events import Note, Regenerated, Started, Trained
from orthrus_mlx.training.run import Run

SMALL = [
    "--block-size",
    "4",
    "--iters",
    "4",
    "--batch-size",
    "4",
    "--anchors",
    "3",
    "--steps-per-report",
    "2",
]


def invoke(*args: Any) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, args)])


def test_a_run_from_flags_and_a_file(base_dir: Path, data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {data_dir}\nval_prompts: 1\nval_max_tokens: 4\nblock_size: 16\n")
    result = invoke("-c", config, "--model", base_dir, "--output", tmp_path / "out", *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    kinds = ["Training: 155 texts", "Iter 0: val loss", "Iter 2: train loss", "Iter 4: train loss"]
    kinds += ["Iter 4: val loss", "Wrote "]
    assert [line[: len(kind)] for line, kind in zip(lines, kinds, strict=True)] == kinds
    assert "tokens/cycle" in lines[1]
    assert "tokens/s" in lines[2]
    assert "peak memory" in lines[2]
    assert "base tensors are unchanged, sha256" in lines[-1]
    model, _ = load(tmp_path / "out")
    assert model.config.block_size == 4  # the flag counts more than the file


def test_an_interrupted_run_says_how_to_go_on(
    base_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(run: Run, *args: Any) -> None:
        whole_report(run, *args)
        os.kill(os.getpid(), signal.SIGINT)

    whole_report = Run._report
    monkeypatch.setattr(Run, "_report", report)
    given = ["--model", base_dir, "--data", data_dir, "--output", tmp_path / "out", *SMALL]
    given += ["--steps-per-eval", 0]
    result = invoke(*given)
    assert result.exit_code == 130
    assert "Iter 2: saved to" in result.stdout
    assert "--resume" in result.stderr
    monkeypatch.undo()
    result = invoke(*given, "--resume")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Resuming at step 2")
    load(tmp_path / "out")


@pytest.mark.parametrize("missing", ["model", "data", "output"])
def test_what_is_needed_is_asked_for(missing: str) -> None:
    given = {"model": "base", "data": "data", "output": "out"}
    del given[missing]
    result = invoke(*(part for name, value in given.items() for part in (f"--{name}", value)))
    assert result.exit_code == 2
    assert f"--{missing}" in result.output


def test_an_error_is_one_line(base_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "n1"}\nnonsense\n')
    result = invoke("--model", base_dir, "--data", tmp_path / "data", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "train.jsonl:2 cannot be read as JSON" in result.stderr.replace("\n", "")


def test_a_terminal_shows_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=StringIO(), force_terminal=True, width=70, color_system=None)
    monkeypatch.setattr("orthrus_mlx.cli.console.answer_console", lambda: screen)
    monkeypatch.setattr("orthrus_mlx.cli.console.is_screen", lambda console: True)
    with shown() as report:
        report(Regenerated("train", 3, 9))
        report(Started(step=0, iters=8, n_train=5, n_valid=0, trained_parameters=1, parameters=5))
        report(Trained(2, 8, 1.5, 1e-3, 10.0, 100.0, 0.1))
        report(Note("[all] of it"))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "Regenerating train" in text
    assert "3/9" in text
    assert "Training" in text
    assert "2/8" in text
    assert "Iter 2: train loss 1.5000" in text
    assert "[all] of it" in text  # no markup
