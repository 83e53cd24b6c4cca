"""Costs that answers contradict are measured again; good ones stay, however slow the reader."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthrus_mlx import BatchEngine, batches, mlx_generate, prepare
from orthrus_mlx.decoding import batch, sequence
from orthrus_mlx.decoding.cost_model import Costs
from orthrus_mlx.decoding.watch import Watch
from orthrus_mlx.device import calibrate as calibration
from orthrus_mlx.device import calibrate_batch, measured
from orthrus_mlx.device.calibrate import device_costs, stored_costs
from tests.api.texts import byte_tokenizer
from tests.lossless.fake_model import plain_decoding
from tests.schedule.test_calibration import Clock, Timed, flat

BLOCK, PROMPT, LENGTH = 8, [3, 1, 4], 120


class Stage:
    """A fake model whose passes take the time that they say, and what is kept of it on disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(folder))
        self.clock, self.folder, self.measurements = Clock(), folder, 0
        monkeypatch.setattr(sequence, "time", self.clock)
        monkeypatch.setattr(calibration, "time", self.clock)
        for module in (batch, batches):
            ticking = partial(batch.Batch, clock=self.clock.perf_counter)
            monkeypatch.setattr(module, "Batch", ticking)
        monkeypatch.setattr(calibration, "calibrate", self.calibrate)
        self.model = Timed(self.clock, flat, BLOCK)
        self.expected = plain_decoding(self.model, PROMPT, LENGTH)
        self.new_process(monkeypatch)

    def calibrate(self, *given: Any) -> Costs:
        self.measurements += 1
        return calibrate(*given)

    def new_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(calibration, "_doubts", type(calibration._doubts)())
        monkeypatch.setattr(measured, "_known", {})

    def keep(self, costs: Costs) -> None:
        """Have costs on disk, whatever they are."""
        key = calibration._key(self.model, BLOCK)
        measured.store("costs", key, costs, calibration._encode)

    def answer(self, right: bool = True, pause: float = 0.0, **options: Any) -> None:
        """Write an answer and check its ids."""
        self.model.passes = 0
        self.model.script([*PROMPT, *self.expected], [right])
        ids = []
        for token in mlx_generate(self.model, PROMPT, [], LENGTH, **options):
            ids.append(token)
            self.clock.now += pause
        assert ids == self.expected


calibrate = calibration.calibrate


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path / "cache", monkeypatch)


