"""Calibration measures what is asked, and stops where nothing can pay."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orthrus_mlx.decoding import engine
from orthrus_mlx.decoding.cost_model import plan_cost
from orthrus_mlx.decoding.plan import Plan, RowCounts
from orthrus_mlx.decoding.scheduler import Auto, policies
from orthrus_mlx.device import calibrate as calibration
from orthrus_mlx.device.calibrate import ROWS, beyond_noise, calibrate, layouts
from orthrus_mlx.device.measured import within
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
    monkeypatch.setattr(calibration, "time", clock)
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
            if cache[0].offset == calibration.CONTEXT:  # all but the steps behind a first one
                self.clock.now += 0.01
            return super().verify(ids, cache)

    found = calibrate(Slow(clock, lambda rows: 0.001 if rows == 1 else 0.002), 8)
    assert found.verify[1] == pytest.approx(0.011)
    assert found.of_ar_step() == found.plain == pytest.approx(0.001)
    assert within(found, RowCounts(verify=(8,))).of_ar_step() == pytest.approx(0.002)


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
        for table in (found.verify, found.draft, found.fused, {1: found.of_ar_step()}):
            assert list(table.values()) == pytest.approx([seconds] * len(table))


@pytest.mark.parametrize("stretch", [90, 130, 170])
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
    assert 0.2 < sum(begun) / len(begun) < 0.8
    plain = found.of_ar_step()
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


def slow_host(monkeypatch: pytest.MonkeyPatch, clock: Clock, two: float, one: float) -> None:
    """Have it take so many seconds more in two-pass and other draft cycles."""
    finish = engine._Run.finish

    def slowly(self: Any, cycle: Any) -> Any:
        if not cycle.plan.is_ar:
            clock.now += two if cycle.plan.draft_rows else one
        return finish(self, cycle)

    monkeypatch.setattr(engine._Run, "finish", slowly)


@pytest.mark.parametrize(
    ("two", "one"), [(3e-3, 3e-3), (-4e-4, 0.0), (-4e-4, 2e-4), (-15e-4, -1e-4)]
)
def test_what_the_host_takes_between_passes_is_part_of_a_cycle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, two: float, one: float
) -> None:
    """Where a model is small, that can be as much as the passes themselves.

    Or less than nothing: the verify pass is prepared while the draft pass runs.
    """

    def price(rows: int) -> float:
        return 0.001 if rows == 1 else 0.002

    expected = calibrate(Timed(clock, price), 8)
    slow_host(monkeypatch, clock, two, one)
    found = calibrate(Timed(clock, price), 8)
    assert found.of_ar_step() == pytest.approx(expected.of_ar_step())
    for plan, takes in (
        (Plan(draft_rows=4), max(two, -0.001 + one)),  # no more than half a pass
        (Plan(block_rows=4, n_drafts=3), one),
        (Plan(n_drafts=3), one),
    ):
        more = plan_cost(found, plan, 3) - plan_cost(expected, plan, 3)
        assert more == pytest.approx(takes)


def test_what_two_passes_save_is_not_taken_from_one_alone(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_host(monkeypatch, clock, -4e-4, 0.0)
    found = calibrate(Timed(clock, lambda rows: 0.001 if rows == 1 else 0.002), 2)
    assert found.verify[2] == pytest.approx(0.002)  # no one-pass cycle in blocks of two tells
    assert found.draft[2] == pytest.approx(0.0016)


def test_what_noise_hides_is_not_told() -> None:
    noise = random.Random(1)
    for count in (6, 16):
        blurred = [[noise.gauss(0, 1) for _ in range(count)] for _ in range(200)]
        assert sum(beyond_noise(values) == 0 for values in blurred) > 100
        assert all(beyond_noise([3 + v for v in values]) > 1 for values in blurred)
        assert all(beyond_noise([v - 3 for v in values]) < -1 for values in blurred)


@pytest.mark.parametrize(("block_size", "places"), [(2, range(30, 70)), (8, range(10, 300, 31))])
def test_a_stall_anywhere_changes_no_price(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, block_size: int, places: range
) -> None:
    slow_host(monkeypatch, clock, 0.003, 0.003)
    for stalled in places:
        stalls = itertools.chain(itertools.repeat(0.0, stalled), [0.1], itertools.repeat(0.0))

        def price(rows: int, stalls: Iterator[float] = stalls) -> float:
            return (0.001 if rows == 1 else 0.002) + next(stalls)

        found = calibrate(Timed(clock, price, block_size), block_size)
        assert found.of_ar_step() == pytest.approx(0.001)
        assert found.verify[2] + found.draft[2] == pytest.approx(0.007), stalled
        assert list(found.fused.values()) == pytest.approx([0.005] * len(found.fused))


@pytest.mark.parametrize("count", [6, 16])
def test_a_stall_hides_nothing(count: int) -> None:
    assert beyond_noise([2.0 + n / 10 for n in range(count - 1)] + [99.0]) > 2.0


def test_two_passes_cost_what_they_take_where_one_would_seem_cheaper_than_a_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_host(monkeypatch, clock, -4e-4, -4e-4)
    found = calibrate(Timed(clock, lambda rows: 0.001 if rows == 1 else 0.0012), 8)
    assert found.verify[8] == found.of_ar_step()
    assert found.verify[8] + found.draft[8] == pytest.approx(0.002)


def test_where_passes_are_slow_no_cycles_are_timed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_host(monkeypatch, clock, 0.005, 0.005)  # would be seen
    found = calibrate(Timed(clock, lambda rows: 0.03), 4)
    for cost in (*found.verify.values(), *found.draft.values(), *found.fused.values()):
        assert cost == pytest.approx(0.03)


def test_no_pass_that_writes_seems_cheaper_than_a_plain_step(clock: Clock) -> None:
    found = calibrate(Timed(clock, lambda rows: 0.002 if rows == 1 else 0.001), 4)
    assert {*found.verify.values(), *found.fused.values()} == {found.of_ar_step()}


def test_calibration_leaves_no_trace_in_the_cache_it_measures_with(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Timed(clock, lambda rows: 0.001)
    calibrate(model, 8)
    starts = {forward.start for forward in model.log if forward.kind != "prefill"}
    assert min(starts) == calibration.CONTEXT and max(starts) <= calibration.CONTEXT + 60
    monkeypatch.setattr(calibration, "cycle_times", lambda *_: [0.001])  # which write
    model = Timed(clock, lambda rows: 0.001)
    calibrate(model, 8)
    starts = {forward.start for forward in model.log if forward.kind != "prefill"}
    assert starts == {calibration.CONTEXT}


def test_time_is_real_outside_of_tests() -> None:
    assert calibration.time is time
