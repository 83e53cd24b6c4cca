"""The seams of the engine: sequences side by side, other drafters, and where drafts come from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthrus_mlx import DecodeStats, Sampling, mlx_generate
from orthrus_mlx.decoding.batch import decode
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.decoding.drafters import BlockDrafter, CopyDrafter
from orthrus_mlx.decoding.engine import step
from orthrus_mlx.decoding.plan import AR_STEP, DIFFUSION, Plan
from orthrus_mlx.decoding.prefill import prefill
from orthrus_mlx.decoding.scheduler import make_scheduler
from orthrus_mlx.decoding.sequence import Request, Sequence

from .fake_model import FakeModel, plain_decoding
from .scenarios import Scenario, held, samplings, scenarios


class AnySource:
    """Every kind of cycle, and drafts of every source, in any order."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        draw = self.data.draw
        source = draw(st.sampled_from([*sorted(at_hand), DIFFUSION]))
        n = min(draw(st.integers(0, 8)), at_hand.get(source, 0), budget - 1)
        plans = [AR_STEP, Plan(n_drafts=n, source=source)]
        plans.append(Plan(n_drafts=n, block_rows=draw(st.integers(2, 8)), blocks=1, source=source))
        if budget > 1:
            rows = draw(st.integers(2, 8))
            plans.append(Plan(rows, min(rows - 1, budget - 1)))
        return draw(st.sampled_from(plans))

    def observe(self, plan: Plan, n_drafts: int, accepted: int, chances: Many[float] = ()) -> None:
        pass


class AnyDrafter:
    """Says the true next ids, wrong ones, or nothing, as it is told."""

    def __init__(self, source: str, truth: list[int], pattern: list[int]) -> None:
        self.source, self.truth, self._pattern = source, truth, itertools.cycle(pattern)

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        right = next(self._pattern)
        start = len(sequence.text)
        assert sequence.text == self.truth[:start], "a drafter reads what was decided, no more"
        ids = self.truth[start : start + right + 1]
        return [*ids[:right], *((i + 1) % 5 for i in ids[right:])][:limit]


@given(scenarios(least_tokens=1), st.lists(st.integers(0, 6), min_size=1, max_size=8), st.data())
def test_no_drafter_whatever_changes_the_ids(
    scenario: Scenario, pattern: list[int], data: st.DataObject
) -> None:
    cache = scenario.model.make_cache()
    drafters = [CopyDrafter(), AnyDrafter("told", scenario.full, pattern)]
    results = decode(scenario.model, scenario.request(), AnySource(data), cache, drafters=drafters)
    written = list(results)
    stats = written[-1][1]
    assert [decided.token for decided, _ in written] == scenario.expected
    assert held(cache) == scenario.full[:-1]
    assert sum(stats.drafted_by.values()) == stats.drafted_tokens
    assert sum(stats.accepted_by.values()) == stats.accepted_tokens


@st.composite
def requests(draw: st.DrawFn, model: FakeModel) -> tuple[Request, list[int]]:
    """A request to a model, and its whole text as AR decoding writes it."""
    vocab = model.config.vocab_size
    prompt = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=8))
    budget, sampling = draw(st.integers(1, 20)), draw(samplings())
    endless = plain_decoding(model, prompt, budget, sampling=sampling)
    ends = frozenset(
        endless[place]
        for place in draw(st.sets(st.integers(0, 19), max_size=2))
        if place < len(endless)
    )
    n = next((n for n, token in enumerate(endless, start=1) if token in ends), len(endless))
    request = Request(prompt, ends, budget, sampling, model.config.mask_token_id)
    return request, prompt + endless[:n]


@given(st.data())
def test_sequences_side_by_side_write_what_each_writes_alone(data: st.DataObject) -> None:
    """Each with its own prompt, budget, seed, ends and schedule; joining when it likes."""
    model = FakeModel(vocab_size=11, block_size=data.draw(st.integers(2, 6)))
    model.script([], data.draw(st.lists(st.booleans(), min_size=1, max_size=9)))
    waiting, running, written = [], [], {}
    for number in range(data.draw(st.integers(2, 4))):
        request, full = data.draw(requests(model))
        cache = model.make_cache()
        cache[0].truth = full
        drafters = [BlockDrafter(), CopyDrafter()]
        waiting.append((number, Sequence(request, AnySource(data), cache, drafters), full))
        written[number] = list(request.prompt)
    while waiting or running:
        if waiting and (not running or data.draw(st.booleans())):
            running.append(waiting.pop())
            _, sequence, _ = running[-1]
            prefill(model, sequence.request, sequence.cache)
        for (number, _, _), decided in zip(
            running, step(model, [s for _, s, _ in running]), strict=True
        ):
            assert decided
            written[number] += [d.token for d in decided]
        for number, _, full in [r for r in running if r[1].done]:
            assert written[number] == full
        running = [r for r in running if not r[1].done]


