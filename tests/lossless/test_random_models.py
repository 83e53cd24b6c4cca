"""Randomly shaped models: every way of decoding writes the torch reference's ids, bit for bit."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from orthrus_mlx import DecodeStats, mlx_generate
from tests import helpers
from tests.amount import few
from tests.helpers import draft, verify, verify_and_draft
from tests.reference import orthrus_torch

from . import random_models
from .random_models import Weights
from .scenarios import CYCLES, WAYS

TIE = 1e-4  # two frameworks may decide otherwise between logits this near
Shaped = tuple[dict[str, Any], Weights]


@st.composite
def prompts(draw: st.DrawFn, vocab_size: int) -> list[int]:
    return draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=20))


def ends_for(data: st.DataObject, endless: list[int]) -> set[int]:
    """End tokens somewhere in the answer, or nowhere."""
    places = data.draw(st.lists(st.integers(0, 60), max_size=2))
    return {endless[place] for place in places if place < len(endless)}


def cut(endless: list[int], ends: set[int]) -> list[int]:
    end = next((n for n, token in enumerate(endless, start=1) if token in ends), len(endless))
    return endless[:end]


@given(random_models.models(), st.data())
def test_greedy_ids_are_those_of_plain_decoding_and_of_torch(
    shaped: Shaped, data: st.DataObject
) -> None:
    config, _ = shaped
    model, reference = random_models.build(*shaped), random_models.reference(*shaped)
    prompt = data.draw(prompts(config["vocab_size"]))
    budget = data.draw(st.integers(1, 40))
    endless = list(mlx_generate(model, prompt, (), budget, mode="ar"))
    theirs = orthrus_torch.greedy_ar(reference, prompt, budget, ())
    if endless != theirs:
        logits = orthrus_torch.ar_logits(reference, prompt + theirs)[len(prompt) - 1 : -1]
        gap = abs_gap_at_first_difference(endless, theirs, logits)
        assert gap < TIE, f"MLX and torch differ at a top-2 gap of {gap}"
        note(f"a tie: {gap}")

    ends = ends_for(data, endless)
    for cycle in CYCLES:
        ids = list(mlx_generate(model, prompt, ends, budget, mode="parallel", cycle=cycle))
        assert ids == cut(endless, ends), cycle
        assert len(ids) <= budget
    if endless == theirs:
        assert orthrus_torch.greedy_two_pass(reference, prompt, budget, ends)[0] == ids


def abs_gap_at_first_difference(ours: list[int], theirs: list[int], logits: torch.Tensor) -> float:
    place = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    return float(logits[place][theirs[place]] - logits[place][ours[place]])


@given(random_models.models(), st.data())
def test_sampled_ids_are_those_of_plain_decoding_with_the_same_seed(
    shaped: Shaped, data: st.DataObject
) -> None:
    model = random_models.build(*shaped)
    prompt = data.draw(prompts(shaped[0]["vocab_size"]))
    budget = data.draw(st.integers(1, 40))
    options = {
        "temperature": data.draw(st.sampled_from([0.3, 0.8, 1.0, 2.0])),
        "top_p": data.draw(st.sampled_from([1.0, 0.8])),
        "top_k": data.draw(st.sampled_from([0, 5])),
        "min_p": data.draw(st.sampled_from([0.0, 0.05])),
        "seed": data.draw(st.integers(0, (1 << 64) - 1)),
    }
    endless = list(mlx_generate(model, prompt, (), budget, mode="ar", **options))
    ends = ends_for(data, endless)
    for cycle in CYCLES:
        ids = mlx_generate(model, prompt, ends, budget, mode="parallel", cycle=cycle, **options)
        assert list(ids) == cut(endless, ends), cycle


@given(random_models.models(), st.data(), st.sampled_from([0.0, 1.0]))
def test_an_answer_in_several_calls_is_one_answer(
    shaped: Shaped, data: st.DataObject, temperature: float
) -> None:
    """Closed anywhere, continued from the cache, in any mix of ways and prefill chunks."""
    model = random_models.build(*shaped)
    full = data.draw(prompts(shaped[0]["vocab_size"]))
    total = data.draw(st.integers(1, 40))
    whole = full + list(mlx_generate(model, full, (), total, temperature, seed=3, mode="ar"))
    cache, full = model.make_cache(), list(full)
    while len(full) < len(whole):
        mode, cycle = data.draw(st.sampled_from(WAYS))
        run = mlx_generate(
            model,
            full[cache[0].offset :],
            (),
            100,
            temperature,
            seed=3,
            mode=mode,
            cycle=cycle,
            calibrate=False,
            prompt_cache=cache,
            prefill_step_size=data.draw(st.sampled_from([1, 3, 2048])),
        )
        with closing(run):
            for _ in range(data.draw(st.integers(1, len(whole) - len(full)))):
                full.append(next(run))
        assert {layer.offset for layer in cache} == {len(full) - 1}
    assert full == whole


@given(random_models.models(), st.data())
def test_logits_of_both_views_match_torch(shaped: Shaped, data: st.DataObject) -> None:
    config, _ = shaped
    model, reference = random_models.build(*shaped), random_models.reference(*shaped)
    ids = data.draw(prompts(config["vocab_size"])) + list(range(12))
    n, n_ar = data.draw(st.integers(0, len(ids) - 9)), data.draw(st.integers(1, 8))
    block = [ids[n]] + [config["mask_token_id"]] * (config["block_size"] - 1)
    cache = model.make_cache()
    if n:
        verify(model, mx.array(ids[:n]), cache)
    drafted = draft(model, block, cache)
    # Blocks at any of the AR rows, in any order, twice at the same one too.
    depths = data.draw(st.lists(st.integers(0, n_ar - 1), min_size=1, max_size=3))
    blocks = [id for depth in depths for id in (ids[n + depth], *block[1:])]
    ar, ahead = verify_and_draft(model, mx.array(ids[n : n + n_ar] + blocks), n_ar, depths, cache)
    assert {layer.offset for layer in cache} == {n + n_ar}
    for depth, logits in zip(depths, ahead, strict=True):
        prefix = ids[: n + depth]
        theirs = orthrus_torch.draft_logits(reference, prefix, ids[n + depth])[:-1].numpy()
        assert np.linalg.norm(np.array(logits) - theirs) < 2e-5 * np.linalg.norm(theirs)
    expected = orthrus_torch.draft_logits(reference, ids[:n], ids[n])[:-1].numpy()
    assert np.linalg.norm(np.array(drafted) - expected) < 1e-5 * np.linalg.norm(expected)
    expected = orthrus_torch.ar_logits(reference, ids[: n + n_ar])[n:].numpy()
    assert np.linalg.norm(np.array(ar) - expected) < 1e-5 * np.linalg.norm(expected)


@given(random_models.models(), st.data())
def test_plain_decoding_is_mlx_lms(shaped: Shaped, data: st.DataObject) -> None:
    """Our model in mlx-lm's own loop, and our loop over mlx-lm's own cache."""
    model = random_models.build(*shaped)
    prompt = data.draw(prompts(shaped[0]["vocab_size"]))
    steps = generate_step(mx.array(prompt), model, max_tokens=20)
    theirs = [int(token) for token, _ in steps]
    for mode, cycle in WAYS:
        cache = make_prompt_cache(model)
        options = {"mode": mode, "cycle": cycle, "calibrate": False, "prompt_cache": cache}
        assert list(mlx_generate(model, prompt, (), 20, **options)) == theirs
        assert {layer.offset for layer in cache} == {len(prompt) + 19}


def test_exact_numerics_change_no_id_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row count computes the same bits on the CPU, so exact and fast must agree on it."""
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))
    config = helpers.random_config(3, block_size=8, max_position_embeddings=200, layer_types=None)
    weights = random_models.favour_one_token(config, helpers.random_weights(config, 3), 9.0)
    model = random_models.build(config, weights)
    for temperature in (0.0, 0.9):
        runs = [
            list(
                mlx_generate(
                    model, [1, 2], (), 60, temperature, seed=2, mode=mode, cycle=cycle, numerics=n
                )
            )
            for mode, cycle in WAYS
            for n in ("fast", "exact")
        ]
        assert all(run == runs[0] for run in runs)
    assert list(tmp_path.iterdir())  # the probe was kept


