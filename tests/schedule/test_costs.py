"""Calibration measures what is asked, stops where nothing can pay, and needs no disk."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import costs as costs_module
from orthrus_mlx import engine
from orthrus_mlx.costs import ROWS, calibrate, device_costs, layouts, within
from orthrus_mlx.plans import Plan, RowCounts
from orthrus_mlx.schedule import Auto, policies
from orthrus_mlx.speeds import Costs, plan_cost
from tests.lossless.fake_model import FakeCache, FakeModel


class Timed(FakeModel):
    """A fake model on a clock of its own: a pass takes what `price(rows)` says."""

    def __init__(self, clock: Clock, price: Any, block_size: int = 32):
        super().__init__(block_size=block_size, max_positions=1024)
        self.clock, self.price = clock, price
        self.measured: list[tuple[str, int]] = []

    def verify(self, ids: Any, cache: list[FakeCache]) -> Any:
        self._take("verify", ids.size)
        return super().verify(ids, cache)

    def draft(self, ids: Any, cache: list[FakeCache]) -> Any:
        self._take("draft", ids.size)
        return super().draft(ids, cache)

    def verify_and_draft(self, ids: Any, n_ar: int, depths: Any, cache: list[FakeCache]) -> Any:
        self._take("fused", ids.size)
        return super().verify_and_draft(ids, n_ar, depths, cache)

    def _take(self, kind: str, rows: int) -> None:
        assert len(self.measured) < 2000
        self.measured.append((kind, rows))
        self.clock.now += self.price(rows)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(costs_module, "time", clock)
    return clock


def test_calibration_measures_every_size_of_the_block(clock: Clock) -> None:
    found = calibrate(Timed(clock, lambda rows: 0.001 if rows == 1 else 0.002), 16)
    assert set(found.verify) == {1, 2, 4, 8, 15, 16}
    assert set(found.draft) == {2, 4, 8, 15, 16}
    alternating = {(1, 3), (1, 7), (1, 14)}
    assert set(found.fused) == {p for rows in ROWS for p in layouts(rows, 16)} | alternating
    assert found.verify[1] == pytest.approx(0.001)
    assert found.fused[16, 48] == pytest.approx(0.002)


def test_a_plain_step_is_timed_as_the_engine_runs_it(clock: Clock) -> None:
    class Slow(Timed):
        def verify(self, ids: Any, cache: list[FakeCache]) -> Any:
            if cache[0].offset == costs_module.CONTEXT:  # all but the steps behind a first one
                self.clock.now += 0.01
            return super().verify(ids, cache)

    found = calibrate(Slow(clock, lambda rows: 0.001 if rows == 1 else 0.002), 8)
    assert found.verify[1] == pytest.approx(0.011)
    assert found.of_plain() == found.plain == pytest.approx(0.001)
    assert within(found, RowCounts(verify=(8,))).of_plain() == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("seconds", "slower", "passes"), [(0.001, 2, 40), (0.001, 6, 6), (0.02, 2, 40)]
)
def test_a_machine_that_is_slow_for_a_while_favours_no_size(
    clock: Clock, seconds: float, slower: float, passes: int
) -> None:
    def price(rows: int) -> float:
        return seconds * (slower if 20 < len(model.measured) < 20 + passes else 1)

    model = Timed(clock, price)
    found = calibrate(model, 32)
    assert {4, 8, 15, 16, 24, 32} <= set(found.draft) and (32, 64) in found.fused
    if seconds < 0.01:  # slower passes are timed less often
        for table in (found.verify, found.draft, found.fused, {1: found.of_plain()}):
            assert list(table.values()) == pytest.approx([seconds] * len(table))


@pytest.mark.parametrize("stretch", [150, 170, 250])
@pytest.mark.parametrize("seconds", [0.001, 0.008, 0.012])
def test_a_machine_that_is_slow_half_of_the_time_favours_no_size(
    clock: Clock, seconds: float, stretch: int
) -> None:
    """In stretches longer than a round, that begin and end anywhere in one."""
    begun: list[int] = []

    def price(rows: int) -> float:
        slow = len(model.measured) // stretch % 2
        begun.append(slow)
        return seconds * (1 + slow) * (1 if rows == 1 else 2)

    model = Timed(clock, price)
    found = calibrate(model, 32)
    assert sum(begun) > 0.3 * len(begun)
    plain = found.of_plain()
    for table, steps in ((found.verify, 2), (found.draft, 2), (found.fused, 2)):
        for rows, cost in table.items():
            if rows != 1:
                assert cost / plain == pytest.approx(steps, rel=0.15), rows


def test_calibration_stops_where_each_row_costs_the_same(clock: Clock) -> None:
    model = Timed(clock, lambda rows: 0.001 * rows)
    found = calibrate(model, 64)
    assert set(found.draft) == {2, 4, 8, 15}
    assert max(rows for _, rows in model.measured) == 15


@pytest.mark.parametrize(
    "price",
    [
        lambda rows: 1 if rows == 1 else 2.1,  # Metal without `gemv_wide`
        lambda rows: 0.5 + 0.5 * min(rows, 10),  # packed weights without `qmv_wide`
        lambda rows: 1 if rows == 1 else 0.95 + 0.265 * rows,  # the demo on a CPU
    ],
)
def test_calibration_goes_on_where_the_first_rows_cost_most(clock: Clock, price: Any) -> None:
    """Two and four rows cannot pay, or barely; larger blocks do."""
    found = calibrate(Timed(clock, lambda rows: 0.001 * price(rows)), 32)
    assert set(found.draft) == {2, 4, 8, 15, 16, 24, 32}


def test_what_is_measured_never_makes_a_loss_look_like_a_gain(clock: Clock) -> None:
    """Passes that draft beside a plain step are measured with more rows than verify passes."""
    model = Timed(clock, lambda rows: 0.001 * (1 if rows == 1 else 1.5 + rows / 2))
    found = calibrate(model, 32)
    assert max(found.verify) == 15 and (1, 14) in found.fused
    assert Auto(found, policies(found, "auto", 32)).policies == ()


def test_slow_passes_are_timed_once(clock: Clock) -> None:
    model = Timed(clock, lambda rows: 0.2)
    found = calibrate(model, 4)
    blocks = [kind for kind, rows in model.measured if rows > 1]
    # A warm-up and one pass each, and no whole cycles.
    assert blocks.count("fused") == 2 * len({sum(pair) for pair in found.fused})
    assert blocks.count("draft") == blocks.count("verify") == 2 * len(found.draft)
    assert len(model.measured) - len(blocks) <= 12  # and few plain steps


def test_what_the_host_takes_between_passes_is_part_of_a_cycle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model is small, that can be as much as the passes themselves.

    Or less than nothing: the verify pass is prepared while the draft pass runs.
    """
    finish = engine._Run.finish
    expected = calibrate(Timed(clock, lambda rows: 0.001), 8)
    for two_pass, one_pass in ((3e-3, 3e-3), (-4e-4, 0.0), (-4e-4, 2e-4), (-1e-3, -1e-4)):

        def host(self: Any, cycle: Any, two: float = two_pass, one: float = one_pass) -> Any:
            if not cycle.plan.plain:
                clock.now += two if cycle.plan.draft_rows else one
            return finish(self, cycle)

        monkeypatch.setattr(engine._Run, "finish", host)
        found = calibrate(Timed(clock, lambda rows: 0.001), 8)
        assert found.of_plain() == pytest.approx(expected.of_plain())
        for plan, takes in (
            (Plan(draft_rows=4), max(two_pass, -0.0005 + one_pass)),  # no more than half a pass
            (Plan(ahead_rows=4, n_drafts=3), one_pass),
            (Plan(n_drafts=3), one_pass),
        ):
            more = plan_cost(found, plan, 3) - plan_cost(expected, plan, 3)
            assert more == pytest.approx(takes)


