"""The terminal while an answer streams: Ctrl-C is noted, and typing does not show."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from orthrus_mlx.signals import ends_held


class CtrlC:
    """Notes the first Ctrl-C instead of raising; a second one raises as usual.

    So an answer stops between two tokens, where the cache holds exactly what was said, and
    a model that hangs can still be left. `ends` are the signals that came to end the program.
    """

    def __init__(self, ends: Sequence[int] = ()) -> None:
        self.pressed = False
        self._ends = ends
        self._before: Any = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed, or the program is to end."""
        if self.pressed or self._ends:
            raise KeyboardInterrupt

    @property
    def cause(self) -> str | None:
        """What stopped the answer, in words; None if nothing did."""
        if self._ends:
            return signal.Signals(self._ends[0]).name
        return "Ctrl-C" if self.pressed else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __enter__(self) -> "CtrlC":
        self.pressed = False
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def answering() -> Iterator[CtrlC]:
    """Prepare the terminal for an answer, and put it back afterwards.

    SIGTERM and SIGHUP stop the answer as Ctrl-C does; what they end, they end behind it.
    """
    with ends_held() as ends, no_echo(), CtrlC(ends) as ctrl_c:
        yield ctrl_c


_resumed = 0  # how often Ctrl-Z suspended the program and it went on


def times_resumed() -> int:
    """Say how often the program went on after Ctrl-Z: the shell has written meanwhile."""
    return _resumed


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile off the screen; the next prompt still gets it.

    Ctrl-Z suspends, and gives the terminal back as it was.
    """
    if not sys.stdin.isatty():
        with _on_suspend(_show_cursor, lambda: None):
            yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]

    def put(settings: list[Any]) -> None:
        with suppress(OSError, termios.error):  # the terminal was closed
            if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():  # else the shell has it
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)

    def give_back() -> None:
        _show_cursor()
        put(before)

    put(silent)
    try:
        with _on_suspend(give_back, lambda: put(silent)):
            yield
    finally:
        put(before)


@contextmanager
def _on_suspend(give_back: Callable[[], None], take: Callable[[], None]) -> Iterator[None]:
    """Do something before Ctrl-Z suspends the program, and something when it goes on."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        global _resumed
        give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here it stops
        signal.signal(signal.SIGTSTP, on_signal)
        take()
        _resumed += 1

    before = signal.getsignal(signal.SIGTSTP)
    if before is not signal.SIG_DFL:  # ignored, or already handled
        yield
        return
    signal.signal(signal.SIGTSTP, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _show_cursor() -> None:
    # Progress bars hide it. Past the streams, which may be in the middle of a write.
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        os.write(sys.stderr.fileno(), b"\x1b[?25h")
