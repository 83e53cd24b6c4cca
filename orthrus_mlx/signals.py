"""Signals that end a program: raised as an exception, held back, or ignored for a while.

Python allows all of that on the main thread only; on others these blocks change nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any

ENDS = (signal.SIGTERM, signal.SIGHUP)  # of `kill`, and of a terminal that is closed


def ends_as_exception() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP unwind the stack, instead of ending the program at once.

    The exit code is 128 + the signal's number. The first one counts: of a terminal that is closed
    one comes from the system, and often another from the shell. What is ignored (`nohup`) stays so.
    """
    numbers = [n for n in ENDS if signal.getsignal(n) is signal.SIG_DFL]

    def leave(number: int, frame: FrameType | None) -> None:
        for n in numbers:
            signal.signal(n, signal.SIG_IGN)
        raise SystemExit(128 + number)

    return _handling(numbers, leave)


@contextmanager
def ends_held(on_signal: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Hold SIGTERM and SIGHUP until the end of the block; yields those that came so far."""
    held: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        held.append(number)
        on_signal()

    numbers = [n for n in ENDS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    try:
        with _handling(numbers, note):
            yield held
    finally:
        if held:
            signal.raise_signal(held[0])


def no_interrupts() -> AbstractContextManager[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP during cleanup, which is what they ask for.

    (Blocking them is not enough: they may arrive on one of MLX's threads.)
    """
    numbers = (signal.SIGINT, *ENDS)
    return _handling([n for n in numbers if signal.getsignal(n) is not None], signal.SIG_IGN)


@contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    """Replace signal handlers for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)
