"""Where things are printed: answers go to stdout, everything else to stderr."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from orthrus_mlx.errors import PromptError

PATIENCE = 2.0  # seconds of waiting for standard input before that is said


def stderr_console(quiet: bool = False) -> Console:
    """Make the console for all that is not the answer; a quiet one prints nothing."""
    return Console(stderr=True, highlight=False, quiet=quiet)


def answer_console() -> Console:
    """Make the console for the answer."""
    return Console(highlight=False)


def is_screen(console: Console) -> bool:
    """Whether a person looks at this console, on a terminal that can move its cursor."""
    return console.file.isatty() and not console.is_dumb_terminal


def note(console: Console, text: str, style: str = "dim") -> None:
    """Print a line as it stands: no markup, and no breaks that the terminal did not make."""
    console.print(Text(text, style=style), soft_wrap=True)


# Control characters but tab and line break, each to its picture; a terminal obeys the real ones.
_PICTURES: dict[int, int | None] = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\t\n\r"}
_PICTURES |= {0x7F: 0x2421, ord("\r"): None, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}


def for_terminal(text: str) -> str:
    """Make text safe to print on a terminal, whatever a model wrote."""
    return text.translate(_PICTURES)


def print_error(error: Exception, console: Console | None = None) -> None:
    """Print `error: ...` in red on stderr."""
    line = Text.assemble(("error: ", "bold red"), (str(error), "red"))
    (console or stderr_console()).print(line, soft_wrap=True)


def read_stdin(hint: str = "") -> str:
    """Read all of standard input, whatever its bytes are; after a while say that it is awaited."""
    if sys.stdin is None:
        return ""
    if hasattr(sys.stdin, "reconfigure"):  # not so for a stand-in
        sys.stdin.reconfigure(errors="replace")
    with waiting(f"Waiting for standard input to end{hint and f'; {hint}'}."):
        try:
            return sys.stdin.read()
        except OSError as error:
            raise PromptError(f"Standard input cannot be read: {error.strerror}.") from None


@contextmanager
def waiting(line: str) -> Iterator[None]:
    """Say on stderr what is waited for, if that takes longer than a moment."""
    timer = threading.Timer(PATIENCE, note, (stderr_console(), line))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
