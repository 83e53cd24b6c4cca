"""The answers to one request, on the event loop: started, waited for, and left."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from ..errors import RequestError
from .ask import Ask, Service
from .events import Begun, Ended, Event, Failed, Figures
from .worker import Job

BACKLOG = 8192  # events that a client may leave unread
PATIENCE = 5.0  # seconds without an event after which a stream says that it lives

T = TypeVar("T")

# What may take long and needs no MLX: large bodies, chat templates, tokenizers, grammars. One
# thread, as tokenizers are not made for several.
_encoder = ThreadPoolExecutor(1, "orthrus-mlx encoder")


def is_busy(seconds: float) -> bool:
    """Whether the thread for such work is in some that takes longer than that."""
    try:
        _encoder.submit(int).result(seconds)
    except TimeoutError:
        return True
    return False


async def aside(work: Callable[..., T], *given: Any) -> T:
    """The result of work that may take long, on the thread for it."""
    return await asyncio.get_running_loop().run_in_executor(_encoder, work, *given)


async def encode(service: Service, ask: Ask) -> list[list[int]]:
    """The ids of each prompt of a request."""
    return await aside(service.encode, ask)


async def decode(service: Service, ids: list[int]) -> str:
    """The text of ids."""
    return await aside(service.tokenizer.decode, ids)


class Answers:
    """The answers to a request: iterate over (number of the answer, event).

    Use it as an asynchronous context manager: whatever ends the block, the answers end with the
    cycle that they are in.

    Attributes:
        jobs: one for each answer.
    """

    def __init__(
        self,
        service: Service,
        ask: Ask,
        seconds: float,
        on_end: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        """Answer `ask`, in so many seconds at most; `on_end` is told what each answer came to."""
        self._on_end = on_end
        self.service, self.ask, self._seconds = service, ask, seconds
        self.jobs: list[Job] = []
        self._events: deque[tuple[int, Event]] = deque()
        self._came = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Answers:
        """Encode the prompts and queue the jobs.

        Raises:
            GenerationError: for an unusable request; 429 if too many wait.
        """
        self._deadline = self._loop.time() + self._seconds
        prompts = await encode(self.service, self.ask)
        if not all(prompts):
            raise RequestError("The prompt is empty; give at least one token.")
        self.jobs = await aside(self.service.jobs, self.ask, self._deliver, prompts)
        self.service.worker.submit(self.jobs)
        self._open = len(self.jobs)
        # A request that the engine refuses is refused before anything is sent.
        try:
            await self._wait(PATIENCE)
            if self._events and isinstance(first := self._events[0][1], Failed):
                raise first.error
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """End the answers with the cycle that they are in."""
        self.service.worker.leave(self.jobs)

    def _deliver(self, number: int, events: list[Event]) -> None:
        """Take events, on the worker's thread."""
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._take, number, events)

    def _take(self, number: int, events: list[Event]) -> None:
        if len(self._events) > BACKLOG:
            self.service.worker.leave(self.jobs)
            slow = RequestError("The client reads too slowly.", status=408, code="slow_reader")
            events = [Failed(slow)]
        self._events.extend((number, event) for event in events)
        self._came.set()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event | None]]:
        """Each event with the number of its answer; (-1, None) where none came for a while.

        Raises:
            Exception: what ended an answer before its time.
        """
        while self._open:
            if not self._events and not await self._wait(PATIENCE):
                yield -1, None
                continue
            number, event = self._events.popleft()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                self._open -= 1
                self._on_end(event.figures)
            if not isinstance(event, Begun):
                yield number, event

    async def _wait(self, seconds: float) -> bool:
        """Whether there is an event within so many seconds."""
        left = self._deadline - self._loop.time()
        if left <= 0:
            raise RequestError(
                f"The answer took longer than {self._seconds:g} s.", status=504, code="timeout"
            )
        self._came.clear()
        if not self._events:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes with an event.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, seconds)):
                    await self._came.wait()
        return bool(self._events)

    @property
    def reading(self) -> tuple[int, int]:
        """(prompt ids read, prompt ids) of all answers, while their prompts are read."""
        done = sum(job.reading[0] for job in self.jobs)
        return done, sum(len(job.prompt) for job in self.jobs)
