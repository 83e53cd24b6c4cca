"""Verify that parallel mode writes the tokens of AR mode on this device.

Every prompt is answered in AR mode and in parallel mode, with both cycles, greedy and sampled, in
exact and in fast numerics. Exact mode must agree on every token. Fast mode may differ only at
near-ties, where the two best choices differ by less than the probe's bound.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..chat.prompt import encode_chat, encode_text
from ..decoding.consensus import Sampling, common_prefix
from ..decoding.scheduler import CycleKind
from ..device.measured import MLX_VERSION, device_name
from ..device.probe import Probe
from ..errors import NumericsError
from .compare import Answer, Difference, Tally, decode_answer, first_difference
from .prompts import Prompt
from .reference import ReferenceDecoder, decode_with, fair_bound, make_reference

CYCLES: tuple[CycleKind, ...] = ("two-pass", "one-pass")
TEMPERATURE = 0.8  # of the sampled answers; their seed is the prompt's number


@dataclass
class Row:
    """One mode of decoding, compared with AR mode.

    Attributes:
        numerics: "exact" or "fast".
        temperature: 0 for greedy.
        way: a cycle, or the name of another implementation.
        tally: how the answers compare.
    """

    numerics: str
    temperature: float
    way: str
    tally: Tally = field(default_factory=Tally)

    @property
    def faults(self) -> int:
        """Answers whose difference from AR mode is not allowed."""
        return self.tally.differing if self.numerics == "exact" else self.tally.unexplained

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "numerics": self.numerics,
            "temperature": self.temperature,
            "way": self.way,
            "faults": self.faults,
            **self.tally.to_dict(),
        }


@dataclass
class Report:
    """What a verification has found so far.

    Attributes:
        probe: the probe's result.
        no_exact: why this device has no exact mode; None if it has one.
        rows: one per mode compared.
        asked: prompts to answer.
        interrupted: whether it was stopped before all were answered.
    """

    probe: Probe
    no_exact: str | None
    rows: list[Row]
    asked: int
    interrupted: bool = False

    @property
    def faults(self) -> int:
        """Answers whose difference from AR mode is not allowed."""
        return sum(row.faults for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether everything was compared, exact mode too, without a fault."""
        return not (self.faults or self.interrupted or self.no_exact)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        exact = [row.tally for row in self.rows if row.numerics == "exact"]
        fast = [row.tally for row in self.rows if row.numerics == "fast" and row.way in CYCLES]
        others = [row for row in self.rows if row.way not in CYCLES]
        parts = []
        if exact:
            wrong, answers = sum(t.differing for t in exact), sum(t.prompts for t in exact)
            tokens = sum(t.tokens for t in exact)
            parts.append(
                f"exact mode differs from plain decoding in {wrong} of {answers} answers"
                if wrong
                else f"exact mode wrote the tokens of plain decoding, all {tokens:,} of them"
            )
        parts.append("fast mode " + _differences(fast))
        for way in dict.fromkeys(row.way for row in others):
            parts.append(f"{way} {_differences([r.tally for r in others if r.way == way])}")
        head = "LOSSLESS"
        if self.faults:
            head = "NOT LOSSLESS"
        elif self.no_exact:
            head = "NO EXACT MODE HERE"
        if self.interrupted:
            head += " SO FAR"
        return f"{head}: {'; '.join(parts)}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "interrupted": self.interrupted,
            "no_exact": self.no_exact,
            "prompts": self.asked,
            "probe": {**asdict(self.probe), "near_tie": self.probe.near_tie},
            "device": device_name(),
            "system": platform.platform(),
            "mlx": MLX_VERSION,
            "rows": [row.to_dict() for row in self.rows],
        }


def _differences(tallies: Sequence[Tally]) -> str:
    """How many answers differ, and why."""
    answers, differing = sum(t.prompts for t in tallies), sum(t.differing for t in tallies)
    if not differing:
        return f"differs in none of {answers} answers"
    unexplained = sum(t.unexplained for t in tallies)
    why = f"{unexplained} of them not at a near-tie" if unexplained else "at near-ties only"
    return f"differs in {differing} of {answers} answers, {why}"


