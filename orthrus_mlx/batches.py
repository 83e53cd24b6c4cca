"""Text in, text out, for many requests at once: `BatchEngine` and `batch_generate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import mlx.core as mx

from .decoding.batch import Batch, Text
from .decoding.cost_model import NOMINAL
from .decoding.options import takes_options
from .decoding.plan import ANY_ROWS
from .decoding.prefixes import PrefixStore
from .decoding.row_budget import RowBudget
from .decoding.scheduler import Adaptive
from .decoding.sequence import Progress, Request
from .decoding.stats import DecodeStats
from .device.backend import wired
from .device.calibrate_batch import batch_costs
from .device.memory import memory_for_caches
from .device.probe import cached_probe
from .device.probe_batch import batch_row_counts
from .errors import GenerationError, NumericsError
from .generate import GenerationResponse, Responder, TextWork, plan_run

# Tokens of an answer that room is kept for: a request may ask for as many as the context holds.
EXPECTED = 4096
SLOTS = 256  # by which a KV cache grows
SHARE = 0.25  # of the memory for KV caches that those of earlier prompts may have


class Reply(NamedTuple):
    """What a step brought for one request: a response, or the error that ended it."""

    request: int
    response: GenerationResponse | None = None
    error: Exception | None = None


@dataclass
class _Running:
    text: Text
    work: TextWork
    responder: Responder
    on_stats: Callable[[DecodeStats], None] | None


class BatchEngine:
    """Answers many requests at once; each answer is the one that it would have been alone.

    Use it on one thread. A request joins as soon as there is memory for its KV cache; until then
    it waits. Prompts are read in chunks, at most half of the time while other answers are written.

        with BatchEngine(model, tokenizer) as engine:
            first = engine.add("Once upon a time", max_tokens=64)
            while engine.running:
                for request, response, error in engine.step():
                    ...

    Attributes:
        prefixes: KV caches of earlier prompts, which spare new ones the reading.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        memory: int | None = None,
        prefix_memory: int | None = None,
        calibrate: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Set up an engine that is idle.

        Args:
            model: a model from `orthrus_mlx.load`.
            tokenizer: its tokenizer.
            memory: bytes that KV caches of running requests may come to; None for what the device
                recommends, less the weights and `prefix_memory`.
            prefix_memory: bytes that KV caches of earlier prompts may come to; None for a quarter
                of what there is; 0 keeps none.
            calibrate: measure at first use what passes over several answers cost on this device
                (some seconds, then kept on disk); otherwise assume typical costs.
            progress: called with (steps done, steps in all) while that is measured.
        """
        for name, size in (("memory", memory), ("prefix_memory", prefix_memory)):
            if size is not None and (not isinstance(size, int) or size < 0):
                raise GenerationError(f"{name} is {size!r}; expected a number of bytes, or None.")
        self._model, self._tokenizer, self._calibrate = model, tokenizer, calibrate
        free = memory_for_caches() if memory is None or prefix_memory is None else 0
        kept = int(SHARE * free) if prefix_memory is None else prefix_memory
        self.prefixes = PrefixStore(kept)
        room = max(0, free - kept) if memory is None else memory
        self._progress, block = progress, model.config.block_size
        self._budget = RowBudget(
            lambda: batch_costs(model, block, self._progress) if calibrate else NOMINAL
        )
        self._batch = Batch(model, self._budget, self.prefixes if kept else None, room)
        self._running: dict[int, _Running] = {}
        self._next = 0
        self._stepping, self._closing = False, False
        self._left = set[int]()  # requests that callbacks of a step cancelled
        self._open = contextlib.ExitStack()
        self._open.enter_context(wired())

    def prepare(self, progress: Callable[[str, int, int], None] | None = None) -> bool:
        """Measure now what the first requests would wait for; what is on disk already is kept.

        Args:
            progress: called with (what is done, steps done, steps in all).

        Returns:
            whether exact numerics can be had on this device.
        """
        say = progress or (lambda stage, done, total: None)
        self._progress = lambda done, total: say("calibrate", done, total)
        found = cached_probe(self._model, progress=lambda done, total: say("probe", done, total))
        if self._calibrate:
            self._budget.measure()
        try:
            batch_row_counts(self._model, found, lambda done, total: say("probe", done, total))
        except NumericsError:
            return False
        return True

    @property
    def running(self) -> int:
        """Requests that are not answered yet, waiting ones too."""
        return len(self._running)

    def add(
        self,
        prompt: str | Sequence[int] | mx.array,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] | None = (),
        eos_token_ids: Collection[int] | None = None,
        **options: Any,
    ) -> int:
        """Take up a request with the arguments of `stream_generate`.

        Returns:
            its number, by which `step` names it.

        Raises:
            GenerationError: at once, for an unusable request, or one too large for the memory.
        """
        work = TextWork.of(self._tokenizer, prompt, max_tokens, stop, eos_token_ids, options)
        request, scheduler, drafters, on_stats, watch = plan_run(
            self._model, work.ids, work.ends, work.options, work.tokenizer
        )
        cache = work.options.prompt_cache
        self._check_free(cache)
        if request.row_counts != ANY_ROWS:
            found, say = cached_probe(self._model), work.options.probe_progress_callback
            request = replace(request, row_counts=batch_row_counts(self._model, found, say))
            watch = None  # the costs are of other row counts
        if (self._running or self._budget.forgotten) and isinstance(scheduler, Adaptive):
            self._budget.measure()  # now, and not while others wait for their next token
        needs = self._needs(request, cache[0].offset if cache else 0)
        text = self._batch.add(request, scheduler, cache, drafters, needs, watch)
        number, self._next = self._next, self._next + 1
        self._running[number] = _Running(text, work, Responder(self._model, work), on_stats)
        return number

    def step(self) -> list[Reply]:
        """Move on: one cycle of every answer that is being written, and a chunk of a prompt.

        Returns:
            what came of it, several responses for a request where drafts were accepted.

        What it raises belongs to no one request, as Ctrl-C, or a device out of memory: what was
        decided meanwhile is lost, so all requests end.
        """
        try:
            self._stepping = True
            replies = self._step()
            while self._left:
                replies += self._last(self._left.pop())
            return replies
        except BaseException as error:
            with contextlib.suppress(Exception):  # of `on_stats`
                self._end_all()
            if isinstance(error, Exception):
                self.prefixes.clear()  # a pass that failed may have left them what cannot be read
            raise
        finally:
            self._stepping, self._left = False, set()
            if self._closing:
                self.close()

    def _step(self) -> list[Reply]:
        events = self._batch.step() if self._running else []
        by_text = {id(r.text): number for number, r in self._running.items()}
        replies = []
        for text, decided in events:
            number = by_text.get(id(text))
            if number is None:  # Ctrl-C struck as it was added or cancelled
                self._batch.retire(text, text.written)
                continue
            if number in self._left:
                continue
            running = self._running[number]
            tokens = 0
            try:
                for item in text.hand_out(decided):
                    response = running.responder.respond(*item)
                    tokens += 1
                    replies.append(Reply(number, response))
                    if response.finish_reason is not None:
                        break
            except Exception as error:  # of the tokenizer
                text.error = error
            text.written += tokens
            if text.error is not None or text.done or running.work.stops.found:
                ended = self._last(number)
                if text.error is not None:
                    ended = [Reply(number, error=text.error)]
                elif not text.written:
                    replies.append(Reply(number, running.responder.nothing()))
                replies += ended
        return replies

    def _last(self, number: int) -> list[Reply]:
        """End a request that may have ended; an error of its `on_stats` is its own."""
        try:
            if number in self._running:
                self._end(number)
        except Exception as error:
            return [Reply(number, error=error)]
        return []

    def cancel(self, request: int) -> None:
        """End a request; nothing more comes of it. One that has ended already is no error.

        Callbacks may call it and `close`: what they end, ends with the step.
        """
        if self._stepping:
            self._left.add(request)
        elif request in self._running:
            self._end(request)

    def close(self) -> None:
        """Cancel all requests, and give the memory of earlier prompts' KV caches back."""
        self._closing = self._stepping
        if self._stepping:
            self._left.update(self._running)
            return
        with contextlib.ExitStack() as ends:
            ends.callback(self._open.close)
            ends.callback(self.prefixes.clear)
            self._end_all()

    def __enter__(self) -> BatchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_free(self, cache: Sequence[Any] | None) -> None:
        """Refuse a KV cache that a running request writes to."""
        layers = {id(layer) for layer in cache or ()}
        for running in self._running.values():
            if layers & {id(layer) for layer in running.work.options.prompt_cache or ()}:
                raise GenerationError(
                    "prompt_cache is that of a request which is not answered yet; each needs its "
                    "own."
                )

    def _end_all(self) -> None:
        with contextlib.ExitStack() as ends:  # each of them, whatever a callback raises
            ends.callback(self._batch.close)
            for number in reversed(self._running):
                ends.callback(self._end, number)

    def _end(self, number: int) -> None:
        running = self._running.pop(number)
        self._batch.retire(running.text, running.text.written)
        running.text.stats.generation_tokens = running.text.written
        # Costs are dropped only while nothing is written that would wait for new ones.
        if not self._running and running.text.watch is not None and running.text.watch.end():
            self._budget.forget()
        if running.on_stats is not None:
            running.on_stats(running.text.stats)

    def _needs(self, request: Request, cached: int) -> int:
        """Bytes that the KV cache of a request may come to, of which `cached` tokens are there."""
        config = self._model.config
        held = cached + len(request.prompt) + min(request.max_tokens, EXPECTED)
        slots = -(-held // SLOTS) * SLOTS
        width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        weights = getattr(getattr(self._model, "model", None), "norm", None)
        return slots * width * (weights.weight.dtype.size if weights is not None else 4)


@dataclass
class BatchStats:
    """Totals of a batch, with the fields of mlx-lm's `BatchStats`.

    Attributes:
        prompt_tokens: ids of all prompts.
        generation_tokens: ids of all answers.
        seconds: from the first request to the last answer; prompts are read beside writing.
        generation_tps: ids of answers a second.
        peak_memory: peak memory of the process's MLX arrays, in GB (10^9 bytes).
        each: the totals of each answer.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    seconds: float = 0.0
    peak_memory: float = 0.0
    each: list[DecodeStats] = field(default_factory=list)

    @property
    def generation_tps(self) -> float:
        """Ids of answers a second."""
        return self.generation_tokens / self.seconds if self.seconds else 0.0


@dataclass
class BatchResult:
    """The answers to some prompts, in their order.

    Attributes:
        texts: without stop strings and end tokens.
        tokens: ids as `mlx_generate` yields them, an end token last.
        finish_reasons: "stop" or "length".
        stats: totals.
    """

    texts: list[str]
    tokens: list[list[int]]
    finish_reasons: list[str]
    stats: BatchStats


@takes_options
def batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Iterable[str | Sequence[int]],
    max_tokens: int | Sequence[int] = 256,
    *,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] | None = (),
    eos_token_ids: Collection[int] | None = None,
    **options: Any,
) -> BatchResult:
    """Answer some prompts, many at once; each as `stream_generate` would alone.

    Args:
        model: a model from `orthrus_mlx.load`.
        tokenizer: its tokenizer.
        prompts: ids, or text to continue as it stands (no chat template).
        max_tokens: ids to write at most, for each or for all.
        seed: keys the sampling noise; one for each prompt or for all.
        stop: as in `stream_generate`, for all.
        eos_token_ids: the same.
        options: everything else that `GenerationOptions` holds, by name, for all.

    Raises:
        GenerationError: for an unusable request, before anything is computed. An error while
            writing is raised as it is, and the other answers are given up.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise GenerationError(f"prompts is {prompts!r:.80}; expected a list of prompts.")
    prompts = list(prompts)
    budgets = _for_each("max_tokens", max_tokens, len(prompts))
    seeds = _for_each("seed", seed, len(prompts))
    for name in ("prompt_cache", "evidence", "on_stats"):
        if options.get(name) is not None:
            raise GenerationError(
                f"{name} belongs to one request: give it to BatchEngine.add or stream_generate."
            )
    stats = BatchStats(each=[DecodeStats() for _ in prompts])
    pieces: list[list[str]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    reasons = [""] * len(prompts)
    calibrate = options.get("calibrate", True)
    progress = options.get("probe_progress_callback")
    with BatchEngine(model, tokenizer, calibrate=calibrate, progress=progress) as engine:
        started = time.perf_counter()
        for n, (prompt, budget, key) in enumerate(zip(prompts, budgets, seeds, strict=True)):

            def keep(found: DecodeStats, n: int = n) -> None:
                stats.each[n] = found

            engine.add(
                prompt,
                budget,
                seed=key,
                stop=stop,
                eos_token_ids=eos_token_ids,
                on_stats=keep,
                **options,
            )
        while engine.running:
            for n, response, error in engine.step():
                if error is not None:
                    raise error
                assert response is not None
                pieces[n].append(response.text)
                if response.token >= 0:
                    tokens[n].append(response.token)
                reasons[n] = response.finish_reason or ""
        stats.seconds = time.perf_counter() - started
    stats.prompt_tokens = sum(one.cached_tokens + one.prompt_tokens for one in stats.each)
    stats.generation_tokens = sum(map(len, tokens))
    stats.peak_memory = mx.get_peak_memory() / 1e9
    return BatchResult(["".join(text) for text in pieces], tokens, reasons, stats)


def _for_each(name: str, given: Any, count: int) -> list[Any]:
    """One value for each of `count` prompts."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise GenerationError(f"{name} has {len(given)} values for {count} prompts.")
    return list(given)
