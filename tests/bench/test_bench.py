"""`bench` counts and compares rightly, on tiny16 and a few tokens; times are never asserted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from orthrus_mlx import OrthrusError, load
from orthrus_mlx.cli.app import app
from orthrus_mlx.cli.bench_tables import histogram
from orthrus_mlx.tools import bench as bench_module
from orthrus_mlx.tools import bench_shapes
from orthrus_mlx.tools.bench import Options, Report, Run, Spread, _Clock, bench
from orthrus_mlx.tools.bench_plot import check_plot, plot
from tests import helpers
from tests.lossless.random_models import build

RUNNER = CliRunner()
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
QUICK = ["-m", "6", "--num-prompts", "2", "--rounds", "1", "--no-calibrate"]


@pytest.fixture(scope="module")
def loaded(tiny16_dir: Path) -> tuple[Any, Any]:
    return load(tiny16_dir)


@pytest.fixture(scope="module")
def report(loaded: tuple[Any, Any]) -> Report:
    model, tokenizer = loaded
    prompts = [(kind, tokenizer.encode(f"Tell me of {kind}")) for kind in ("code", "prose")]
    options = Options(max_tokens=8, rounds=2, calibrate=False, block_size=4)
    return bench(model, prompts, (), options, against=True)


def a_run(way: str, ids: list[int], speed: float = 1.0, kind: str = "code") -> Run:
    return Run(kind, 0, way, ids, 0.5, len(ids) / speed, 10, len(ids), len(ids))


def test_every_way_answers_every_prompt_in_every_round(report: Report) -> None:
    assert len(report.runs) == 2 * 2 * 4
    order = [run.way for run in report.runs]
    assert order[:4] != order[4:8] and set(order[:4]) == {"ar", "parallel", "auto", "mlx-lm"}
    assert all(len(run.ids) == 8 for run in report.runs)
    assert [s.kind for s in report.summaries] == ["code"] * 4 + ["prose"] * 4 + ["all"] * 4


def test_figures_are_those_of_the_runs(report: Report) -> None:
    plain, parallel = report.summary("all", "ar"), report.summary("all", "parallel")
    assert (plain.tokens_per_forward, plain.tokens_per_cycle) == (1.0, 1.0)
    assert plain.speed_up == Spread(1.0, 1.0, 1.0) and plain.acceptance == []
    assert parallel.tokens_per_cycle == pytest.approx(
        2 * (parallel.tokens_per_forward or 0), rel=0.2
    )
    assert 1 <= len(parallel.acceptance) <= 3  # a block of 4 has 3 drafts
    assert sorted(parallel.acceptance, reverse=True) == parallel.acceptance
    assert parallel.peak_memory > 1e6


def test_speed_up_is_paired_and_differences_are_counted() -> None:
    report = Report(["ar", "parallel"])
    for round_, (plain, fast, ids) in enumerate([(1.0, 2.0, [1, 2]), (10.0, 30.0, [1, 3])]):
        report.add(a_run("ar", [1, 2], plain), round_)
        report.add(a_run("parallel", ids, fast), round_)
    summary = report.summary("code", "parallel")
    assert summary.speed_up and summary.speed_up.median == pytest.approx(2.5)
    assert summary.differing == 1


def test_the_prompt_counts_for_the_first_token_and_not_for_the_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = _Clock()
    now = iter([10.0, 12.0, 13.0, 14.0, 16.0])
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock.start()  # 10
    clock.prompt_read(3, 6)  # 12
    clock.prompt_read(5, 6)  # 13: all but the first anchor
    clock.prompt_read(6, 6)
    clock.token()  # 14
    clock.prompt_read(6, 6)  # mlx-lm says so only then
    clock.token()
    assert clock.stop() == (4.0, 3.0)  # 16


def test_mlx_lm_clears_its_buffers_as_often_as_by_itself(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it clears behind the prompt is cleared before the clock is read; else it is no more."""
    events: list[str] = []
    clear, read = mx.clear_cache, _Clock.prompt_read

    def prompt_read(self: _Clock, done: int, total: int) -> None:
        events.append(f"{done}/{total}")
        read(self, done, total)

    monkeypatch.setattr(mx, "clear_cache", lambda: (events.append("clear"), clear())[1])
    monkeypatch.setattr(_Clock, "prompt_read", prompt_read)
    stock = bench_module._stock(loaded[0])
    bench_module.time_stock(stock, "code", 0, [1, 2, 3, 4], (), 2)
    assert events[events.index("3/4") - 1] == "clear"  # ours, for the one that follows
    assert events[events.index("4/4") - 2 : events.index("4/4")] == ["3/4", "clear"]


def test_an_answer_that_took_no_time_has_no_speed() -> None:
    assert Run("code", 0, "ar", [1], 0.1, 0.0, 1).speed is None
    assert Run("code", 0, "ar", [1, 2], 0.1, 0.5, 1).speed == 4.0
    assert Spread.of([None, None]) is None
    assert Spread.of([1.0, None, 2.0, 3.0]) == Spread(2.0, 1.5, 2.5)


