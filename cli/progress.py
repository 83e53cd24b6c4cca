"""Progress bars on stderr: on a terminal, gone afterwards; elsewhere at most a few lines."""

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .console import is_screen, note

LONG_PROMPT = 1024  # tokens; fewer are read too soon for a bar to help


class Bar:
    """Shows how far something has come, from the first call to the last or until it is left.

    Call it with (steps done, steps in all). `check` is called first each time and may raise to
    stop what is going on. Fewer steps than `least` need no bar. `amount` is the column that tells
    how many are done. Where there is no terminal, a line at every tenth is said if `tenths`.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        check: Callable[[], None] = lambda: None,
        least: int = 0,
        amount: type[ProgressColumn] = MofNCompleteColumn,
        tenths: bool = False,
    ) -> None:
        self._console = console
        self._name = name
        self._check = check
        self._least = least
        self._amount = amount
        self._said = 0  # tenths
        self._tenths = tenths
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        self._check()
        if not is_screen(self._console):
            if self._tenths and done * 10 // total > self._said:
                self._said = done * 10 // total
                note(self._console, f"{self._name}: {self._said * 10} %")
            return
        if done >= total:
            self.close()
            return
        if self._progress is None:
            if total < self._least:
                return
            self._progress = Progress(
                TextColumn("[dim]{task.description}[/dim]"),
                BarColumn(),
                self._amount(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(self._name, total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def prefill_bar(console: Console, check: Callable[[], None] = lambda: None) -> Bar:
    """Make the bar of reading a prompt, shown for a long one."""
    return Bar(console, "Reading the prompt", check, least=LONG_PROMPT)


def probe_bar(console: Console, check: Callable[[], None] = lambda: None) -> Bar:
    """Make the bar of the probe that exact numerics need once on each device."""
    return Bar(console, "Probing row counts", check)
