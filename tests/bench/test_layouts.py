"""Replayed cycles take as many passes as real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.layouts import Answer, best, forwards, one_pass, read_answer, two_pass
from orthrus_mlx import load
from orthrus_mlx.decoding.batch import decode
from orthrus_mlx.decoding.consensus import Sampling
from orthrus_mlx.decoding.plan import Policy
from orthrus_mlx.decoding.scheduler import Fixed
from orthrus_mlx.decoding.sequence import Request

EOS = frozenset({2})


@pytest.fixture(scope="module")
def loaded(tiny16_dir: Path) -> Any:
    return load(tiny16_dir)[0]


@pytest.mark.parametrize(
    ("number", "limit"), [pytest.param(3, 128, marks=pytest.mark.full), (30, 20)]
)
def test_a_replay_takes_the_passes_of_a_real_run(
    loaded: Any, tiny16_golden: list[dict[str, Any]], number: int, limit: int
) -> None:
    case = tiny16_golden[number]
    answer = read_answer(loaded, case["kind"], case["prompt"], EOS, limit)
    layouts = [Policy("one-pass", 15, 16, blocks) for blocks in (1, 2)]
    layouts += [Policy("one-pass", 5, 6, 2), Policy("alternating", 10, 11, 1)]
    for policy in (Policy("two-pass", 15), Policy("two-pass", 7), *layouts):
        request = Request(
            case["prompt"], EOS, len(answer.tokens), Sampling(), loaded.config.mask_token_id
        )
        *_, (_, stats) = decode(loaded, request, Fixed(policy), loaded.make_cache())
        assert stats.generation_tokens == len(answer.tokens)
        assert forwards(policy, answer) == stats.forward_passes


def test_right_drafts_make_a_block_a_pass() -> None:
    tokens = list(range(40))
    right = {k: [(tokens + [-1] * k)[n : n + k] for n in range(40)] for k in range(2, 17)}
    sure = {k: [[0.9] * k] * 40 for k in right}
    answer = Answer("counting", tokens, right, sure)
    assert forwards(Policy("two-pass", 15), answer) == 6  # 16 + 16 + 8 tokens
    assert forwards(Policy("one-pass", 14, 15, 1), answer) == 4  # 1, then 15 a pass
    assert forwards(Policy("alternating", 14, 15, 1), answer) == 6  # 1 + 15, 1 + 15, 1 + 7
    never = {k: [[99] * k for _ in tokens] for k in range(2, 17)}
    wrong = Answer("guessing", tokens, never, sure)
    assert best(two_pass([2, 3, 4]), [wrong])[1] == 79  # the last one needs no draft
    assert best(one_pass(32, [4, 11, 16]), [wrong])[1] == 40
