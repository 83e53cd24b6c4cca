"""Compare two answers to a prompt: where they differ first, by how much, and if it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from ..decoding.consensus import Sampling, common_prefix, scores
from ..decoding.options import GenerationOptions
from ..decoding.scheduler import CycleKind, Mode
from ..decoding.stats import DecodeStats
from ..generate import decode_tokens

MAX_DIFFERENCES = 32  # differences that a tally keeps in full; it counts all


@dataclass
class Answer:
    """The ids of an answer, and the logits they were chosen from.

    Attributes:
        ids: the ids.
        logits: the AR logits [vocab_size] that each id was chosen from, if kept.
        stats: totals of the run; None for an answer of another implementation.
        seconds: time taken, prefill included.
    """

    ids: list[int]
    logits: list[mx.array] = field(default_factory=list)
    stats: DecodeStats | None = None
    seconds: float = 0.0


def decode_answer(
    model: Any,
    prompt: Sequence[int],
    ends: Collection[int],
    max_tokens: int,
    sampling: Sampling,
    *,
    mode: Mode,
    cycle: CycleKind = "auto",
    numerics: str = "fast",
    keep_logits: bool = False,
    on_token: Callable[[], None] | None = None,
) -> Answer:
    """Answer one prompt with this package's engine."""
    answer = Answer([])
    stats: list[DecodeStats] = []
    started = time.perf_counter()
    options = GenerationOptions(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        mode=mode,
        cycle=cycle,
        numerics=numerics,
        on_stats=stats.append,
    )
    run = decode_tokens(model, prompt, ends, options)
    for decided, _ in run:
        answer.ids.append(decided.token)
        if keep_logits:
            answer.logits.append(own_copy(decided.logits))
        if on_token is not None:
            on_token()
    answer.seconds = time.perf_counter() - started
    answer.stats = stats[0]
    return answer


def own_copy(row: mx.array) -> mx.array:
    """A copy of a row of logits; a slice would keep all other rows in memory."""
    copy = mx.array(row) + 0
    mx.async_eval(copy)
    return copy


class Difference(NamedTuple):
    """The first position at which an answer differs from the expected one.

    Attributes:
        prompt: number of the prompt.
        position: position in the answer, from 0.
        expected: the expected id; None if the expected answer had ended.
        found: the id found; None if the answer had ended.
        gap: difference of the two ids' logits (sampled: noise included); infinite if one answer
            had ended.
        rank: rank among all ids of the one with the lower score; 0 if an answer had ended.
        near_tie: whether `gap` is so small that another row count may change the choice.
    """

    prompt: int
    position: int
    expected: int | None
    found: int | None
    gap: float
    rank: int
    near_tie: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; None for an infinite gap."""
        fields = self._asdict()
        fields["place"] = fields.pop("position")
        fields["gap"] = None if self.gap == float("inf") else self.gap
        return fields


def first_difference(
    prompt: int,
    prompt_length: int,
    expected: Answer,
    found: Sequence[int],
    sampling: Sampling,
    bound: float,
) -> Difference | None:
    """The first difference of `found` from `expected`, by the logits kept there; None if equal."""
    place = common_prefix(expected.ids, found)
    want = expected.ids[place] if place < len(expected.ids) else None
    have = found[place] if place < len(found) else None
    if want is None and have is None:
        return None
    if want is None or have is None:
        return Difference(prompt, place, want, have, float("inf"), 0, False)
    row = scores(expected.logits[place][None], prompt_length + place, sampling)[0]
    row = row.astype(mx.float32)
    lead: Any = mx.abs(row[want] - row[have]).item()
    above: Any = mx.sum(row > mx.minimum(row[want], row[have])).item()
    gap = lead if sampling.greedy else lead * sampling.temperature
    # Of two equal scores the one that was not chosen comes second.
    return Difference(prompt, place, want, have, gap, max(2, above + 1), gap <= bound)


@dataclass
class Tally:
    """Counts of how answers compare with the expected ones.

    Attributes:
        prompts: answers compared.
        same_prompts: answers that were the same.
        tokens: ids that were expected.
        same_tokens: ids before the first difference of each answer.
        near_ties: differences that were near-ties.
        differences: the first `MAX_DIFFERENCES` differences.
        forward_passes: passes over the layers.
        cycles: cycles.
        seconds: time taken.
    """

    prompts: int = 0
    same_prompts: int = 0
    tokens: int = 0
    same_tokens: int = 0
    near_ties: int = 0
    differences: list[Difference] = field(default_factory=list)
    forward_passes: int = 0
    cycles: int = 0
    seconds: float = 0.0

    @property
    def differing(self) -> int:
        """Answers that differ."""
        return self.prompts - self.same_prompts

    @property
    def unexplained(self) -> int:
        """Answers that differ other than at a near-tie."""
        return self.differing - self.near_ties

    def add(self, expected: Answer, found: Answer, difference: Difference | None) -> None:
        """Count one answer."""
        self.prompts += 1
        self.tokens += len(expected.ids)
        self.same_tokens += len(expected.ids) if difference is None else difference.position
        self.seconds += found.seconds
        if found.stats is not None:
            self.forward_passes += found.stats.forward_passes
            self.cycles += found.stats.cycles
        if difference is None:
            self.same_prompts += 1
            return
        self.near_ties += difference.near_tie
        if len(self.differences) < MAX_DIFFERENCES:
            self.differences.append(difference)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        counts = asdict(self)
        counts["unexplained"] = self.unexplained
        counts["differences"] = [difference.to_dict() for difference in self.differences]
        return counts
