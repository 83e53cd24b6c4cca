"""The engine on a fake model: whatever drafts, the ids and the cache are plain decoding's."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthrus_mlx import DecodeStats, Sampling, mlx_generate
from orthrus_mlx.decoding.prefill import RETAINED_CACHE_BYTES

from .fake_model import FakeModel, plain_decoding
from .scenarios import CYCLES, WAYS, Scenario, held, scenarios


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@given(scenarios())
def test_ids_and_cache_are_those_of_plain_decoding(
    mode: str, cycle: str, scenario: Scenario
) -> None:
    cache = scenario.model.make_cache()
    stats: list[DecodeStats] = []
    ids = list(scenario.generate(mode=mode, cycle=cycle, prompt_cache=cache, on_stats=stats.append))
    assert ids == scenario.expected
    assert len(ids) <= scenario.max_tokens
    assert held(cache) == ((scenario.prompt + ids)[:-1] if ids else [])
    assert len(stats) == 1
    assert stats[0].generation_tokens == len(ids)
    ended = bool(ids) and ids[-1] in scenario.eos
    assert stats[0].finish_reason == ("stop" if ended else "length")


@pytest.mark.parametrize(
    ("unused", "cleared"), [(RETAINED_CACHE_BYTES, 0), (RETAINED_CACHE_BYTES + 1, 3)]
)
def test_buffers_of_short_prompts_are_left_to_decoding(
    monkeypatch: pytest.MonkeyPatch, unused: int, cleared: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(mx, "get_cache_memory", lambda: unused)
    monkeypatch.setattr(mx, "clear_cache", lambda: calls.append(None))
    model = FakeModel()
    list(mlx_generate(model, [1, 2, 3, 4], (), 2, mode="ar", prefill_step_size=1))
    assert len(calls) == cleared


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@given(scenarios(least_tokens=1), st.data())
def test_closing_anywhere_leaves_the_committed_prefix_to_go_on_from(
    mode: str, cycle: str, scenario: Scenario, data: st.DataObject
) -> None:
    """One answer in several calls, each closed after some tokens, in any mix of ways."""
    cache, full = scenario.model.make_cache(), list(scenario.prompt)
    left = len(scenario.expected)
    while left:
        run = scenario.generate(
            full[cache[0].offset :],
            max_tokens=data.draw(st.integers(left, left + 9)),
            mode=mode,
            cycle=cycle,
            prompt_cache=cache,
        )
        taken = data.draw(st.integers(1, left))
        with closing(run):
            full += [next(run) for _ in range(taken)]
        assert held(cache) == full[:-1]
        left -= taken
        mode, cycle = data.draw(st.sampled_from(WAYS))
    assert full == scenario.full


@pytest.mark.parametrize("cycle", CYCLES)
@given(scenarios(least_tokens=1), st.integers(2, 14))
def test_another_block_size_writes_the_same_ids(
    cycle: str, scenario: Scenario, block_size: int
) -> None:
    """Any size up to the one that the model was trained with."""
    block_size = min(block_size, scenario.model.config.block_size)
    assert list(scenario.generate(cycle=cycle, block_size=block_size)) == scenario.expected
    blocks = [len(block.ids) for forward in scenario.model.log for block in forward.blocks]
    assert max(blocks, default=0) <= block_size


@pytest.mark.parametrize("cycle", CYCLES)
@given(scenarios(least_tokens=1), st.integers(1, 150))
def test_an_interrupt_inside_any_pass_leaves_the_cache_usable(
    cycle: str, scenario: Scenario, step: int
) -> None:
    cache, ids = scenario.model.make_cache(), []
    run = scenario.generate(cycle=cycle, prompt_cache=cache)
    scenario.model.interrupt_at = step
    try:
        for token in run:
            ids.append(token)
    except KeyboardInterrupt:
        pass
    scenario.model.interrupt_at = None
    kept = held(cache)
    if ids:
        assert kept == (scenario.prompt + ids)[:-1]
    else:  # it may have struck while the prompt was read
        assert kept == scenario.prompt[: len(kept)] and len(kept) < len(scenario.prompt)
    left = len(scenario.expected) - len(ids)
    rest = scenario.generate(
        (scenario.prompt + ids)[len(kept) :], max_tokens=left, cycle=cycle, prompt_cache=cache
    )
    assert ids + list(rest) == scenario.expected


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
@pytest.mark.parametrize("max_tokens", [0, 1, 2, 3])
def test_tiny_budgets(mode: Any, cycle: Any, max_tokens: int) -> None:
    model = FakeModel(block_size=4)
    expected = plain_decoding(model, [1, 2, 3], 3)[:max_tokens]
    model.script([1, 2, 3, *plain_decoding(model, [1, 2, 3], 9)], [True])
    options = {"mode": mode, "cycle": cycle, "calibrate": False}
    ids = list(mlx_generate(model, [1, 2, 3], 99, max_tokens, **options))
    assert ids == expected
    if max_tokens == 0:
        assert model.log == []


@pytest.mark.parametrize("cycle", CYCLES)
def test_an_end_token_at_every_place_of_a_block(cycle: Any) -> None:
    """Among the accepted drafts, as the choice after them, or as the first token of all."""
    model, prompt = FakeModel(vocab_size=400, block_size=5, salt=1), [7, 8]
    endless = plain_decoding(model, prompt, 17)
    assert len(set(endless)) == len(endless)  # so that each id ends the answer at its own place
    for place, token in enumerate(endless):
        cache = model.make_cache()
        model.script(prompt + endless, [True])
        options = {"mode": "parallel", "cycle": cycle, "prompt_cache": cache}
        ids = list(mlx_generate(model, prompt, token, 30, **options))
        assert ids == endless[: place + 1]
        assert held(cache) == (prompt + ids)[:-1]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 9, 100])
def test_prefill_reads_the_prompt_in_chunks_and_says_so(step: int) -> None:
    model, prompt = FakeModel(), list(range(9))
    progress: list[tuple[int, int]] = []
    expected = plain_decoding(model, prompt, 5)
    model.script(prompt + expected, [True])
    ids = mlx_generate(
        model,
        prompt,
        99,
        5,
        mode="parallel",
        prefill_step_size=step,
        prompt_progress_callback=lambda done, total: progress.append((done, total)),
    )
    assert list(ids) == expected
    chunks = [forward.rows for forward in model.log if forward.start < len(prompt) - 1]
    assert [token for chunk in chunks for token in chunk] == prompt[:-1]
    assert all(len(chunk) <= step for chunk in chunks)
    assert len(chunks) == -(-8 // step)
    assert progress[0] == (0, 9) and progress[-1] == (9, 9)
    assert progress == sorted(progress)


def test_noise_is_keyed_by_the_absolute_position() -> None:
    """The same ids whether a text was read as a prompt or written: only its place counts."""
    model, prompt = FakeModel(), [1, 2, 3]
    sampling = Sampling(temperature=2.0, seed=5)
    whole = plain_decoding(model, prompt, 20, sampling=sampling)
    for cut in (1, 6, 19):
        start = prompt + whole[:cut]
        model.script(prompt + whole, [True])
        ids = list(mlx_generate(model, start, 99, 20 - cut, 2.0, seed=5, mode="parallel"))
        assert ids == whole[cut:]


def test_sampling_at_different_seeds_differs() -> None:
    model = FakeModel()
    runs = {tuple(mlx_generate(model, [1], 99, 20, 1.0, seed=s, mode="ar")) for s in range(8)}
    assert len(runs) == 8
