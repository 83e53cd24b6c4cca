"""The GPU proof's jobs run, and tell near-ties from faults, on a model that behaves like a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_inputs, gpu_jobs
from benchmarks.gpu_proof import comparison_line, cost_line, faults_of
from benchmarks.scripted import ScriptedDrafts, every_length
from orthrus_mlx import engine, numerics
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


def test_near_ties_are_reported_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    result = do("lossless")
    assert list(faults_of(result)) == []
    for row in result["rows"]:
        assert row["prompts"] == 2
        assert row["differences"] == [] or row["numerics"] == "fast"
    assert any(row["near_ties"] for row in result["rows"])


def test_a_broken_engine_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    row_kernels.probed(on_a_gpu(monkeypatch))

    def one_short(cache: list[Any], length: int) -> None:
        for layer in cache:
            layer.trim(max(0, layer.offset - length - 1))

    monkeypatch.setattr(engine, "cut_cache", one_short)
    found = list(faults_of(do("lossless", max_tokens=16)))
    assert any("NOT LOSSLESS in exact mode" in fault for fault in found)
    assert any("no near-ties" in fault for fault in found)


def test_what_exactness_costs_is_timed() -> None:
    result = do("cost", count=3, max_tokens=12, budget=600.0)
    ways = {(row["numerics"], row["mode"]) for row in result["rows"]}
    assert ways == {(n, m) for n in ("exact", "fast") for m in ("ar", "two-pass", "one-pass")}
    assert all("tokens/s" in cost_line(row) for row in result["rows"])
