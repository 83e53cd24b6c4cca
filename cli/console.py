"""Where things are printed: answers go to stdout, everything else to stderr.

`for_terminal` is the one door for text from outside (checkpoints, templates, file names, saved
conversations, the model). Every line goes through it: a `SafeConsole` puts all that it prints
through it, `cli.render.PlainScreen` what streams to a terminal, `cli.app` what typer prints.
Into a pipe an answer stays byte for byte.
"""

import errno
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from orthrus_mlx.errors import PromptError

PATIENCE = 2.0  # seconds of waiting for standard input before that is said


# Characters that a terminal obeys or that deceive the eye: C0 but tab and line break, each to its
# picture; the rest to U+FFFD. The joiners U+200C and U+200D stay: scripts and emoji need them.
_UNSAFE: dict[int, int | None] = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\t\n\r"}
_UNSAFE |= {0x7F: 0x2421, ord("\r"): None}
_UNSAFE |= {
    c: 0xFFFD
    for first, last in (
        (0x80, 0x9F),  # C1
        (0xAD, 0xAD),  # soft hyphen
        (0x34F, 0x34F),  # grapheme joiner
        (0x61C, 0x61C),  # bidi: Arabic letter mark
        (0x115F, 0x1160),  # Hangul fillers
        (0x17B4, 0x17B5),  # Khmer inherent vowels
        (0x180B, 0x180F),  # Mongolian selectors and separator
        (0x200B, 0x200B),  # zero-width space
        (0x200E, 0x200F),  # bidi marks
        (0x2028, 0x202E),  # line and paragraph separator, bidi embeddings and overrides
        (0x2060, 0x206F),  # word joiner, invisible operators, bidi isolates
        (0x3164, 0x3164),  # Hangul filler
        (0xFEFF, 0xFEFF),  # byte order mark
        (0xFFA0, 0xFFA0),  # Hangul filler
        (0xFFF0, 0xFFFB),  # unassigned invisibles, interlinear annotation
        (0x1BCA0, 0x1BCA3),  # shorthand format controls
        (0x1D173, 0x1D17A),  # musical format controls
        (0xE0000, 0xE0FFF),  # tags and supplementary selectors
        (0xD800, 0xDFFF),  # lone surrogates: bytes that are not UTF-8
    )
    for c in range(first, last + 1)
}


def for_terminal(text: str) -> str:
    """Make text safe to print on a terminal, whatever it came from."""
    return text.translate(_UNSAFE)


class SafeConsole(Console):
    """A console that prints nothing which a terminal would obey, other than its own codes."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render, with every text made safe."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(for_terminal(text), style)

    def on_broken_pipe(self) -> None:
        """Treat a closed pipe as any stream does: the error goes on to whoever prints."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def stderr_console(quiet: bool = False) -> Console:
    """Make the console for all that is not the answer; a quiet one prints nothing."""
    return SafeConsole(stderr=True, highlight=False, quiet=quiet)


def answer_console() -> Console:
    """Make the console for the answer."""
    return SafeConsole(highlight=False)


def is_screen(console: Console) -> bool:
    """Whether a person looks at this console, on a terminal that can move its cursor."""
    return console.file.isatty() and not console.is_dumb_terminal


def note(console: Console, text: str, style: str = "dim") -> None:
    """Print a line without markup; a terminal's lines break between words."""
    console.print(Text(_fitted(for_terminal(text), console), style=style), soft_wrap=True)


def _fitted(text: str, console: Console, first: int = 0) -> str:
    """Break text for a terminal between words; what stands in backticks is to be pasted whole.

    `first` cells of the first line are taken. A word that is longer than a line is left to the
    terminal, whose breaks are not copied.
    """
    if not console.is_terminal:
        return text
    broken, at = "", first
    for space, word in re.findall(r"(\s*)(`[^`]*`\S*|\S+)", text):
        if at and at + cell_len(space + word) > console.width:
            broken, at, space = broken + "\n", 0, ""
        broken += space + word
        at += cell_len(space + word)
    return broken


def print_error(error: Exception, console: Console | None = None) -> None:
    """Print `error: ...` in red on stderr, in one line where that is no terminal."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename} cannot be used" if error.filename else "Output cannot be written"
        message = f"{what}: {error.strerror}."
    message = for_terminal(message.strip().replace("\n", " "))
    console = console or stderr_console()
    lead = "error: "
    line = Text.assemble((lead, "bold red"), (_fitted(message, console, len(lead)), "red"))
    console.print(line, soft_wrap=True)


def read_stdin(hint: str = "") -> str:
    """Read all of standard input; after a while say that it is awaited."""
    if sys.stdin is None:
        return ""
    if hasattr(sys.stdin, "reconfigure"):  # not so for a stand-in
        sys.stdin.reconfigure(errors="surrogateescape")  # refused where it becomes a prompt
    with waiting(f"Waiting for standard input to end{hint and f'; {hint}'}."):
        try:
            return sys.stdin.read().removeprefix("\ufeff")
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
