"""Sampled frequencies are the model's own probabilities, and draws are independent."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orthrus_mlx import Sampling, mlx_generate
from orthrus_mlx.decoding.consensus import choose, gumbel_noise, seed_word
from tests import helpers

from . import random_models
from .fake_model import FakeModel
from .scenarios import CYCLES

DRAWS = 20_000
# Every draw here is fixed by its seed: a test that passes once passes always. A right sampler
# fails one new test in ten thousand.
LEAST_P = 1e-4

FILTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cool": {"temperature": 0.6},
    "hot": {"temperature": 2.0},
    "top-p": {"top_p": 0.8},
    "top-k": {"top_k": 5},
    "min-p": {"min_p": 0.1},
    "all": {"temperature": 0.7, "top_p": 0.9, "top_k": 6, "min_p": 0.02},
}


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square goodness of fit; cells expected to be rare are pooled."""
    assert not observed[expected == 0].any(), "drew what the filters drop"
    order = np.argsort(expected)
    rare = np.cumsum(expected[order]) < 10
    pooled = [
        np.array([*c[order][~rare], c[order][rare].sum()], dtype=float)
        for c in (observed, expected)
    ]
    seen, wanted = (cells[pooled[1] > 0] for cells in pooled)
    chi2, freedom = float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    # Wilson and Hilferty: the cube root of chi-square is very nearly normal.
    spread = 2 / (9 * freedom)
    z = ((chi2 / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def pair_counts(left: np.ndarray, right: np.ndarray, vocab_size: int) -> np.ndarray:
    return np.bincount(left * vocab_size + right, minlength=vocab_size**2)


def probabilities(
    logits: np.ndarray,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> np.ndarray:
    """What tokens should be drawn with, in mlx-lm's order: filters first, temperature last."""
    probs = np.exp(logits - logits.max().astype(np.float64))
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]  # mass of all that is likelier
    keep = np.ones(len(probs), dtype=bool)
    keep[order[before >= top_p]] = False
    keep &= probs >= min_p * probs.max()
    if top_k:
        keep[order[top_k:]] = False
    tempered = np.where(keep, probs, 0) ** (1 / temperature)
    return tempered / tempered.sum()


def drawn(logits: np.ndarray, rows: int, position: int, **sampling: Any) -> np.ndarray:
    batch = mx.broadcast_to(mx.array(logits), (rows, len(logits)))
    return np.array(choose(batch, position, Sampling(**{"temperature": 1.0, **sampling})))


def noise_of(rows: int, vocab_size: int, position: int, seed: int) -> mx.array:
    words = mx.broadcast_to(seed_word(seed), (rows,))
    return gumbel_noise(words, mx.arange(position, position + rows), vocab_size)


LOGITS = np.random.default_rng(0).normal(size=13, scale=1.5).astype(np.float32)


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_frequencies_over_positions(filters: dict[str, Any]) -> None:
    """Five times the draws, which would show a temperature wrong by three parts in a hundred."""
    n, step = 5 * DRAWS, 2000
    tokens = np.concatenate(
        [drawn(LOGITS, step, start, seed=42, **filters) for start in range(0, n, step)]
    )
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert p_value(counts, n * probabilities(LOGITS, **filters)) > LEAST_P
    if "top_k" not in filters:
        warmer = {**filters, "temperature": 1.03 * filters.get("temperature", 1.0)}
        assert p_value(counts, n * probabilities(LOGITS, **warmer)) < LEAST_P


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_frequencies_over_seeds(filters: dict[str, Any]) -> None:
    tokens = np.concatenate([drawn(LOGITS, 10, 77, seed=s, **filters) for s in range(DRAWS // 10)])
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert p_value(counts, DRAWS * probabilities(LOGITS, **filters)) > LEAST_P


def test_the_test_would_notice_a_small_bias() -> None:
    """One token in fifty moved from the likeliest token to the next: 20,000 draws show it."""
    rng = np.random.default_rng(1)
    probs = probabilities(LOGITS)
    first, second = np.argsort(-probs)[:2]
    moved = probs.copy()
    moved[first] -= 0.02
    moved[second] += 0.02
    assert p_value(rng.multinomial(DRAWS, moved), DRAWS * probs) < LEAST_P
    assert p_value(rng.multinomial(DRAWS, probs), DRAWS * probs) > LEAST_P


def test_neighbouring_draws_are_independent() -> None:
    """Next positions, next seeds, and seed and position moved together or apart."""
    logits, V, rows, seeds = LOGITS[:6], 6, 400, 200
    grid = np.stack([drawn(logits, rows, 0, seed=s) for s in range(seeds)])  # [seed, position]
    probs = probabilities(logits)
    expected = np.outer(probs, probs).ravel()
    even, odd = grid[0::2], grid[1::2]  # no draw is in two pairs
    pairs = {
        "positions": (grid[:, 0::2], grid[:, 1::2]),
        "positions two apart": (grid[:, 0::4], grid[:, 2::4]),
        "seeds": (even, odd),
        "seed and position up": (even[:, 0::2], odd[:, 1::2]),
        "seed up, position down": (even[:, 1::2], odd[:, 0::2]),
    }
    for name, (left, right) in pairs.items():
        counts = pair_counts(left.ravel(), right.ravel(), V)
        assert p_value(counts, left.size * expected) > LEAST_P, name


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-20, 1e-38, 1e-45, 5e-324])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    tokens = drawn(LOGITS, 50, 0, temperature=temperature)
    assert set(tokens.tolist()) == {int(LOGITS.argmax())}


def test_large_seeds_and_positions_count_whole() -> None:
    """No two of these share their noise, though they agree in their low or high halves."""
    seeds = [0, 1, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 63, (1 << 64) - 1]
    positions = [0, 1, 2, 255, 256, 65536, 1 << 20]
    rows = {tuple(noise_of(1, 40, p, s)[0].tolist()) for s in seeds for p in positions}
    assert len(rows) == len(seeds) * len(positions)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 17, 63, 64, 65, 100, 129, 800, 1001])
def test_noise_of_a_row_does_not_depend_on_the_rows_beside_it(vocab_size: int) -> None:
    for rows in (2, 3, 7, 8, 9, 16, 33):
        together = noise_of(rows, vocab_size, 5, 9)
        assert together.shape == (rows, vocab_size)
        for j in range(rows):
            alone = noise_of(1, vocab_size, 5 + j, 9)
            assert mx.array_equal(together[j : j + 1], alone), (rows, j)


@pytest.mark.parametrize("vocab_size", [5, 17, 63, 65, 800, 1001])
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_choices_do_not_depend_on_the_rows_beside_them(
    vocab_size: int, filters: dict[str, Any]
) -> None:
    sampling = Sampling(**{"temperature": 1.0, "seed": 3, **filters})
    logits = mx.random.normal((33, vocab_size), key=mx.random.key(vocab_size)) * 2
    alone = [choose(logits[j : j + 1], 100 + j, sampling).item() for j in range(33)]
    for rows in (2, 7, 16, 33):
        for start in (0, 33 - rows):
            together = choose(logits[start : start + rows], 100 + start, sampling)
            assert together.tolist() == alone[start : start + rows], (rows, start)


def test_noise_is_gumbel_to_the_tails() -> None:
    """P(G <= g) = exp(-exp(-g)): Kolmogorov and Smirnov over 2 million draws."""
    noise = np.sort(np.array(noise_of(2000, 1000, 0, 4)).ravel().astype(np.float64))
    n = len(noise)
    steps = np.arange(1, n + 1) / n
    gap = np.abs(np.exp(-np.exp(-noise)) - steps).max()
    assert gap * math.sqrt(n) < 2.3  # p about 5e-5
    assert np.isfinite(noise).all()
    assert (noise > 10).mean() == pytest.approx(-math.expm1(-math.exp(-10)), rel=0.35)


class Constant(FakeModel):
    """Fixed AR logits whatever the text; drafts guess the likeliest token, as argmax drafts do."""

    def _row(self, layers: Any) -> np.ndarray:
        return LOGITS

    def _guess(
        self, truth: list[int], block: list[int], start: int, count: int, seen_right: bool
    ) -> list[int]:
        return [int(LOGITS.argmax())] * count


@pytest.mark.parametrize("cycle", CYCLES)
@pytest.mark.parametrize("filters", [{}, FILTERS["all"]], ids=["plain", "all"])
def test_frequencies_in_a_decoded_text(cycle: Any, filters: dict[str, Any]) -> None:
    """Whether drafts stand or fall must not show: neither in single tokens nor in pairs."""
    model, n = Constant(vocab_size=len(LOGITS), block_size=4, layers=1), 3000
    options = {"temperature": 1.0, "seed": 8, "mode": "parallel", "cycle": cycle, **filters}
    tokens = np.array(list(mlx_generate(model, [1], (), n, **options)))
    probs = probabilities(LOGITS, **filters)
    assert p_value(np.bincount(tokens, minlength=len(probs)), n * probs) > LEAST_P
    pairs = pair_counts(tokens[0::2], tokens[1::2], len(probs))
    assert p_value(pairs, n / 2 * np.outer(probs, probs).ravel()) > LEAST_P


@pytest.mark.full
def test_frequencies_of_a_real_model_over_seeds() -> None:
    """The first two tokens, against the model's own probabilities after every first token."""
    config = helpers.random_config(
        5,
        block_size=4,
        vocab_size=17,
        hidden_size=16,
        num_hidden_layers=1,
        head_dim=8,
        layer_types=None,
    )
    model = random_models.build(config, helpers.random_weights(config, seed=5))
    prompt, n = [3, 1, 4], 1500
    runs = np.array(
        [
            list(mlx_generate(model, prompt, (), 2, 1.0, seed=seed, mode="parallel"))
            for seed in range(n)
        ]
    )
    first = probabilities(np.array(model(mx.array([prompt]))[0, -1]))
    joint = np.concatenate(
        [
            p * probabilities(np.array(model(mx.array([[*prompt, token]]))[0, -1]))
            for token, p in enumerate(first)
        ]
    )
    assert p_value(np.bincount(runs[:, 0], minlength=17), n * first) > LEAST_P
    assert p_value(pair_counts(runs[:, 0], runs[:, 1], 17), n * joint) > LEAST_P
