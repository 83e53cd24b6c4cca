"""Calibration measures what the policies run, and stops where nothing can pay."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from orthrus_mlx.decoding.cost_model import policies
from orthrus_mlx.device import calibrate as calibration
from orthrus_mlx.device.calibrate import calibrate
from orthrus_mlx.rows import Rows
from tests.lossless.fake_model import FakeModel


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Timed(FakeModel):
    """A fake model on a clock of its own: a pass takes the seconds that `price(rows)` says."""

    def __init__(self, clock: Clock, price: Callable[[Rows], float], block_size: int = 32, **more):
        super().__init__(block_size=block_size, **{"max_positions": 1024, **more})
        self.clock, self.price, self.passes = clock, price, 0

    def forward(self, rows: Rows) -> Any:
        self.passes += 1
        assert self.passes < 3000
        self.clock.now += self.price(rows)
        return super().forward(rows)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calibration, "time", clock)
    return clock


def flat(rows: Rows) -> float:
    """One row is cheap, more cost twice as much, however many they are."""
    return 0.001 if rows.n_ar + rows.n_diff == 1 else 0.002


@pytest.mark.parametrize("block_size", [2, 5, 16, 32, 64])
def test_every_policy_is_measured(clock: Clock, block_size: int) -> None:
    found = calibrate(Timed(clock, flat, block_size), block_size)
    assert found.of_ar_step() == pytest.approx(0.001)
    assert max(found.verify) == max(found.draft) == block_size
    assert all(cost == pytest.approx(0.002) for cost in found.draft.values())
    kinds = {policy.kind for policy in policies(found, "auto", block_size)}
    assert kinds if block_size > 2 else not kinds


def test_a_stall_prices_nothing_wrongly(clock: Clock) -> None:
    """Now and then a pass takes a hundred times as long."""
    count = 0

    def stalling(rows: Rows) -> float:
        nonlocal count
        count += 1
        return flat(rows) * (100 if count % 37 == 0 else 1)

    found = calibrate(Timed(clock, stalling, 16), 16)
    for table in (found.verify, found.draft, found.fused):
        assert max(table.values()) == pytest.approx(0.002)


def test_where_each_row_costs_the_same_large_sizes_are_not_measured(clock: Clock) -> None:
    """As on a CPU: they would take long, and could not pay."""
    model = Timed(clock, lambda rows: 0.01 * (rows.n_ar + rows.n_diff), 64)
    found = calibrate(model, 64)
    assert max(found.draft) < 32
    assert clock.now < 12


def test_no_pass_that_writes_seems_cheaper_than_an_ar_step(clock: Clock) -> None:
    def odd(rows: Rows) -> float:
        return 0.002 if rows.n_ar == 1 and not rows.n_diff else 0.001

    found = calibrate(Timed(clock, odd, 16), 16)
    for table in (found.verify, found.fused):
        assert min(table.values()) >= found.of_ar_step()


def test_a_short_context_is_enough(clock: Clock) -> None:
    model = Timed(clock, flat, 4, max_positions=24)
    assert calibrate(model, 4).of_ar_step() > 0
    assert max(forward.start for forward in model.log) < 24


def slow(rows: Rows) -> float:
    """As `flat`, of a model so large that there is no time to time all sizes again anyway."""
    return 20 * flat(rows)


def busy(clock: Clock, start: float, end: float) -> Callable[[Rows], float]:
    """Every pass takes three times as long between two moments, larger ones five times."""

    def price(rows: Rows) -> float:
        times = (3 if rows.n_ar + rows.n_diff == 1 else 5) if start <= clock.now < end else 1
        return slow(rows) * times

    return price


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0, 2.0])
def test_what_a_busy_machine_measured_is_measured_again(clock: Clock, share: float) -> None:
    """However long it was busy from the start on, if it is quiet in time."""
    quiet = calibrate(Timed(clock, slow, 32), 32)
    busy_until, clock.now = share * clock.now, 0.0
    found = calibrate(Timed(clock, busy(clock, 0.0, busy_until), 32), 32)
    assert found.of_ar_step() == pytest.approx(0.02)
    assert found.verify == pytest.approx(quiet.verify)
    assert found.draft == pytest.approx(quiet.draft)
    assert found.fused == pytest.approx(quiet.fused)


@pytest.mark.parametrize("seed", range(6))
def test_a_machine_that_stays_busy_starts_too(clock: Clock, seed: int) -> None:
    """What it keeps is wrong, but no nonsense."""
    calibrate(Timed(clock, slow, 32), 32)
    takes, clock.now, draw = clock.now, 0.0, random.Random(seed)

    def noisy(rows: Rows) -> float:
        return slow(rows) * draw.choice([1, 4, 9]) if clock.now > 0.3 * takes else slow(rows)

    found = calibrate(Timed(clock, noisy, 32), 32)
    assert clock.now < 2 * 9 * takes
    assert found.of_ar_step() == pytest.approx(0.02)
    for table in (found.verify, found.draft):
        costs = [round(table[n], 9) for n in sorted(table)]
        assert costs == sorted(costs)
    assert min(found.draft.values()) >= calibration.LEAST_DRAFT * found.of_ar_step()


def test_no_draft_pass_is_a_gift(clock: Clock) -> None:
    """A difference of two timings can come to nothing."""
    draft: list[Rows] = []

    def stalling(rows: Rows) -> float:
        """Of four rows, a verify pass stalls where no draft pass was just before it."""
        alone, draft[:] = not draft, [rows] if not rows.n_ar else []
        return flat(rows) * (2 if alone and rows.n_ar == 4 else 1)

    found = calibrate(Timed(clock, stalling, 16), 16)
    assert found.verify[4] == pytest.approx(0.004)
    assert found.draft[4] == pytest.approx(calibration.LEAST_DRAFT * found.of_ar_step())


def test_what_is_odd_whenever_it_is_timed_is_believed(clock: Clock) -> None:
    """Few rows run other kernels than many, and those may be the slower ones."""

    def odd(rows: Rows) -> float:
        return 0.005 if 2 <= rows.n_ar + rows.n_diff <= 3 else flat(rows)

    found = calibrate(Timed(clock, odd, 16), 16)
    assert clock.now < 3
    assert found.verify[3] == pytest.approx(0.005) and found.verify[4] == pytest.approx(0.002)
