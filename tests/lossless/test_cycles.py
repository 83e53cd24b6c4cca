"""What each cycle verifies, counts and hands to logits processors, read off a fake model's log."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors

from orthrus_mlx import DecodeStats, Sampling, mlx_generate
from orthrus_mlx.decoding.batch import decode
from orthrus_mlx.decoding.cost_model import NOMINAL, Costs
from orthrus_mlx.decoding.plan import ANY_ROWS, AR_STEP, DIFFUSION, Plan, Policy, RowCounts
from orthrus_mlx.decoding.scheduler import Fixed, make_scheduler
from orthrus_mlx.decoding.sequence import Request

from .fake_model import FakeModel, plain_decoding
from .scenarios import CYCLES, WAYS, Scenario, held, scenarios

MOST_ROWS = 11


class Recording:
    """Passes plans on and remembers how many drafts each finished cycle verified."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.verified: list[int] = []

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        return self.scheduler.plan(budget, at_hand)

    def observe(
        self, plan: Plan, n_drafts: int, accepted: int, chances: Sequence[float] = ()
    ) -> None:
        assert 0 <= accepted <= n_drafts <= plan.n_drafts
        self.verified.append(n_drafts)
        self.scheduler.observe(plan, n_drafts, accepted, chances)


def test_the_scheduler_hears_how_sure_the_drafts_at_hand_are() -> None:
    model, prompt = FakeModel(block_size=6), [3, 1, 4]
    model.script([*prompt, *plain_decoding(model, prompt, 40)], [True, True, False, True, True])
    heard: list[tuple[int, list[float]]] = []

    class Listening(Fixed):
        def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
            if heard:
                assert at_hand.get(DIFFUSION, 0) == min(budget - 1, len(heard[-1][1]))
            return super().plan(budget, at_hand)

        def observe(
            self, plan: Plan, n_drafts: int, accepted: int, chances: Sequence[float] = ()
        ) -> None:
            heard.append((plan.block_rows, list(chances)))

    request = Request(prompt, frozenset(), 40, Sampling(), model.config.mask_token_id)
    policy = Policy("one-pass", 2, 4, blocks=2)
    assert len(list(decode(model, request, Listening(policy), model.make_cache()))) == 40
    blocks = [chances for rows, chances in heard if rows]
    assert blocks and {len(chances) for chances in blocks} <= {1, 2, 3}
    # The fake model's block logits are 1 for the guess and 0 for all other ids.
    sure = math.e / (math.e + model.config.vocab_size - 1)
    assert all(c == pytest.approx(sure, rel=1e-3) for chances in blocks for c in chances)


def check(scenario: Scenario, scheduler: Any, row_counts: RowCounts = ANY_ROWS) -> None:
    """Decode, and compare all that the engine says with what the model's log tells."""
    cache, recording = scenario.model.make_cache(), Recording(scheduler)
    request = replace(scenario.request(), row_counts=row_counts)
    results = list(decode(scenario.model, request, recording, cache))
    decided, stats = [token for token, _ in results], results[-1][1]
    assert [token.token for token in decided] == scenario.expected
    assert held(cache) == scenario.full[:-1]
    from_draft, expected = read_log(scenario, recording.verified, row_counts)
    assert [token.from_draft for token in decided] == from_draft
    assert stats == expected


