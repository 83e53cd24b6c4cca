"""Write a prompt in two ways and say where the answers part, by how much, and if it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

from ..decoding.consensus import Sampling, common_prefix, scores
from ..decoding.scheduler import CycleKind, Mode
from ..decoding.sequence import DecodeStats
from ..generate import GenerationOptions, decode_tokens

MAX_DIFFERENCES = 32  # differences that a tally keeps in full; it counts all


@dataclass
class Answer:
    """Ids that were written, and what they were chosen from.

    Attributes:
        ids: the ids.
        logits: for each id the AR logits [vocab_size] that it was chosen from, where kept.
        stats: totals of the run; None for an answer of another implementation.
        seconds: how long it took, the prompt included.
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
    """A row of logits in a buffer of its own: a slice would keep all its neighbours alive."""
    copy = mx.array(row) + 0
    mx.async_eval(copy)
    return copy


class Difference(NamedTuple):
    """The first place at which an answer is another than the expected one.

    Attributes:
        prompt: number of the prompt.
        position: ids that both had written before.
        expected: the id that should stand there; None if the expected answer had ended.
        found: the id that stands there; None if the answer had ended.
        gap: by how many logits the two ids lie apart (sampled: noise included); infinite where
            one of the two answers had ended.
        rank: place among all ids of the one with the lower score; 0 where an answer had ended.
        near_tie: whether `gap` is within what another row count may decide otherwise.
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
    """Where `found` leaves `expected`, judged by the logits kept with it; None if it does not."""
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
    """How the answers of one way of writing compare with the expected ones.

    Attributes:
        prompts: answers compared.
        same_prompts: answers that were the same.
        tokens: ids that were expected.
        same_tokens: ids before the first difference of each answer.
        near_ties: differences that were near-ties.
        differences: the first `MAX_DIFFERENCES` differences.
        forward_passes: passes over the layers that it took to write them.
        cycles: cycles that it took.
        seconds: time that it took.
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
        """Answers that were not the same."""
        return self.prompts - self.same_prompts

    @property
    def unexplained(self) -> int:
        """Answers that were not the same, and not for a near-tie."""
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
