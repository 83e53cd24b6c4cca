"""Ctrl-C while an answer streams: a wish to stop at the next token."""

import signal
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
