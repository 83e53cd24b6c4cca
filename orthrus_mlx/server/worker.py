"""The one thread that has MLX: it loads the model, writes all answers, and says when it ends.

Others hand it jobs and take events; they never touch an array. Between two cycles it looks for new
jobs and for those that nobody waits for any more.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..batches import BatchEngine
from ..decoding.stats import DecodeStats
from ..errors import RequestError, ServerError
from ..generate import GenerationResponse
from .events import Begun, Ended, Event, Failed, Figures, joined
from .pieces import Pieces

IDLE = 0.5  # seconds after which an idle worker says that it lives
STALLED = 300.0  # seconds of one step after which it counts as stuck
LIVES = 3  # steps in a row that may fail as a whole


@dataclass
class Job:
    """One answer to be written.

    Attributes:
        prompt: ids.
        options: of `BatchEngine.add`, but the callbacks.
        pieces: tells the answer's parts apart.
        deliver: takes the events, on the worker's thread; the last is `Ended` or `Failed`.
        reading: (prompt ids read, prompt ids) while the prompt is read.
        left: whether nobody waits for it any more.
    """

    prompt: list[int]
    options: dict[str, Any]
    pieces: Pieces
    deliver: Callable[[list[Event]], None]
    reading: tuple[int, int] = (0, 0)
    left: bool = False
    figures: Figures = field(default_factory=Figures)
    stats: DecodeStats = field(default_factory=DecodeStats)


@dataclass
class Totals:
    """What the worker has done since it started; for metrics."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forward_passes: int = 0
    failed_steps: int = 0
    cancelled: int = 0