def test_one_pass_carries_the_rows_of_all_sequences() -> None:
    model = FakeModel(block_size=4)
    passes: list[int] = []
    forward = model.forward

    def counting(rows: Any) -> Any:
        passes.append(len(rows.segments))
        return forward(rows)

    model.forward = counting  # type: ignore[method-assign]
    sequences = [
        Sequence(
            Request([n], frozenset(), 9, Sampling(), model.config.mask_token_id),
            make_scheduler("parallel", "two-pass", 4, lambda: NOMINAL),
            model.make_cache(),
        )
        for n in range(3)
    ]
    step(model, sequences)
    assert set(passes) == {3} and len(passes) == 4  # two cycles of two passes


class Periodic(FakeModel):
    """Its next id depends on the last two alone, so that its text repeats before long."""

    def _row(self, layers: Any) -> np.ndarray:
        return super()._row([list(layer)[-2:] for layer in layers])


def test_text_that_repeats_is_copied() -> None:
    model, prompt = Periodic(vocab_size=7, block_size=4), [1, 2]
    expected = plain_decoding(model, prompt, 300)
    model.script(prompt + expected, [False])  # the diffusion view is never right
    stats: list[DecodeStats] = []
    ids = list(mlx_generate(model, prompt, 99, 300, calibrate=False, on_stats=stats.append))
    assert ids == expected
    assert stats[0].accepted_by["copy"] > 150
    assert stats[0].forward_passes < 150


@pytest.mark.parametrize("known", [False, True])
def test_drafts_are_copied_from_cached_ids_that_the_caller_knows(known: bool) -> None:
    model = Periodic(vocab_size=7, block_size=4)
    text = [1, 2, *plain_decoding(model, [1, 2], 120)]
    model.script(text, [False])
    cache, stats = model.make_cache(), []
    list(mlx_generate(model, text[:60], 99, 1, mode="ar", prompt_cache=cache))
    options = {"cached_ids": text[:60]} if known else {}
    ids = list(
        mlx_generate(
            model,
            text[60:61],
            99,
            40,
            calibrate=False,
            prompt_cache=cache,
            on_stats=stats.append,
            **options,
        )
    )
    assert ids == text[61:101]
    copied = stats[0].accepted_by.get("copy", 0)
    assert copied > 20 if known else copied < 40


class Text:
    """As much of a sequence as a copy drafter reads."""

    def __init__(self, text: list[int]) -> None:
        self.text = text


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(0, 9))
def test_a_copy_follows_a_longest_match(text: list[int], limit: int) -> None:
    """Held against a search of all places, at every length of the text."""
    drafter, shortest = CopyDrafter(), CopyDrafter.SHORTEST
    drafter._index.CANDIDATES = 100
    for n in range(len(text) + 1):
        now = text[:n]
        sequence: Any = Text(now)
        matches = {}
        for end in range(shortest, n):
            length = 0
            most = min(end, drafter._index.LONGEST)
            while length < most and now[end - 1 - length] == now[-1 - length]:
                length += 1
            if length >= shortest:
                matches[end] = length
        best = max(matches, key=lambda end: (matches[end], end), default=None)
        expected = [] if best is None else now[best : best + limit]
        assert drafter.propose(sequence, limit) == expected


def test_exact_row_counts_hold_for_each_sequence_alone() -> None:
    from orthrus_mlx.decoding.plan import RowCounts

    model = FakeModel(block_size=4)
    texts = [[n, *plain_decoding(model, [n], 9)] for n in range(3)]
    sequences = []
    for text in texts:
        cache = model.make_cache()
        cache[0].truth = text
        request = Request(text[:1], frozenset(), 9, Sampling(), model.config.mask_token_id)
        request = replace(request, row_counts=RowCounts((4,)))
        scheduler = make_scheduler("parallel", "two-pass", 4, lambda: NOMINAL)
        sequences.append(Sequence(request, scheduler, cache))
    written: list[list[int]] = [text[:1] for text in texts]
    while not all(s.done for s in sequences):
        running = [i for i, s in enumerate(sequences) if not s.done]
        for i, decided in zip(running, step(model, [sequences[i] for i in running]), strict=True):
            written[i] += [d.token for d in decided]
    assert written == texts
    assert {len(forward.rows) for forward in model.log if forward.rows} == {4}
