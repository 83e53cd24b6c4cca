"""Many texts at once: admit them, read their prompts, step, cancel. `decode` is a batch of one.

Every text has a KV cache of its own, so one that joins or leaves copies nothing and moves nobody,
and each accepts as many drafts as it does alone. What a text reads does not depend on the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

from ..errors import GenerationError, LogitsError
from ..rows import Cache
from .cache import settle
from .drafters import BlockDrafter
from .engine import ALONE, Runner, step
from .prefill import Prefill
from .prefixes import PrefixStore
from .scheduler import Scheduler
from .sequence import Decoded, Drafter, ModelLogitsError, Planner, Request, Sequence
from .stats import DecodeStats
from .watch import Watch

BESIDE = 512  # prompt ids of a chunk that is read while other texts are being written


@dataclass
class Receipt:
    """How many tokens of a run have reached the caller."""

    tokens: int = 0


class Text:
    """One text of a batch: it waits, its prompt is read, it is written, it is done.

    Attributes:
        request: what it is to be.
        sequence: the text itself; None while it waits.
        needs: bytes that its KV cache may come to.
        error: what ended it before its time; None if nothing did.
        done: whether nothing more will come of it.
        written: tokens that the caller has, where it counts them here.
        watch: told how long its cycles take, while no other text is written.
    """

    def __init__(
        self,
        request: Request,
        scheduler: Scheduler,
        drafters: Many[Drafter],
        needs: int = 0,
        watch: Watch | None = None,
    ):
        self.request, self.needs, self.watch = request, needs, watch
        self.shares = False  # whether its cache is one of the batch's prefix store
        self.sequence: Sequence | None = None
        self.error: Exception | None = None
        self.done, self.written = False, 0
        self._scheduler, self._drafters = scheduler, drafters
        self._end_of_prompt = 0
        self._before = DecodeStats(len(request.prompt), seed=request.sampling.seed)
        self.reading: Prefill | None = None

    def begin(self, runner: Runner, request: Request, cache: Cache) -> None:
        """Go on from `cache`; `request` is what is left to do there."""
        drafters = [BlockDrafter(), *self._drafters]
        self.sequence = Sequence(request, self._scheduler, cache, drafters)
        self._end_of_prompt = cache[0].offset + len(request.prompt)
        self.reading = Prefill(runner, request, cache)

    @property
    def stats(self) -> DecodeStats:
        """Totals of the text; its tokens are counted as `hand_out` gives them."""
        return self._before if self.sequence is None else self.sequence.stats

    def hand_out(
        self, decided: Many[Decoded]
    ) -> Generator[tuple[Decoded, DecodeStats], None, None]:
        """Each token that a step decided, with the totals at that point."""
        stats, sequence = self.stats, self.sequence
        for n, token in enumerate(decided, start=1):
            stats.generation_tokens += 1
            stats.complete = token.complete
            if stats.near_ties is not None:
                stats.near_ties += token.near_tie
            if sequence and sequence.done and not sequence.error and n == len(decided):
                stats.finish_reason = "stop" if sequence.ended else "length"
            yield token, stats

    def leave(self, tokens: int) -> None:
        """End it; the cache keeps its first `tokens` tokens, but the last of them."""
        self.done = True
        if self.sequence is None:
            return
        self.sequence.in_flight = self.sequence.ahead = None
        settle(self.sequence.cache, self._end_of_prompt + tokens - 1)


class Batch:
    """Texts that share the passes of one model.

    Attributes:
        prefixes: where caches come from and go to, for texts that bring none.
        room: bytes that the KV caches of all texts may come to; None for no limit.
        waiting: texts that are not admitted yet, first come first.
        reading: texts whose prompts are being read, one after another.
        writing: texts that are being written.
    """

    def __init__(
        self,
        runner: Runner,
        planner: Planner = ALONE,
        prefixes: PrefixStore | None = None,
        room: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.runner, self.planner, self.prefixes, self.room = runner, planner, prefixes, room
        self.waiting: deque[Text] = deque()
        self.reading: deque[Text] = deque()
        self.writing: list[Text] = []
        self._ended: list[Text] = []  # before they began, to be told with the next step
        self._clock = clock
        self._owed = 0.0  # seconds that writing is to have before more of a prompt is read

    def __len__(self) -> int:
        return len(self.waiting) + len(self.reading) + len(self.writing)

    def add(
        self,
        request: Request,
        scheduler: Scheduler,
        cache: Cache | None = None,
        drafters: Many[Drafter] = (),
        needs: int = 0,
        watch: Watch | None = None,
    ) -> Text:
        """Take a text up, at once if there is room for its KV cache, else when there is.

        Args:
            request: what it is to be.
            scheduler: of its own.
            cache: to go on from; None for one of an earlier prompt, or a new one.
            drafters: beside the diffusion view.
            needs: bytes that its KV cache may come to.
            watch: told how long its cycles take.

        Raises:
            GenerationError: if it would not fit even alone.
        """
        if self.room is not None and needs > self.room:
            raise GenerationError(
                f"The KV cache of this request may need {needs / 1e9:.2f} GB, and "
                f"{max(0, self.room) / 1e9:.2f} GB are left for all requests. Shorten the prompt, "
                "or lower max_tokens."
            )
        text = Text(request, scheduler, drafters, needs, watch)
        if cache is not None:
            text.begin(self.runner, request, cache)
        if not request.max_tokens:
            self._ended.append(text)
            return text
        self.waiting.append(text)
        self._admit()
        return text

    def step(self) -> list[tuple[Text, list[Decoded]]]:
        """Read a chunk of a prompt if it is time to, then step all texts that are being written.

        Returns:
            the texts that came on or ended, with the tokens decided, none where one failed.
        """
        self._admit()
        ended, self._ended = self._ended, []
        for text in ended:
            text.done, text.stats.finish_reason = True, "length"
        ended += self._read()
        writing, started = self.writing, self._clock()
        sequences = [text.sequence for text in writing if text.sequence is not None]
        if not sequences:
            return [(text, []) for text in ended]
        # A text whose prompt is read next joins the next pass, instead of having one of its own.
        ahead = not self.reading
        decided = step(self.runner, sequences, self.planner, ahead)
        ended_at = self._clock()
        self._owed = max(0.0, self._owed - (ended_at - started))
        if len(writing) == 1 and (watch := writing[0].watch) is not None:
            watch.saw(sequences[0], started, ended_at)
        self.writing = [text for text in writing if text.sequence and not text.sequence.done]
        for text in writing:
            if text.sequence is not None and text.sequence.error is not None:
                self._fail(text, text.sequence.error)
            text.done = text not in self.writing
        return [(text, []) for text in ended] + list(zip(writing, decided, strict=True))

    def retire(self, text: Text, tokens: int) -> None:
        """Let a text go, done or not: the caller has its first `tokens` tokens.

        Its cache is left with everything up to the last of them, and goes to the prefix store if
        it came from there.
        """
        self._ended = [other for other in self._ended if other is not text]
        self.waiting = deque(other for other in self.waiting if other is not text)
        self.reading = deque(other for other in self.reading if other is not text)
        self.writing = [other for other in self.writing if other is not text]
        text.leave(tokens)
        if text.shares and text.sequence is not None and self.prefixes is not None:
            self.prefixes.give_back(text.sequence.cache, text.sequence.text)
        self._admit()

    def close(self) -> None:
        """Let go of all texts; each keeps the tokens that were handed out."""
        texts = [*self._ended, *self.waiting, *self.reading, *self.writing]
        self.waiting.clear()
        for text in texts:
            self.retire(text, text.stats.generation_tokens)
        if self.prefixes is not None:
            self.prefixes.forget()  # what an interrupt kept from being given back

    def _admit(self) -> None:
        """Begin the texts that there is room for, in the order in which they came."""
        while self.waiting:
            text = self.waiting[0]
            taken = sum(other.needs for other in [*self.reading, *self.writing])
            if self.room is not None and taken and taken + text.needs > self.room:
                return
            self.reading.append(self.waiting.popleft())

    def _begin(self, text: Text) -> None:
        """Find a text its cache, as late as its prompt is read: an earlier text may share it."""
        request, runner = text.request, self.runner
        if self.prefixes is None or request.quantization is not None:
            text.begin(runner, request, runner.make_cache())
            return
        cache, n = self.prefixes.find(request.prompt, runner.make_cache, request.exact_chunk)
        text.shares, ids = True, request.prompt
        text.begin(runner, replace(request, prompt=ids[n:], cached_ids=ids[:n], found=n), cache)

    def _read(self) -> list[Text]:
        """Read prompts, at most half of the time while others are written: those that failed."""
        failed = []
        while self.reading and not (self.writing and self._owed > 0):
            text = self.reading[0]
            started, beside = self._clock(), bool(self.writing)
            try:
                if text.sequence is None:
                    self._begin(text)
                assert text.reading is not None and text.sequence is not None
                text.reading.chunk(BESIDE if beside else None)
                if text.shares and self.prefixes is not None:
                    cache, request = text.sequence.cache, text.request
                    read = request.prompt[: cache[0].offset]
                    self.prefixes.grown(cache, read, request.exact_chunk)
            except Exception as error:
                self.reading.popleft()
                self._fail(text, error)
                if text.sequence is not None and self.prefixes is not None:
                    self.prefixes.forget(text.sequence.cache)  # perhaps it cannot be read
                failed.append(text)
                continue
            self._owed = self._clock() - started if beside else 0.0
            if text.reading.done:
                self.reading.popleft()
                text.reading = None
                self.writing.append(text)
            if beside or self.reading:
                break
        return failed

    def _fail(self, text: Text, error: Exception) -> None:
        if isinstance(error, ModelLogitsError):
            where = self.runner.first_not_finite()
            cause = (
                f"{where} holds NaN or infinite values." if where else "the computation overflows."
            )
            error = LogitsError(
                f"{error}, at token {text.stats.generation_tokens + 1} of the answer: {cause} "
                "Convert or download the checkpoint again; `orthrus-mlx verify` tests it."
            )
        text.error, text.done = error, True


def decode(
    runner: Runner,
    request: Request,
    scheduler: Scheduler,
    cache: Cache,
    on_stats: Callable[[DecodeStats], None] | None = None,
    drafters: Many[Drafter] = (),
    receipt: Receipt | None = None,
    watch: Watch | None = None,
) -> Generator[tuple[Decoded, DecodeStats], None, None]:
    """Write one text until an end token or the budget; yields each token once it is decided.

    However the iterator ends (exhausted, closed, interrupted), the cache is left holding
    everything committed but the last token handed out, which the next call's prompt starts with.
    A token counts once the caller has it. Where another generator hands it on, that one counts it
    in `receipt`.
    """
    received = Receipt() if receipt is None else receipt
    batch = Batch(runner)
    text = batch.add(request, scheduler, cache, drafters, watch=watch)
    try:
        if request.max_tokens == 0:
            text.stats.finish_reason = "length"
            return
        while not text.done:
            for _, decided in batch.step():
                for item in text.hand_out(decided):
                    try:  # nothing can fail in here before the caller has the item
                        yield item
                    finally:
                        if receipt is None:
                            received.tokens += 1
        if text.error is not None:
            raise text.error
    finally:
        text.stats.generation_tokens = received.tokens
        try:
            text.leave(received.tokens)
        except BaseException:  # a second interrupt
            text.leave(received.tokens)
            raise
        if watch is not None:
            watch.end()
        if on_stats is not None:
            on_stats(text.stats)
