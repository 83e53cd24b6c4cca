"""Measure how well the view drafts: tokens per two-pass cycle on validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..decoding.stats import DecodeStats
from ..generate import mlx_generate
from .data import Example


def pick_prompts(examples: Sequence[Example], count: int, context: int) -> list[list[int]]:
    """The ids before the first answer of up to `count` examples, evenly spread over the set.

    A text without a prompt is cut in half. Prompts of `context` ids or more are dropped.
    """
    count = min(count, len(examples))
    chosen = [examples[i * len(examples) // count] for i in range(count)]
    prompts = [e.ids[: e.answers[0].start or max(1, len(e.ids) // 2)].tolist() for e in chosen]
    return [prompt for prompt in prompts if len(prompt) < context]


def tokens_per_cycle(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_tokens: int
) -> float | None:
    """Tokens per two-pass cycle over greedy answers; None without prompts."""
    runs: list[DecodeStats] = []
    for prompt in prompts:
        answer = mlx_generate(
            model,
            prompt,
            tokenizer.eos_token_ids,
            max_tokens,
            mode="parallel",
            cycle="two-pass",
            on_stats=runs.append,
        )
        for _ in answer:
            pass
    cycles = sum(run.cycles for run in runs)
    return sum(run.generation_tokens for run in runs) / cycles if cycles else None
