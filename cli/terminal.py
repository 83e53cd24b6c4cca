"""The terminal while an answer streams: Ctrl-C is noted, and typing does not show."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """Notes the first Ctrl-C instead of raising; a second one raises as usual.

    So an answer stops between two tokens, where the cache holds exactly what was said, and
    a model that hangs can still be left.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

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
    """Prepare the terminal for an answer, and put it back afterwards."""
    with no_echo(), CtrlC() as ctrl_c:
        yield ctrl_c


@contextmanager
def no_echo() -> Iterator[None]:
    """Keep what is typed meanwhile off the screen; the next prompt still gets it."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