def read_log(
    scenario: Scenario, verified: list[int], row_counts: RowCounts
) -> tuple[list[bool], DecodeStats]:
    """Follow the passes that the model saw: which drafts should be accepted, and the totals."""
    full, mask = scenario.full, scenario.model.config.mask_token_id
    position = len(scenario.prompt) - 1  # of the anchor
    guessed: dict[int, int] = {}
    from_draft: list[bool] = []
    ended = full[-1] in scenario.eos
    stats = DecodeStats(
        prompt_tokens=len(scenario.prompt),
        generation_tokens=len(scenario.expected),
        seed=scenario.sampling.seed,
        finish_reason="stop" if ended else "length",
    )
    passes = [forward for forward in scenario.model.log if forward.start >= position]
    cycle_of = itertools.count()
    for forward in passes:
        if position == len(full) - 1:  # an AR step started before the end token was known
            assert ended and forward is passes[-1] and forward.kind == "verify"
            break
        stats.forward_passes += 1
        if forward.kind != "draft":
            n = verified[next(cycle_of)]
            anchor, drafts, padding = (
                forward.rows[0],
                forward.rows[1 : 1 + n],
                forward.rows[1 + n :],
            )
            assert (forward.start, anchor) == (position, full[position])
            places = range(position + 1, position + 1 + n)
            assert drafts == [guessed[place] for place in places]
            assert set(padding) <= {mask}
            if row_counts.verify:
                assert len(forward.rows) in row_counts.verify
            else:
                assert not padding
            true = full[position + 1 : position + 1 + n]
            accepted = [*(a == b for a, b in zip(true, drafts, strict=False)), False].index(False)
            from_draft += [True] * accepted
            position += accepted
            if position < len(full) - 1:
                from_draft.append(False)
                position += 1
            stats.cycles += 1
            stats.drafted_tokens += n
            stats.accepted_tokens += accepted
            count_places(stats.drafted_at, n)
            count_places(stats.accepted_at, accepted)
            if n:
                stats.drafted_by[DIFFUSION] = stats.drafted_by.get(DIFFUSION, 0) + n
                stats.accepted_by[DIFFUSION] = stats.accepted_by.get(DIFFUSION, 0) + accepted
        blocks = list(forward.blocks)
        for block in blocks:
            masks = [mask] * (len(block.ids) - 1)
            anchors = forward.rows or [full[forward.start]]
            assert block.ids == [anchors[block.start - forward.start], *masks]
        if forward.kind == "both":
            depths = [block.start - forward.start for block in blocks]
            assert depths == sorted(depths) and depths[-1] == n
            assert len(blocks) == 1 or depths[0] == 0
            blocks = [block for block in blocks if block.start <= forward.start + accepted][-1:]
        guessed = {
            place: guess
            for block in blocks
            for place, guess in enumerate(block.guesses, start=block.start + 1)
        }
    assert position == len(full) - 1
    return from_draft, stats


def count_places(totals: list[int], n: int) -> None:
    totals.extend([0] * (n - len(totals)))
    totals[:n] = [total + 1 for total in totals[:n]]


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@given(scenarios(least_tokens=1))
def test_drafts_are_verified_where_they_were_guessed_and_counted_right(
    mode: Any, cycle: Any, scenario: Scenario
) -> None:
    check(scenario, make_scheduler(mode, cycle, scenario.model.config.block_size, lambda: NOMINAL))


