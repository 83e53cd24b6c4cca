"""What each cycle verifies, counts and hands to logits processors, read off a fake model's log."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors

from orthrus_mlx import DecodeStats, Sampling, mlx_generate
from orthrus_mlx.engine import Decoded, decode
from orthrus_mlx.schedule import PLAIN, Plan, make_scheduler

from .fake_model import FakeModel, plain_decoding
from .scenarios import CYCLES, UNTIMED, WAYS, Scenario, held, scenarios


def run(scenario: Scenario, scheduler: Any) -> tuple[list[Decoded], DecodeStats]:
    """Everything that the engine says of a scenario."""
    cache = scenario.model.make_cache()
    results = list(decode(scenario.model, scenario.request(), scheduler, cache))
    decided = [token for token, _ in results]
    assert [token.token for token in decided] == scenario.expected
    assert held(cache) == scenario.full[:-1]
    return decided, results[-1][1]


def check_against_log(scenario: Scenario, decided: list[Decoded], stats: DecodeStats) -> None:
    """Work out from the passes that the model saw what the engine should have counted."""
    full, model = scenario.full, scenario.model
    passes = [forward for forward in model.log if forward.kind != "prefill"]
    position = len(scenario.prompt) - 1  # of the anchor
    guessed: dict[int, int] = {}
    cycles = drafted = accepted = 0
    drafted_at, accepted_at = [0] * 16, [0] * 16
    from_draft: list[bool] = []
    for count, forward in enumerate(passes, start=1):
        if forward.kind != "draft":
            if position == len(full) - 1:  # a plain step started before the end token was known
                assert scenario.expected[-1] in scenario.eos and forward is passes[-1]
                assert forward.rows == full[-1:]
                count -= 1
                break
            anchor, *drafts = forward.rows
            assert (forward.start, anchor) == (position, full[position])
            places = range(position + 1, position + 1 + len(drafts))
            assert drafts == [guessed[place] for place in places]
            right = [
                place < len(full) and full[place] == draft
                for place, draft in zip(places, drafts, strict=True)
            ]
            stood = [*right, False].index(False)
            cycles, drafted, accepted = cycles + 1, drafted + len(drafts), accepted + stood
            for place in range(len(drafts)):
                drafted_at[place] += 1
                accepted_at[place] += place < stood
            from_draft += [True] * stood
            if position + stood + 1 < len(full):
                from_draft.append(False)
            position = min(position + stood + 1, len(full) - 1)
        guessed = dict(enumerate(forward.guesses, start=forward.start + 1))
    assert position == len(full) - 1
    assert [token.from_draft for token in decided] == from_draft
    assert stats.generation_tokens == len(decided) == len(from_draft)
    assert stats.forward_passes == count
    assert (stats.cycles, stats.drafted_tokens) == (cycles, drafted)
    assert stats.accepted_tokens == accepted == sum(from_draft)
    assert stats.drafted_at == drafted_at[: len(stats.drafted_at)] and not any(
        drafted_at[len(stats.drafted_at) :]
    )
    assert stats.accepted_at == accepted_at[: len(stats.accepted_at)] and not any(
        accepted_at[len(stats.accepted_at) :]
    )
    assert stats.prompt_tokens == len(scenario.prompt)
    assert stats.cached_tokens == 0
    assert stats.seed == scenario.sampling.seed


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@given(scenarios(least_tokens=1))
@settings(UNTIMED, max_examples=60)
def test_drafts_are_verified_where_they_were_guessed_and_counted_right(
    mode: Any, cycle: Any, scenario: Scenario
) -> None:
    scheduler = make_scheduler(mode, cycle, scenario.model.config.block_size)
    check_against_log(scenario, *run(scenario, scheduler))


class AnySchedule:
    """Plain steps, blocks of any size and pending drafts in any order: what "auto" may come to."""

    def __init__(self, data: st.DataObject, most: int) -> None:
        self.data, self.most = data, most

    def plan(self, budget: int, pending: int) -> Plan:
        rows = self.data.draw(st.integers(2, self.most))
        few = min(self.data.draw(st.integers(0, self.most)), budget - 1)
        verify = min(few, pending)
        plans = [PLAIN, Plan(n_drafts=verify), Plan(n_drafts=verify, ahead_rows=rows)]
        if few:
            plans.append(Plan(draft_rows=rows, n_drafts=min(few, rows - 1)))
        return self.data.draw(st.sampled_from(plans))

    def observe(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        assert 0 <= accepted <= n_drafts <= plan.n_drafts


@given(scenarios(least_tokens=1), st.data())
@settings(UNTIMED, max_examples=200)
def test_no_schedule_whatever_changes_the_ids(scenario: Scenario, data: st.DataObject) -> None:
    check_against_log(scenario, *run(scenario, AnySchedule(data, most=11)))


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
@settings(UNTIMED, max_examples=60)
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
@settings(UNTIMED, max_examples=60)
def test_a_failing_logits_processor_leaves_the_cache_usable(
    cycle: Any, scenario: Scenario, at: int
) -> None:
    cache, ids = scenario.model.make_cache(), []
    run = scenario.generate(cycle=cycle, logits_processors=[Failing(at)], prompt_cache=cache)
    try:
        for token in run:
            ids.append(token)
    except RuntimeError:
        assert len(ids) <= at
    assert held(cache) == (scenario.prompt + ids)[:-1]


def test_the_logits_of_each_token_are_those_that_chose_it() -> None:
    """Processors applied, row by row, also where several drafts stand."""
    model, prompt = FakeModel(vocab_size=9, block_size=4), [1, 2]
    expected = plain_decoding(model, prompt, 12)
    for processors in ((), (lambda tokens, logits: logits * 2,)):
        scenario = Scenario(
            model, prompt, 12, frozenset(), Sampling(), 2048, [True, True, False], expected
        )
        results = decode(
            model,
            scenario.request(processors),
            make_scheduler("parallel", "two-pass", 4),
            model.make_cache(),
        )
        for n, (decided, _) in enumerate(results):
            row = mx.array(model.row(prompt + expected[:n])) * (2 if processors else 1)
            assert mx.array_equal(decided.logits, row)
            assert decided.token == expected[n]
