"""Progress bars on stderr: on a terminal, gone afterwards; elsewhere at most a few lines."""

from collections.abc import Callable
from time import monotonic
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

PATIENCE = 2.0  # seconds; what is over sooner needs no line where there is no terminal
LONG_PROMPT = 1024  # tokens; fewer are read too soon for a bar to help


class Bar:
    """Shows how far something has come, from the first call to the last or until it is left.

    Call it with (steps done, steps in all). `check` is called first each time and may raise to
    stop what is going on. Fewer steps than `least` need no bar. `amount` is the column that tells
    how many are done. Where there is no terminal, a line at every tenth is said once `patience`
    seconds have passed; None for no lines.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        check: Callable[[], None] = lambda: None,
        least: int = 0,
        amount: type[ProgressColumn] = MofNCompleteColumn,
        patience: float | None = PATIENCE,
    ) -> None:
        self._console = console
        self._name = name
        self._check = check
        self._least = least
        self._amount = amount
        self._said = 0  # tenths
        self._patience = patience
        self._start: float | None = None
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` steps are done."""
        self._check()
        if not is_screen(self._console):
            self._say(done * 10 // total)
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

    def _say(self, tenths: int) -> None:
        if self._patience is None:
            return
        if self._start is None or tenths < self._said:  # or another run of the same kind
            self._start, self._said = monotonic(), 0
        if tenths > self._said and monotonic() - self._start >= self._patience:
            self._said = tenths
            note(self._console, f"{self._name}: {tenths * 10} %")

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
    return Bar(console, "Reading the prompt", check, least=LONG_PROMPT, patience=None)


def probe_bar(console: Console, check: Callable[[], None] = lambda: None) -> Bar:
    """Make the bar of what is measured once on each device: the probe, and calibration."""
    from orthrus_mlx.device import backend

    compiles = backend.backend() == backend.METAL
    return Bar(console, "Measuring this device" + ", compiling kernels" * compiles, check)