def test_ctrl_c_keeps_what_is_known(loaded: tuple[Any, Any]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = Options(max_tokens=2, rounds=2, calibrate=False)
    report = bench(loaded[0], [("chat", [5, 6])], (), options, progress=stop)
    assert report.interrupted and len(report.runs) == 2
    assert report.summaries


def test_the_command_prints_json(tiny16_dir: Path) -> None:
    result = RUNNER.invoke(app, ["bench", str(tiny16_dir), *QUICK, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"model", "mlx", "device", "interrupted", "summaries", "runs"}
    assert {"kind", "way", "speed", "speed_up", "first_token", "acceptance", "differing"} <= set(
        found["summaries"][0]
    )
    assert len(found["runs"]) == 6 and "ids" not in found["runs"][0]
    assert {"round", "tokens", "drafted_at", "accepted_at", "peak"} <= set(found["runs"][0])


def test_the_command_prints_a_table_and_histograms(tiny16_dir: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("Hello!\nHow are you?\n")
    result = RUNNER.invoke(app, ["bench", str(tiny16_dir), *QUICK, "--prompts", str(questions)])
    assert result.exit_code == 0, result.output
    assert "parallel" in result.output and "file       |" in result.output


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_the_plot_is_drawn(report: Report, tmp_path: Path) -> None:
    plot(report, tmp_path / "speed.png", "tiny16")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OrthrusError, match=r"nowhere"):
        check_plot(tmp_path / "nowhere" / "speed.png")


@pytest.mark.skipif(HAS_MATPLOTLIB, reason="matplotlib is installed")
def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(OrthrusError, match=r"orthrus-mlx\[plot\]"):
        check_plot(Path("speed.png"))
    result = RUNNER.invoke(app, ["bench", "--plot", "speed.png"])
    assert result.exit_code == 1 and "pip install" in result.output


def test_histogram() -> None:
    assert histogram([1.0, 0.5, 0.0]) == "█▄ "


def test_shapes_report_every_pass_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_shapes.SHAPES, "qwen3-1.7b", (128, 128, 1, 8, True))
    monkeypatch.setattr(bench_shapes, "VOCAB", 96)
    monkeypatch.setattr(bench_shapes, "MASK", 95)
    arguments = "bench --shapes qwen3-1.7b --bits 4 --context 8,16 --rows 1,4 --rounds 1 --json"
    result = RUNNER.invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [(c["name"], c["rows"]) for c in found["costs"] if c["context"] == 16]
    assert names == [
        ("mlx-lm step", 1),
        ("ar step", 1),
        ("verify", 1),
        ("verify", 4),
        ("draft", 4),
        ("two-pass", 4),
        ("one-pass", 4),
        ("alternating", 4),
    ]
    assert found["costs"][0]["steps"] == 1.0
    assert set(found["prefill"]) == set(found["extra_memory"]) == {"8", "16"}


@pytest.mark.parametrize(
    "arguments",
    [
        "demo --shapes qwen3-8b",
        "--bits 4",
        "--shapes qwen3-8b --context 5,x",
        "--rounds 0",
        "no/such/model --concurrency 1,x",
        "--concurrency 2 --cycle one-pass",
        "--concurrency 2 --numerics exact",
        "--concurrency 2 --block-size 4",
        "--concurrency 2 --no-calibrate",
        "--concurrency 2 --plot speed.png",
    ],
)
def test_contradictions_are_refused(arguments: str) -> None:
    assert RUNNER.invoke(app, ["bench", *arguments.split()]).exit_code == 2


def test_many_answers_at_once_are_timed_beside_each_other() -> None:
    from orthrus_mlx.decoding.cost_model import NOMINAL
    from orthrus_mlx.tools.bench_batch import bench_batch

    config = helpers.random_config(block_size=4, vocab_size=67)
    model = build(config, helpers.random_weights(config))
    steps: list[tuple[int, int]] = []
    counted: list[list[int]] = []
    report = bench_batch(
        model,
        [[1, 2, 3], [4, 5]],
        (),
        [1, 3],
        lambda: NOMINAL,
        max_tokens=12,
        rounds=2,
        against=True,
        progress=lambda done, total: steps.append((done, total)),
        measured=lambda report: counted.append([s.count for s in report.speeds]),
    )
    assert counted == [[1, 1, 1], [1, 1, 1, 3, 3, 3]]  # each as soon as it is there
    assert [(s.count, s.way) for s in report.speeds] == [
        (n, way) for n in (1, 3) for way in ("mlx-lm", "plain", "auto")
    ]
    assert all(s.speed.median > 0 for s in report.speeds)
    assert [s.tokens_per_pass for s in report.speeds if s.way == "plain"] == [1.0, 1.0]
    assert steps[-1] == (18, 18)
    assert json.loads(json.dumps(report.to_dict()))["speeds"][0]["way"] == "mlx-lm"
