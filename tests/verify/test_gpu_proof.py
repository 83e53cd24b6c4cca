"""The GPU proof's jobs run, and tell near-ties from faults, on a model that behaves like a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import gpu_inputs, gpu_jobs
from benchmarks.gpu_proof import (
    accepted_lengths,
    comparison_line,
    cost_line,
    difference_line,
    faults_of,
    next_job,
    print_result,
)
from benchmarks.scripted import ScriptedDrafts, every_length
from orthrus_mlx.decoding import sequence
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.model import Model
from tests.lossless import row_kernels

JOB: dict[str, Any] = {
    "model": "random",
    "packing": "bf16",
    "count": 2,
    "max_tokens": 40,
    "smoke": True,
    "budget": 60.0,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))


def do(kind: str, **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    gpu_jobs.run({**JOB, "kind": kind, **changes}, result.update)
    return result


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the jobs run a model whose bits depend on row counts."""
    model = row_kernels.build()
    prompts = gpu_inputs.random_prompts(2, 60)
    monkeypatch.setattr(gpu_jobs, "build", lambda job: (model, prompts, ()))
    costs = {n: 1.0 if n >= 16 else 50.0 for n in numerics.ROW_COUNTS}
    monkeypatch.setattr(numerics, "measure_costs", lambda *_: costs)
    return model


def test_the_script_leads_to_every_accepted_length() -> None:
    model = ScriptedDrafts.of(row_kernels.build(Model))
    answer = list(range(1, 60))
    model.script([0], answer, [2, 0, 3])
    assert [n for n, guess in enumerate(model.guesses) if guess != n] == [3, 4, 8]
    assert set(every_length(31, seed=0)) == set(range(32))
    assert isinstance(model, Model)


def test_lossless_on_this_cpu() -> None:
    result = do("lossless")
    assert list(faults_of(result)) == []
    assert len(result["rows"]) == 8
    for row in result["rows"]:
        assert row["same_tokens"] == row["tokens"] == 80
        assert "2/2 answers and 80/80 tokens the same" in comparison_line(row)


@pytest.mark.full
def test_near_ties_are_reported_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    result = do("lossless")
    assert list(faults_of(result)) == []
    for row in result["rows"]:
        assert row["prompts"] == 2
        assert row["differences"] == [] or row["numerics"] == "fast"
    assert any(row["near_ties"] for row in result["rows"])
    others = [row["other_class"] for row in result["rows"] if "other_class" in row]
    used = result["probe"]["row_counts"]["verify"]
    assert {used, *others} == {rows for rows in result["probe"]["classes"] if rows[-1] > 1}
    assert len(others) >= 4 and any("rows 2-4 " in comparison_line(row) for row in result["rows"])


def test_a_broken_engine_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    row_kernels.probed(on_a_gpu(monkeypatch))

    def one_short(cache: list[Any], length: int) -> None:
        for layer in cache:
            layer.trim(max(0, layer.offset - length - 1))

    monkeypatch.setattr(sequence, "trim", one_short)
    found = list(faults_of(do("lossless", max_tokens=16)))
    assert any("NOT LOSSLESS in exact mode" in fault for fault in found)
    assert any("no near-ties" in fault for fault in found)


def test_exact_mode_comes_first_when_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, True, False])
    monkeypatch.setattr(gpu_jobs.Clock, "left", lambda self: next(looks))
    answered = {row["numerics"]: row["prompts"] for row in do("lossless", max_tokens=8)["rows"]}
    assert answered == {"exact": 2, "fast": 1}


@pytest.mark.full
def test_time_starts_after_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    probe, clock = gpu_jobs.take_probe, gpu_jobs.Clock
    monkeypatch.setattr(gpu_jobs, "take_probe", lambda *a: (steps.append("probe"), probe(*a))[1])
    monkeypatch.setattr(gpu_jobs, "Clock", lambda s: (steps.append("clock"), clock(s))[1])
    for kind in ("lossless", "cost"):
        do(kind, max_tokens=4)
    assert steps == ["probe", "clock"] * 2


@pytest.mark.full
def test_two_rounds_are_timed_whatever_they_take() -> None:
    result = do("cost", max_tokens=8, budget=0.0)
    assert [row["answers"] for row in result["rows"]] == [2] * 6


def test_accepted_lengths_are_counted() -> None:
    assert accepted_lengths([4, 2, 2], cycles=5) == "3 of 4 accepted lengths seen"
    assert accepted_lengths([0, 0], cycles=5) == "1 of 3 accepted lengths seen"
    assert accepted_lengths([], cycles=5) == "no drafts"


def test_one_job_of_a_packing_compiles_its_kernels_for_the_others(tmp_path: Path) -> None:
    waiting = [(n, {"packing": packing}) for n, packing in enumerate(["8bit", "8bit", "4bit"])]
    file = tmp_path / "result.json"
    running: Any = [SimpleNamespace(job={"packing": "8bit"}, file=file)]
    assert next_job(waiting, []) == 0
    assert next_job(waiting, running) == 2
    assert next_job(waiting[:2], running) is None
    file.write_text("{}")  # it has probed
    assert next_job(waiting[:2], running) == 0


def test_only_packings_compared_with_themselves_need_an_exact_mode(
    capsys: pytest.CaptureFixture[str],
) -> None:
    probe = {"seconds": 1, "classes": [[1]], "fused": [], "disagreement": 0.0, "row_counts": "no."}
    job = {**JOB, "packing": "float32"}
    result: dict[str, Any] = {"job": {**job, "kind": "torch"}, "rows": [], "probe": probe}
    assert list(faults_of(result)) == []
    print_result(result)
    assert "no exact mode" in capsys.readouterr().out
    assert any(
        "NO EXACT MODE" in f for f in faults_of({**result, "job": {**job, "kind": "lossless"}})
    )


def test_a_difference_from_torch_has_a_gap_wherever_it_stands() -> None:
    model, prompt = row_kernels.build(Model), [1, 2, 3]
    sampling = gpu_jobs.Sampling()
    answer = gpu_jobs.decode_answer(model, prompt, (), 6, sampling, mode="ar", keep_logits=True)
    other = [*answer.ids[:4], (answer.ids[4] + 1) % 50, 0]
    known = gpu_jobs.first_difference(0, 3, answer, other, sampling, 0.0)
    found = gpu_jobs.judged(model, 0, prompt, answer.ids, other, 0.0)
    assert known is not None and found is not None
    assert found.position == 4
    assert found.gap == pytest.approx(known.gap, abs=1e-4)
    assert gpu_jobs.judged(model, 0, prompt, other, other, 0.0) is None
    short = gpu_jobs.judged(model, 0, prompt, other, other[:4], 0.0)
    assert short is not None
    assert difference_line(short.to_dict()).endswith("one had ended")


@pytest.mark.full
def test_what_exactness_costs_is_timed() -> None:
    result = do("cost", count=3, max_tokens=12, budget=600.0)
    ways = {(row["numerics"], row["mode"]) for row in result["rows"]}
    assert ways == {(n, m) for n in ("exact", "fast") for m in ("ar", "two-pass", "one-pass")}
    assert all("tokens/s" in cost_line(row) for row in result["rows"])