@pytest.mark.parametrize(
    ("temperature", "bias", "seed", "one_pass_tokens"),
    [(0.0, 4.0, 18, few(1200, of=3000)), (1.0, 8.0, 2, few(1200, of=6000))],
)
def test_a_long_answer_in_one_run(
    temperature: float, bias: float, seed: int, one_pass_tokens: int
) -> None:
    """Past the capacities that a cache may start with; on models that never repeat themselves.

    1,200 tokens by default, which is past four steps of 256; 6,000 with `--full`.
    """
    length = few(1200, of=6000)
    config = helpers.random_config(
        seed,
        block_size=6,
        vocab_size=40,
        head_dim=8,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        layer_types=None,
    )
    weights = random_models.favour_one_token(config, helpers.random_weights(config, seed), bias)
    model = random_models.build(config, weights)
    stats: list[DecodeStats] = []

    def ids(max_tokens: int, **how: Any) -> list[int]:
        return list(
            mlx_generate(
                model, [1, 2, 3], (), max_tokens, temperature, seed=1, on_stats=stats.append, **how
            )
        )

    plain = ids(length, mode="ar")
    assert len(plain) == length
    assert len(set(plain[-1000:])) > 10
    assert ids(length, mode="parallel", cycle="two-pass") == plain
    one_pass = ids(one_pass_tokens, mode="parallel", cycle="one-pass")
    assert one_pass == plain[:one_pass_tokens]
    assert all(s.tokens_per_cycle > 1.4 for s in stats[1:])