def test_calibration_leaves_no_trace_in_the_cache_it_measures_with(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Timed(clock, lambda rows: 0.001)
    calibrate(model, 8)
    starts = {forward.start for forward in model.log if forward.kind != "prefill"}
    assert min(starts) == costs_module.CONTEXT and max(starts) <= costs_module.CONTEXT + 60
    monkeypatch.setattr(costs_module, "cycle_times", lambda *_: [0.001])  # which write
    model = Timed(clock, lambda rows: 0.001)
    calibrate(model, 8)
    starts = {forward.start for forward in model.log if forward.kind != "prefill"}
    assert starts == {costs_module.CONTEXT}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(costs_module, "calibrate", counted := Counted())
    counted.calls = 0
    return tmp_path / "cache"


class Counted:
    calls = 0

    def __call__(self, model: Any, block_size: int) -> Costs:
        Counted.calls += 1
        return Costs({1: 1.0, 8: 2.0}, {8: 2.5}, {(8, 8): 3.0})


def test_costs_are_measured_once_and_kept(folder: Path) -> None:
    Counted.calls = 0
    first, second = (device_costs(FakeModel(), 8) for _ in range(2))
    assert asdict(first) == asdict(second) and Counted.calls == 1
    device_costs(FakeModel(), 16)
    assert Counted.calls == 2  # another block size has other sizes to measure


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"verify": {"1": "fast"}}', json.dumps({"verify": {}}), "\0\0"]
)
def test_a_file_that_cannot_be_used_is_measured_again(folder: Path, content: str) -> None:
    Counted.calls = 0
    expected = device_costs(FakeModel(), 8)
    (file,) = folder.glob("costs-*.json")
    file.write_text(content)
    assert asdict(device_costs(FakeModel(), 8)) == asdict(expected) and Counted.calls == 2
    assert json.loads(file.read_text())["verify"] == {"1": 1.0, "8": 2.0}


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "file" / "cache"))
    assert device_costs(FakeModel(), 8).verify[1] == 1.0


def test_time_is_real_outside_of_tests() -> None:
    assert costs_module.time is time
