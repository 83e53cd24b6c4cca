"""One text that is being written: what was asked for, what is in flight, what has been decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..errors import ConstraintError, LogitsError
from ..rows import Cache
from .cache import KVQuantization, trim
from .choosers import (
    NO_CHOICE,
    Chooser,
    KeyedChooser,
    LogitsProcessor,
    ProcessedChooser,
    known,
    usable,
)
from .consensus import Sampling, count_accepted
from .cycle import Cycle
from .grammar import Matcher
from .penalties import NO_PENALTIES, Penalties
from .plan import ANY_ROWS, Plan, RowCounts
from .scheduler import Scheduler
from .stats import DecodeStats

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Request:
    """What one sequence is to be.

    Attributes:
        prompt: ids to continue, after whatever the cache holds; at least one.
        eos_token_ids: ids that end the run; the one found is handed out too.
        max_tokens: ids to write at most.
        sampling: how a token is chosen.
        mask_token_id: the id that stands for "to be drafted".
        logits_processors: mlx-lm's `processor(tokens, logits [1, vocab])`, called once for each
            token handed out, in order, with the ids that precede it in this call.
        row_counts: the row counts that decode passes may use.
        near_tie: count choices whose two best scores are closer than this (in logits).
        prefill_step_size: prompt ids in one prefill pass.
        on_progress: called with (prompt ids read, prompt ids in all).
        cached_ids: ids that the cache holds, where the caller knows them: drafts may copy them.
        found: how many of them, the last ones, are of this call's prompt, and were found in the
            cache of an earlier one: processors and penalties see them.
        quantization: of the KV cache; None for none.
        penalties: what is taken off the logits; they look back on the ids of this call.
        grammar: of the answer, at its first id to be written; None for any text.
        written: how many ids of the answer earlier calls wrote: the last ones of the prompt.
    """

    prompt: list[int]
    eos_token_ids: frozenset[int]
    max_tokens: int
    sampling: Sampling
    mask_token_id: int
    logits_processors: Many[LogitsProcessor] = ()
    row_counts: RowCounts = ANY_ROWS
    near_tie: float | None = None
    prefill_step_size: int = 2048
    on_progress: Progress | None = None
    cached_ids: Many[int] = ()
    found: int = 0
    quantization: KVQuantization | None = None
    penalties: Penalties = NO_PENALTIES
    grammar: Matcher | None = None
    written: int = 0

    @property
    def exact_chunk(self) -> int:
        """Ids of the chunks in which alone exact numerics may read a prompt; 0 where any do."""
        return self.prefill_step_size if self.row_counts != ANY_ROWS else 0

    def chooser(self, start: int, grammar: Matcher | None) -> Chooser:
        """Who decides this sequence's tokens.

        Args:
            start: position of the prompt's first id.
            grammar: this sequence's own.
        """
        seen = [*self.cached_ids[len(self.cached_ids) - self.found :], *self.prompt]
        keyed = KeyedChooser(
            self.sampling,
            self.near_tie is not None,
            self.penalties,
            seen,
            start - self.found,
            grammar,
        )
        if not self.logits_processors:
            return keyed
        return ProcessedChooser(keyed, self.logits_processors, seen, self.eos_token_ids)


class ModelLogitsError(LogitsError):
    """It is the model, not a processor, whose logits allow no choice."""


class Decoded(NamedTuple):
    """One decided token.

    Attributes:
        token: the id.
        logits: the AR view's logits [vocab_size] that it was chosen from, processors applied.
        from_draft: whether a draft had guessed it.
        near_tie: whether it was chosen by less than the request's `near_tie`.
        complete: whether the answer may end behind it; None where no grammar says so.
    """

    token: int
    logits: mx.array
    from_draft: bool
    near_tie: bool = False
    complete: bool | None = None


class Drafter(Protocol):
    """Proposes what comes next in a sequence; `orthrus_mlx.decoding.drafters` has some."""

    source: str

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """Up to `limit` ids that may follow `sequence.text`; empty if there is nothing to say."""


class Asked(NamedTuple):
    """What a plan for a sequence's next cycle depends on.

    Attributes:
        sequence: the sequence.
        room: tokens that the cycle may write at most.
        at_hand: drafts that are ready to be verified, by source.
    """

    sequence: Sequence
    room: int
    at_hand: Mapping[str, int]


class Outcome(NamedTuple):
    """What came of a sequence's cycle: `plan` verified `n_drafts` and accepted `accepted`.

    `chances` are the probabilities of the drafts that it left over.
    """

    sequence: Sequence
    plan: Plan
    n_drafts: int
    accepted: int
    chances: Many[float] = ()


class Planner(Protocol):
    """Plans the next cycles of the sequences that share a pass."""

    def plan(self, asked: Many[Asked]) -> list[Plan]:
        """One plan for each; changes no state."""

    def observe(self, outcomes: Many[Outcome]) -> None:
        """Learn what came of the cycles of one step."""


class Sequence:
    """One text that is being written.

    Attributes:
        cache: its KV cache.
        text: all ids known of it: those the cache held before, the prompt, the tokens decided.
        start: where the answer starts there, with what earlier calls wrote of it.
        budget: tokens left to write.
        in_flight: the cycle that the device is working on.
        last: the last finished cycle, of whose drafts `accepted` were accepted.
        decided_at: when the device was done with it, by `time.perf_counter`.
        done: whether its last token is decided, or it has an error.
        error: what ended it before its time; None if nothing did.
        stats: totals; the caller counts what it hands out.
        grammar: of its answer, behind the last token decided; None for any text.
    """

    def __init__(
        self,
        request: Request,
        scheduler: Scheduler,
        cache: Cache,
        drafters: Many[Drafter] = (),
    ):
        self.request, self.scheduler, self.cache = request, scheduler, cache
        self.grammar = request.grammar.fork() if request.grammar else None
        self.chooser = request.chooser(cache[0].offset, self.grammar)
        self.drafters = tuple(drafters)
        self.text = [*request.cached_ids, *request.prompt]
        self.start = len(self.text) - request.written
        self.budget = request.max_tokens
        self.in_flight: Cycle | None = None
        self.ahead: Cycle | None = None  # an AR step that was started behind the one in flight
        self.last: Cycle | None = None
        self.accepted, self.decided_at = 0, 0.0
        self.ended, self.done = False, self.budget == 0
        self.error: Exception | None = None
        self.stats = DecodeStats(
            prompt_tokens=len(request.prompt),
            cached_tokens=cache[0].offset,
            near_ties=None if request.near_tie is None else 0,
            seed=request.sampling.seed,
        )

    def room(self) -> int:
        """Tokens that the next cycle may write at most.

        A cycle ends where the KV cache is quantized: in AR decoding, tokens from there on see it
        quantized, and those before do not.
        """
        quantization = self.request.quantization
        room = quantization.room(self.cache) if quantization else None
        return self.budget if room is None else min(self.budget, max(1, room))

    def propose(self, limit: int) -> dict[str, list[int]]:
        """Drafts at hand for the next cycle, by source, as far as the grammar allows them."""
        proposed = {d.source: d.propose(self, limit) for d in self.drafters if limit > 0}
        if self.grammar is not None:
            proposed = {source: self.grammar.cut(ids) for source, ids in proposed.items() if ids}
        return {source: ids for source, ids in proposed.items() if ids}

    def ask_ahead(self) -> Asked | None:
        """What is asked of the cycle behind an AR step in flight, before its token is known here.

        None where the next cycle has to wait for that token.
        """
        if self.last is None:  # a scheduler may open with an AR step and go on otherwise
            return None
        cycle = self.in_flight
        # The cycle in flight wrote to the cache already, whose next token may find it quantized.
        quantization = self.request.quantization
        if quantization is not None and quantization.room(self.cache) == 0:
            return None
        if cycle is None or not cycle.plan.is_ar or cycle.choices is None or self.budget < 2:
            return None
        # What a drafter has to say of the text without that token says that it may have drafts.
        at_hand = {source: len(ids) - 1 for source, ids in self.propose(self.budget - 1).items()}
        return Asked(self, self.budget - 1, at_hand)

    def fail(self, error: Exception) -> None:
        """End here, with this error."""
        self.error, self.done = error, True
        self.in_flight = self.ahead = None

    def resolve(self) -> list[Decoded]:
        """Finish the cycle in flight: the tokens that it decided. Waits for the device.

        What the grammar cannot follow is an error behind the tokens before that.
        """
        cycle = self.in_flight
        assert cycle is not None
        drafts = known(cycle.drafts)
        before = [self.text[-1], *drafts]
        choices = cycle.choices or self.chooser.choose(cycle.logits, cycle.start + 1, before)
        tokens: Any = choices.tokens.tolist()
        self.decided_at = time.perf_counter()
        accepted = count_accepted(drafts, tokens)
        if accepted and NO_CHOICE in tokens[accepted : accepted + 1]:
            tokens = tokens[:accepted]  # in AR decoding these are handed out before that shows
        if tokens[0] == NO_CHOICE:
            if bool(usable(choices.logits[0])):
                raise ConstraintError(
                    "The constraint leaves no token to choose: this tokenizer cannot write what "
                    "it asks for here, or the logits of all that can are -inf."
                )
            raise ModelLogitsError("The model's logits are NaN, or all -inf")
        close = self._near_ties(choices.margins, accepted + 1)
        # Of a processed sequence the last accepted draft may be an end token, with nothing after.
        decided = [
            Decoded(token, choices.logits[j], j < accepted, close[j])
            for j, token in enumerate(tokens[: accepted + 1])
        ]
        ends = self.request.eos_token_ids
        stop = next((n for n, d in enumerate(decided, start=1) if d.token in ends), None)
        decided = decided[:stop][: self.budget]
        decided = decided[: self.chooser.commit([d.token for d in decided])]

        self.last, self.in_flight, self.ahead = cycle, self.ahead, None
        self.accepted = sum(d.from_draft for d in decided)
        self.stats.count(cycle.plan, len(drafts), self.accepted)
        self.text += [d.token for d in decided]
        self.budget -= len(decided)
        self.ended = decided[-1].token in ends
        self.done = self.ended or self.budget == 0
        if self.in_flight is None:
            trim(self.cache, cycle.start + len(decided))
        if self.grammar is not None:
            behind = self.grammar.complete_behind
            decided = [d._replace(complete=c) for d, c in zip(decided, behind, strict=True)]
            if (error := self.grammar.error) is not None:  # behind these tokens
                self.fail(error)
        return decided

    def _near_ties(self, margins: mx.array | None, count: int) -> list[bool]:
        if margins is None or self.request.near_tie is None:
            return [False] * count
        values: Any = margins[:count].tolist()
        return [margin <= self.request.near_tie for margin in values]