class AnySchedule:
    """AR steps, blocks of any size and pending drafts in any order: what "auto" may come to."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        pending = at_hand.get(DIFFUSION, 0)
        rows = self.data.draw(st.integers(2, MOST_ROWS))
        few = min(self.data.draw(st.integers(0, MOST_ROWS)), budget - 1)
        verify = min(few, pending)
        blocks = self.data.draw(st.integers(1, 4))
        ahead = Plan(n_drafts=verify, block_rows=rows, blocks=blocks)
        plans = [AR_STEP, Plan(n_drafts=verify), ahead]
        if few:
            plans.append(Plan(draft_rows=rows, n_drafts=min(few, rows - 1)))
        return self.data.draw(st.sampled_from(plans))

    def observe(
        self, plan: Plan, n_drafts: int, accepted: int, chances: Sequence[float] = ()
    ) -> None:
        pass


@given(scenarios(least_tokens=1), st.data())
def test_no_schedule_whatever_changes_the_ids(scenario: Scenario, data: st.DataObject) -> None:
    check(scenario, AnySchedule(data))


def any_costs() -> st.SearchStrategy[Costs]:
    """Prices that no device may have: drafting a bargain, a waste, or now this, now that."""
    price = st.floats(0.1, 50)
    rows = st.integers(2, MOST_ROWS)
    return st.builds(
        Costs,
        verify=st.dictionaries(rows, price, min_size=1).map(lambda costs: {1: 1.0, **costs}),
        draft=st.dictionaries(rows, price, min_size=1),
        fused=st.dictionaries(st.tuples(rows, rows.map(lambda n: 2 * n)), price, min_size=1),
    )


@given(scenarios(most_tokens=60, least_tokens=1), st.sampled_from(("auto", *CYCLES)), any_costs())
def test_auto_is_lossless_whatever_passes_cost(
    scenario: Scenario, cycle: Any, costs: Costs
) -> None:
    block_size = scenario.model.config.block_size
    check(scenario, make_scheduler("auto", cycle, block_size, lambda: costs))


@given(scenarios(least_tokens=1), st.data())
def test_exact_row_counts_pad_and_change_nothing(scenario: Scenario, data: st.DataObject) -> None:
    """Whatever class of row counts the probe finds, 1 and one-pass pairs in it or not."""
    counts = data.draw(st.sets(st.integers(1, 12), min_size=1).filter(lambda s: max(s) > 1))
    pairs = st.tuples(st.sampled_from(sorted(counts)), st.sampled_from([4, 8, 12, 20]))
    row_counts = RowCounts(tuple(sorted(counts)), tuple(data.draw(st.sets(pairs))))
    ways = st.sampled_from([(mode, cycle) for mode, cycle in WAYS if mode != "auto"])
    mode, cycle = data.draw(ways | st.just((None, None)))
    if mode is None:
        scheduler: Any = AnySchedule(data)
    else:
        scheduler = make_scheduler(mode, cycle, scenario.model.config.block_size, lambda: NOMINAL)
    check(scenario, scheduler, row_counts)


@pytest.mark.parametrize("block_size", [2, 5, 8])
def test_two_pass_makes_a_block_of_right_drafts_in_two_passes(block_size: int) -> None:
    model, prompt, n = FakeModel(block_size=block_size), [4, 2], 40
    expected = plain_decoding(model, prompt, n)
    for pattern, passes in (
        ([True], 2 * (n // block_size)),
        ([False], 2 * (n - 1) + 1),  # one token is left for the last step, which needs no draft
    ):
        stats: list[DecodeStats] = []
        model.script(prompt + expected, pattern)
        assert (
            list(
                mlx_generate(
                    model, prompt, 99, n, mode="parallel", cycle="two-pass", on_stats=stats.append
                )
            )
            == expected
        )
        assert stats[0].forward_passes == passes
        assert stats[0].tokens_per_forward == n / passes


class Moody:
    """A processor with a memory: it forbids what its own count of calls says, and logs them."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        assert logits.shape[0] == 1
        history: list[int] = tokens.tolist()
        self.seen.append(history)
        banned = (7 * len(self.seen) + sum(history)) % logits.shape[1]
        return mx.where(mx.arange(logits.shape[1]) % 3 == banned % 3, -mx.inf, logits)


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@given(scenarios(least_tokens=1))
def test_a_logits_processor_sees_each_true_history_once_and_in_order(
    mode: Any, cycle: Any, scenario: Scenario
) -> None:
    prompt, model = scenario.prompt, scenario.model
    penalty = make_logits_processors(repetition_penalty=1.7, repetition_context_size=6)
    expected = plain_decoding(
        model,
        prompt,
        scenario.max_tokens,
        scenario.eos,
        scenario.sampling,
        [Moody(), *penalty],
    )
    moody, cache = Moody(), model.make_cache()
    ids = scenario.generate(
        mode=mode, cycle=cycle, logits_processors=[moody, *penalty], prompt_cache=cache
    )
    model.script(prompt + expected, scenario.pattern)  # drafts that know of the processors
    assert list(ids) == expected
    assert moody.seen == [prompt + expected[:n] for n in range(len(expected))]
    assert held(cache) == (prompt + expected)[:-1]


class Failing(Moody):
    """A processor that raises at one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if len(self.seen) == self.at:
            raise RuntimeError("the processor failed")
        return super().__call__(tokens, logits)


@pytest.mark.parametrize("cycle", CYCLES)
@given(scenarios(least_tokens=1), st.integers(0, 40))
def test_a_failing_logits_processor_ends_the_answer_where_it_does_in_ar_decoding(
    cycle: Any, scenario: Scenario, at: int
) -> None:
    expected = plain_decoding(
        scenario.model,
        scenario.prompt,
        scenario.max_tokens,
        scenario.eos,
        scenario.sampling,
        [Moody()],
    )
    cache, ids, failed = scenario.model.make_cache(), [], False
    run = scenario.generate(cycle=cycle, logits_processors=[Failing(at)], prompt_cache=cache)
    scenario.model.script(scenario.prompt + expected, scenario.pattern)
    try:
        for token in run:
            ids.append(token)
    except RuntimeError:
        failed = True
    assert ids == expected[:at] and failed == (len(expected) > at)
    assert held(cache) == (scenario.prompt + ids)[:-1]


def test_the_logits_of_each_token_are_those_that_chose_it() -> None:
    """Processors applied, row by row, also where several drafts are accepted."""
    model, prompt = FakeModel(vocab_size=9, block_size=4), [1, 2]
    expected = plain_decoding(model, prompt, 12)
    for processors in ((), (lambda tokens, logits: logits * 2,)):
        scenario = Scenario(
            model, prompt, 12, frozenset(), Sampling(), 2048, [True, True, False], expected
        )
        results = decode(
            model,
            scenario.request(processors),
            make_scheduler("parallel", "two-pass", 4, lambda: NOMINAL),
            model.make_cache(),
        )
        for n, (decided, _) in enumerate(results):
            row = mx.array(model.row(prompt + expected[:n])) * (2 if processors else 1)
            assert mx.array_equal(decided.logits, row)
            assert decided.token == expected[n]