def encode(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompts as ids, through the chat template if there is one."""
    if tokenizer.has_chat_template:
        return [encode_chat(tokenizer, prompt.messages)[0] for prompt in prompts]
    return [encode_text(tokenizer, prompt.text) for prompt in prompts]


def verify(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    probe: Probe,
    *,
    max_tokens: int = 128,
    against: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Answer every prompt in every mode and compare; Ctrl-C returns what is known.

    Args:
        model: a model from `orthrus_mlx.load`.
        prompts: ids to continue.
        ends: ids that end an answer.
        probe: the result of `device.probe.cached_probe` for this model.
        max_tokens: most ids in an answer.
        against: other implementations to compare AR mode with, of `reference.REFERENCES`.
        progress: called with (answers written, answers in all).

    Raises:
        OrthrusError: if another implementation cannot run here.
    """
    no_exact = None
    try:
        _ = probe.row_counts
    except NumericsError as e:
        no_exact = str(e)
    others = [make_reference(name, model) for name in against]
    kinds = ["fast"] if no_exact else ["exact", "fast"]
    temperatures = (0.0, TEMPERATURE)
    rows = [Row(kind, t, cycle) for kind in kinds for t in temperatures for cycle in CYCLES]
    rows += [Row("fast", t, other.name) for t in temperatures for other in others]
    report = Report(probe, no_exact, rows, len(prompts))
    done, total = 0, len(prompts) * (len(rows) + len(kinds) * len(temperatures))
    try:
        for number, prompt in enumerate(prompts):
            for _ in _answer(model, number, prompt, ends, max_tokens, report, others):
                done += 1
                if progress is not None:
                    progress(done, total)
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _answer(
    model: Any,
    number: int,
    prompt: Sequence[int],
    ends: Collection[int],
    max_tokens: int,
    report: Report,
    others: Sequence[ReferenceDecoder],
) -> Iterator[None]:
    """Compare all answers to one prompt; yield after each."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in report.rows:
        groups.setdefault((row.numerics, row.temperature), []).append(row)
    by_name = {other.name: other for other in others}
    for (numerics, temperature), rows in groups.items():
        sampling = Sampling(temperature, seed=number)
        request: tuple[Any, ...] = (prompt, ends, max_tokens, sampling)
        plain = decode_answer(model, *request, mode="ar", numerics=numerics, keep_logits=True)
        yield
        for row in rows:
            bound = report.probe.near_tie
            if other := by_name.get(row.way):
                found = decode_with(other, *request)
                bound = max(bound, _bound_where_they_part(model, plain, found))
            else:
                cycle: Any = row.way
                found = decode_answer(
                    model, *request, mode="parallel", cycle=cycle, numerics=numerics
                )
            difference = first_difference(number, len(prompt), plain, found.ids, sampling, bound)
            row.tally.add(plain, found, difference)
            yield


def _bound_where_they_part(model: Any, plain: Answer, found: Answer) -> float:
    place = common_prefix(plain.ids, found.ids)
    return fair_bound(model, plain.logits[place]) if place < len(plain.logits) else 0.0


def describe(difference: Difference, tokenizer: Any) -> str:
    """A difference in words."""

    def token(number: int | None) -> str:
        return "the end" if number is None else f"{tokenizer.decode([number])!r} ({number})"

    kind = "a near-tie" if difference.near_tie else "NOT a near-tie"
    how = (
        "one answer is shorter"
        if difference.gap == float("inf")
        else f"gap {difference.gap:.3g}, rank {difference.rank}, {kind}"
    )
    return (
        f"prompt {difference.prompt + 1}, token {difference.position + 1}: AR "
        f"{token(difference.expected)}, here {token(difference.found)}; {how}"
    )
