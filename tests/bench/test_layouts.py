"""Replayed cycles take as many passes as real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.layouts import Answer, best, forwards, one_pass, read_answer, two_pass
from orthrus_mlx import load
from orthrus_mlx.consensus import Sampling
from orthrus_mlx.engine import Request, decode
from orthrus_mlx.plans import Policy
from orthrus_mlx.schedule import Fixed

EOS = frozenset({2})


@pytest.fixture(scope="module")
def loaded(tiny16_dir: Path) -> Any:
    return load(tiny16_dir)[0]


@pytest.mark.parametrize("number", [3, 30])
def test_a_replay_takes_the_passes_of_a_real_run(
    loaded: Any, tiny16_golden: list[dict[str, Any]], number: int
) -> None:
    """With blocks of the model's own length, of which a replay assumes nothing."""
    case = tiny16_golden[number]
    answer = read_answer(loaded, case["kind"], case["prompt"], EOS, 128)
    layouts = [Policy("one-pass", 15, 16, blocks) for blocks in (1, 2, 3)]
    for policy in (Policy("two-pass", 15), *layouts):
        request = Request(
            case["prompt"], EOS, len(answer.tokens), Sampling(), loaded.config.mask_token_id
        )
        *_, (_, stats) = decode(loaded, request, Fixed(policy), loaded.make_cache())
        assert stats.generation_tokens == len(answer.tokens)
        assert forwards(policy, answer) == stats.forward_passes


def test_right_drafts_make_a_block_a_pass() -> None:
    tokens = list(range(40))
    answer = Answer("counting", tokens, [tokens[n : n + 15] for n in range(40)])
    assert forwards(Policy("two-pass", 15), answer) == 6  # 16 + 16 + 8 tokens
    assert forwards(Policy("one-pass", 14, 16, 1), answer) == 4  # 1, then 15 a pass
    wrong = Answer("guessing", tokens, [[99] * 15 for _ in tokens])
    assert best(two_pass(4), [wrong])[1] == 79  # the last one needs no draft
    assert best(one_pass(32, 16), [wrong])[1] == 40
