"""Where things are printed: answers go to stdout, everything else to stderr."""

import sys

from rich.console import Console
from rich.text import Text


def stderr_console() -> Console:
    """Make the console for all that is not the answer."""
    return Console(stderr=True, highlight=False)


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


def read_stdin() -> str:
    """Read all of standard input, whatever its bytes are."""
    if hasattr(sys.stdin, "reconfigure"):  # not so for a stand-in
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin.read()