SIZES = (1, 2, 3, 4, 5, 6, 8)
PAIRS = ((1, 3), (1, 4), (1, 5), (1, 7), (8, 8), (6, 10))
# What the passes of `flat` cost.
GOOD = Costs(
    dict.fromkeys(SIZES, 0.002) | {1: 0.001},
    dict.fromkeys(SIZES[1:], 0.002),
    dict.fromkeys(PAIRS, 0.002),
    plain=0.001,
)
NONSENSE = {
    "a slow AR step": replace(
        GOOD, plain=0.003, verify={n: max(0.003, c) for n, c in GOOD.verify.items()}
    ),
    "drafts for nothing": replace(GOOD, draft=dict.fromkeys(SIZES[1:], 0.0), fused={}),
    "verifying for nothing": replace(
        GOOD, verify=dict.fromkeys(SIZES, 0.001), draft=dict.fromkeys(SIZES[1:], 0.001), fused={}
    ),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_stored_nonsense_is_measured_again_after_one_answer(stage: Stage, what: str) -> None:
    stage.keep(NONSENSE[what])
    stage.answer()
    assert stage.measurements == 0 and not list(stage.folder.glob("costs-*"))
    said: list[tuple[int, int]] = []
    stage.answer(probe_progress_callback=lambda *step: said.append(step))
    assert stage.measurements == 1 and said[-1][0] == said[-1][1]
    found = stored_costs(stage.model, BLOCK)
    assert found is not None and found.of_ar_step() == pytest.approx(0.001)
    assert found.draft == pytest.approx(GOOD.draft)
    for _ in range(3):
        stage.answer()
    assert stage.measurements == 1 and list(stage.folder.glob("costs-*"))


def test_it_is_measured_again_once_in_a_process_and_a_few_times_in_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that always measures what is not so."""
    wrong = NONSENSE["a slow AR step"]

    def measure(*_: Any) -> Costs:
        stage.measurements += 1
        return replace(wrong)

    monkeypatch.setattr(calibration, "calibrate", measure)
    for _ in range(5):
        stage.answer()
    assert stage.measurements == 2 and not list(stage.folder.glob("costs-*"))
    for _ in range(4):
        stage.new_process(monkeypatch)
        for _ in range(3):
            stage.answer()
    assert stage.measurements == 2 + 2 and list(stage.folder.glob("costs-*"))


@pytest.mark.parametrize("cost", [0.0, -0.001, math.nan, math.inf])
def test_stored_costs_that_no_pass_can_have_are_measured_again(stage: Stage, cost: float) -> None:
    """Whoever wrote them; no answer could show it."""
    for wrong in (replace(GOOD, plain=cost), replace(GOOD, verify=GOOD.verify | {8: cost})):
        stage.keep(wrong)
        measured._known.clear()
        assert stored_costs(stage.model, BLOCK) is None
    stage.answer()
    assert stage.measurements == 1 and stored_costs(stage.model, BLOCK) is not None


@pytest.mark.parametrize("times", [-(10**9), math.nan, math.inf, "many", None, [1]])
def test_a_count_of_doubts_that_cannot_be_is_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, times: Any
) -> None:
    key = calibration._key(stage.model, BLOCK)
    measured.store("doubts", key, times, lambda n: {"times": n})
    for _ in range(6):
        stage.new_process(monkeypatch)
        stage.keep(NONSENSE["a slow AR step"])
        stage.answer()
    assert list(stage.folder.glob("costs-*"))  # the last ones stay


def test_the_next_start_measures_what_the_last_answer_contradicted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.keep(NONSENSE["a slow AR step"])
    stage.answer()
    stage.new_process(monkeypatch)
    device_costs(stage.model, BLOCK)
    assert stage.measurements == 1


@pytest.mark.parametrize("pause", [0.0, 0.0001, 0.0004, 0.001, 0.03])
@pytest.mark.parametrize("right", [True, False])
def test_a_slow_reader_drops_no_good_costs(stage: Stage, pause: float, right: bool) -> None:
    stage.keep(GOOD)
    for _ in range(4):
        stage.answer(right, pause)
    assert stage.measurements == 0 and list(stage.folder.glob("costs-*"))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "ar"},
        {"mode": "parallel"},
        {"calibrate": False},
        {"logits_processors": [lambda ids, logits: logits]},
    ],
)
def test_answers_that_were_not_planned_by_them_drop_nothing(
    stage: Stage, options: dict[str, Any]
) -> None:
    stage.keep(NONSENSE["a slow AR step"])
    stage.answer(**options)
    assert list(stage.folder.glob("costs-*")) and not list(stage.folder.glob("doubts-*"))


def test_a_machine_that_is_slow_for_a_while_drops_no_good_costs(stage: Stage) -> None:
    """All takes three times as long, and passes over many rows five times."""
    stage.keep(GOOD)
    stage.model.price = lambda rows: flat(rows) * (3 if rows.n_ar + rows.n_diff == 1 else 5)
    for right in (True, False):
        stage.answer(right)
    assert stage.measurements == 0 and list(stage.folder.glob("costs-*"))


class Passed:
    """As much of a sequence as a `Watch` looks at."""

    error = None

    def __init__(self) -> None:
        self.stats = type("Stats", (), {"cycles": 0})()
        self.decided_at, self.last = 0.0, None


@given(
    st.integers(0, 1 << 32),
    st.lists(st.sampled_from([0.0, 0.0002, 0.0005, 0.001, 0.002, 0.5]), min_size=1, max_size=9),
)
def test_no_reader_makes_cycles_seem_dearer_than_they_are(seed: int, pauses: list[float]) -> None:
    """Neither if the device works on meanwhile, nor if it waits for the reader."""
    from orthrus_mlx.decoding.cycle import Cycle
    from orthrus_mlx.decoding.plan import AR_STEP, Plan

    draw, now, text = random.Random(seed), 0.0, Passed()
    watch, works_on = Watch(GOOD, lambda: None), draw.random() < 0.5
    for n, pause in zip(range(200), itertools.cycle(pauses), strict=False):
        plan = AR_STEP if not n or draw.random() < 0.3 else Plan(draft_rows=4, n_drafts=3)
        cost, begun = (0.001 if plan.is_ar else 0.004), now
        now += pause
        started = now
        # A cycle begins where the last one ended, or only once its step does.
        now = max(now, begun + cost) if works_on and n else now + cost
        text.stats.cycles, text.decided_at = n + 1, now
        drafts = [0] * plan.n_drafts
        text.last = Cycle(plan, n, drafts, None, None, None, None)
        watch.saw(text, started, now)
        assert not watch.contradicts
    assert not watch.drafted or max(watch.drafted) < 1.4


def test_a_batch_drops_costs_only_when_nobody_waits(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_batch, "time", stage.clock)
    monkeypatch.setattr(calibrate_batch, "calibrate_batch", add := Several())
    stage.keep(NONSENSE["a slow AR step"])
    with BatchEngine(stage.model, byte_tokenizer(tmp_path), prefix_memory=0) as engine:

        def write(*budgets: int) -> None:
            numbers = [engine.add(PROMPT, budget, eos_token_ids=()) for budget in budgets]
            ids: dict[int, list[int]] = {number: [] for number in numbers}
            while engine.running:
                for number, response, error in engine.step():
                    assert error is None and response is not None
                    ids[number].append(response.token)
            stage.model.passes = 0
            assert list(ids.values()) == [stage.expected[:budget] for budget in budgets]

        write(20, 20)
        first = engine.add(PROMPT, LENGTH, eos_token_ids=())
        for _ in range(15):
            engine.step()
        second = engine.add(PROMPT, LENGTH, eos_token_ids=())
        engine.step()
        engine.cancel(first)  # it was alone, and contradicts them
        assert list(stage.folder.glob("costs-*")) and engine.running
        for _ in range(15):
            engine.step()
        engine.cancel(second)
        assert stage.measurements == 0 and add.calls == 1
        write(LENGTH)
        assert stage.measurements == 0 and not list(stage.folder.glob("costs-*"))
        write(30)
        assert stage.measurements == 1 and add.calls == 2  # they are scaled to the others
        write(30, 30)
        assert stage.measurements == 1 and add.calls == 2


class Several:
    """What several sequences cost, by what one does."""

    calls = 0

    def __call__(self, model: Any, costs: Costs, progress: Any = None) -> Costs:
        self.calls += 1
        step = costs.of_ar_step()
        return replace(costs, batch={n: step * n for n in (2, 4, 8, 16)}, each=step / 100)


def test_prepare_measures_costs_that_were_dropped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orthrus_mlx.generate

    monkeypatch.setattr(orthrus_mlx.generate, "cached_probe", lambda *_, **__: None)
    stage.keep(NONSENSE["a slow AR step"])
    prepare(stage.model)
    stage.answer()
    prepare(stage.model)
    assert stage.measurements == 1
