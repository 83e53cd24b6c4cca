"""A progress bar for reading a long prompt."""

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .console import is_screen

LONG_PROMPT = 1024  # tokens; fewer are read too soon for a bar to help


class PrefillBar:
    """Shows how much of a long prompt is read; on a terminal only, and gone afterwards.

    Call it as the engine's `prompt_progress_callback`. `check` is called first each time and
    may raise to stop reading.
    """

    def __init__(self, console: Console, check: Callable[[], None] = lambda: None) -> None:
        self._console = console
        self._check = check
        self._progress: Progress | None = None

    def __call__(self, processed: int, total: int) -> None:
        """Show that `processed` of `total` prompt tokens are read."""
        self._check()
        if processed >= total:
            self.close()
            return
        if self._progress is None:
            if total < LONG_PROMPT or not is_screen(self._console):
                return
            self._progress = Progress(
                TextColumn("[dim]Reading the prompt[/dim]"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(self._task, completed=processed)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> "PrefillBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