class Worker(threading.Thread):
    """Writes answers, many at once.

    Attributes:
        stage: (what is done before it is ready, steps done, steps in all).
        show: called with a stage, on the worker's thread, where answers had it measured again.
        ready: (model, tokenizer) once it is loaded, or the error of loading.
        most: answers that may be written or wait.
        weights: a digest of the weights, once it is ready.
        exact: whether exact numerics can be had here, once it is ready.
        totals: what it has done.
        memory: (active, peak, prefix) bytes of MLX arrays, and of earlier prompts' KV caches.
        dead: what ended it before it was told to stop.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        *,
        concurrency: int = 8,
        queue: int = 64,
        prefix_memory: int | None = None,
        calibrate: bool = True,
    ) -> None:
        """Set up a worker; `start` it.

        Args:
            load: loads the model, on the worker's thread.
            concurrency: answers that are written at once at most.
            queue: answers that may wait for that.
            prefix_memory: as `BatchEngine` takes it.
            calibrate: measure this device first.
        """
        super().__init__(name="orthrus-mlx engine", daemon=True)
        self._load, self._calibrate = load, calibrate
        self._concurrency, self.most = concurrency, concurrency + queue
        self._prefix_memory = prefix_memory
        self._change = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._stopping = self._abandoned = False
        self._running: dict[int, Job] = {}
        self._failures = self._beginning = 0
        self._ticked = time.monotonic()
        self.stage = ("load", 0, 0)
        self.show: Callable[[str, int, int], None] = lambda stage, done, total: None
        self.ready: Future[tuple[Any, Any]] = Future()
        self.exact, self.weights = False, ""
        self.totals = Totals()
        self.memory = (0, 0, 0)
        self.dead: BaseException | None = None

    # ---- of any thread

    def submit(self, jobs: list[Job]) -> None:
        """Take jobs up, all or none.

        Raises:
            RequestError: as `check_room` does.
            ServerError: if the worker has ended.
        """
        with self._change:
            if self.dead is not None or self._stopping:
                raise ServerError("The engine has ended; no request can be answered any more.")
            self.check_room(len(jobs))
            self._waiting.extend(jobs)
            self._change.notify()

    def check_room(self, answers: int) -> None:
        """Refuse a request for so many answers if there is no room for them.

        Raises:
            RequestError: 429 if too many wait already, 400 if it asks for too many.
        """
        if answers > self.most:
            raise RequestError(
                f"The request asks for {answers} answers; this server takes {self.most} at once."
            )
        if sum(self.load) + answers > self.most:
            waiting = f"{len(self._waiting)} answers wait already. Try again later."
            raise RequestError(waiting, status=429, code="queue_full")

    def leave(self, jobs: list[Job]) -> None:
        """Nobody waits for these any more: they end with the present cycle."""
        with self._change:
            for job in jobs:
                job.left = True
            self._change.notify()

    def stop(self) -> None:
        """Take no more jobs, and end the thread once all answers under way are over."""
        with self._change:
            self._stopping = True
            self._change.notify()

    def abandon(self) -> None:
        """End all answers under way with an error; `stop` was called before."""
        with self._change:
            self._abandoned = True
            self._change.notify()

    @property
    def load(self) -> tuple[int, int]:
        """(answers being written, answers that wait)."""
        return len(self._running) + self._beginning, len(self._waiting)

    @property
    def healthy(self) -> bool:
        """Whether it is alive and comes on."""
        ticks = time.monotonic() - self._ticked < STALLED
        return self.is_alive() and self.dead is None and self.ready.done() and ticks

    # ---- of the thread itself

    def run(self) -> None:
        """Load the model, then write answers until told to stop."""
        try:
            try:
                self._model, self._tokenizer = self._load()
                self.weights = digest(self._model)
                self._engine = self._new_engine()
                self.exact = self._engine.prepare(self._measures)
            except Exception as error:
                self.dead = error
                self.ready.set_exception(error)
                return
            self.ready.set_result((self._model, self._tokenizer))
            while self._turn():
                pass
            self._engine.close()
        except BaseException as error:
            self._end_all(error)

    def _measures(self, stage: str, done: int, total: int) -> None:
        again = self.ready.done()
        if self._stopping:
            if again:
                self.show(stage, total, total)  # a bar on the terminal goes away
            raise ServerError("The server was told to end.")
        self.stage = (stage, done, total)
        if again:
            self.show(stage, done, total)

    def _new_engine(self) -> BatchEngine:
        return BatchEngine(
            self._model,
            self._tokenizer,
            prefix_memory=self._prefix_memory,
            calibrate=self._calibrate,
        )

    def _turn(self) -> bool:
        """Begin what may begin, end what was left, and step; False once all is done."""
        self._ticked = time.monotonic()
        if self._abandoned:
            raise ServerError("The server shuts down.")
        with self._change:
            left = [job for job in self._waiting if job.left]
            self._waiting = deque(job for job in self._waiting if not job.left)
            begin = list[Job]()
            while self._waiting and len(self._running) + len(begin) < self._concurrency:
                begin.append(self._waiting.popleft())
            self._beginning = len(begin)
            if not begin and not self._running and not left:
                if self._stopping:
                    return False
                self._change.wait(IDLE)
                return True
        before = set(self._running)
        self.totals.cancelled += len(left)
        for number, job in list(self._running.items()):
            if job.left:
                self.totals.cancelled += 1
                self._engine.cancel(number)
                self._count(self._running.pop(number))
        for job in begin:
            self._begin(job)
        if self._running:
            self._step()
        if begin or before != set(self._running):  # adding up all KV caches is not for each step
            prefixes = self._engine.prefixes.nbytes
            self.memory = (mx.get_active_memory(), mx.get_peak_memory(), prefixes)
        return True

    def _begin(self, job: Job) -> None:
        def reading(done: int, total: int) -> None:
            job.reading = (done, total)

        def ended(stats: DecodeStats) -> None:
            job.stats = stats

        try:
            number = self._engine.add(
                job.prompt,
                calibrate=self._calibrate,
                **job.options,
                prompt_progress_callback=reading,
                probe_progress_callback=partial(self._measures, "calibrate"),
                on_stats=ended,
            )
        except Exception as error:
            self._beginning -= 1
            job.deliver([Failed(error)])
            return
        self._beginning -= 1
        self._running[number] = job
        job.deliver([Begun()])

    def _step(self) -> None:
        try:
            replies = self._engine.step()
        except Exception as error:
            self._all_failed(error)
            return
        self._failures = 0
        events: dict[int, list[Event]] = {}
        for number, response, fault in replies:
            if number not in self._running:  # it was over before this token
                continue
            found = events.setdefault(number, [])
            if response is None:
                self._count(self._running[number])
                found.append(Failed(fault or ServerError("It ended without an answer.")))
            else:
                try:
                    found += self._take(number, self._running[number], response)
                except Exception as failure:
                    self._engine.cancel(number)
                    self._count(self._running[number])
                    found.append(Failed(failure))
            if found and isinstance(found[-1], Ended | Failed):
                self._running.pop(number).deliver(joined(found))
                del events[number]
        for number, found in events.items():
            if found:
                self._running[number].deliver(joined(found))

    def _take(self, number: int, job: Job, response: GenerationResponse) -> list[Event]:
        """What a token brings."""
        events: list[Event] = []
        figures, reason = job.figures, response.finish_reason
        figures.seed = response.seed
        figures.seconds = response.generation_tokens / max(response.generation_tps, 1e-9)
        if response.token >= 0:
            figures.ids.append(response.token)
            events += job.pieces.feed(response.token, response.logprobs)
        if reason is None and not job.pieces.done:
            return events
        if reason is None:
            self._engine.cancel(number)
            reason = "stop"
        events += job.pieces.finish()
        if job.pieces.done:
            reason = "stop"
        if job.pieces.calls and reason == "stop" and not job.pieces.stops.found:
            reason = "tool_calls"
        self._count(job)
        return [*events, Ended(reason, job.pieces.stops.which, figures)]

    def _count(self, job: Job) -> None:
        """Note what a job came to, now that it is over."""
        stats, figures, totals = job.stats, job.figures, self.totals
        figures.cached_tokens = stats.cached_tokens
        figures.prompt_tokens = len(job.prompt)
        figures.completion_tokens = len(figures.ids)
        figures.reasoning_tokens = job.pieces.reasoning_tokens
        drafted = stats.drafted_by.get("prediction", 0)
        figures.accepted_prediction_tokens = stats.accepted_by.get("prediction", 0)
        figures.rejected_prediction_tokens = drafted - figures.accepted_prediction_tokens
        figures.drafted_tokens = stats.drafted_tokens
        figures.accepted_tokens = stats.accepted_tokens
        figures.forward_passes = stats.forward_passes
        figures.numerics = job.options.get("numerics", "fast")
        totals.prompt_tokens += figures.prompt_tokens
        totals.cached_tokens += figures.cached_tokens
        totals.completion_tokens += figures.completion_tokens
        totals.drafted_tokens += figures.drafted_tokens
        totals.accepted_tokens += figures.accepted_tokens
        totals.forward_passes += figures.forward_passes

    def _all_failed(self, error: Exception) -> None:
        """A pass over several answers failed: all of them end, and the engine begins anew."""
        self.totals.failed_steps += 1
        self._failures += 1
        jobs, self._running = list(self._running.values()), {}
        for job in jobs:
            self._count(job)
            job.deliver([Failed(error)])
        if self._failures >= LIVES:
            raise error
        self._engine.close()
        self._engine = self._new_engine()

    def _end_all(self, error: BaseException) -> None:
        """Fail all that wait; whoever serves sees that the thread is gone."""
        with self._change:
            self.dead = error
            jobs = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for job in jobs:
            job.deliver([Failed(ServerError(f"The engine has ended: {error}"))])


def digest(model: Any) -> str:
    """What tells the weights of two models apart: their names, and where each tensor begins."""
    if not isinstance(model, nn.Module):
        return ""
    found = hashlib.sha256()
    starts: Any = [(n, a.flatten()[:64].astype(mx.float32)) for n, a in _weights(model)]
    mx.eval([start for _, start in starts])
    for name, start in starts:
        found.update(f"{name} {start.tolist()}\n".encode())
    return found.hexdigest()


def _weights(model: nn.Module) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(model.parameters())
    return sorted(found, key=lambda item: item[0])
