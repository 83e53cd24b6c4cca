"""Shows an answer as it streams: plain text, or Markdown on a terminal."""

import time
from functools import cache
from io import StringIO
from types import TracebackType
from typing import Protocol, TextIO

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.markdown import Markdown
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from .console import for_terminal
from .terminal import times_resumed
from .thinking import Kind

REDRAW_SECONDS = 0.08


class Screen(Protocol):
    """Where an answer is shown: enter, write its pieces, exit."""

    def write(self, kind: Kind, text: str) -> None:
        """Show a piece of the answer."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class PlainScreen:
    """Writes what the model wrote, and a final line break.

    The thinking, without its tags, goes to the console `aside`; without one it stays in the text.
    """

    def __init__(self, stream: TextIO, aside: Console | None = None) -> None:
        self._stream = stream
        self._to_terminal = stream.isatty()
        self._aside = _Thinking(aside) if aside is not None else None
        self._last = ""
        self._after_thinking = False

    def write(self, kind: Kind, text: str) -> None:
        """Write a piece as it is."""
        if self._aside is not None and kind is not Kind.answer:
            if kind is Kind.thinking:
                self._aside.write(text)
            self._after_thinking = True
            return
        if self._after_thinking and not self._last:  # the blank lines between belong to neither
            text = text.lstrip("\n")
        if text:
            if self._aside is not None:
                self._aside.end()
            self._stream.write(for_terminal(text) if self._to_terminal else text)
            self._stream.flush()
            self._last = text

    def __enter__(self) -> "PlainScreen":
        self._last, self._after_thinking = "", False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._aside is not None:
            self._aside.end()
        if self._last and not self._last.endswith("\n"):
            self._stream.write("\n")
            self._stream.flush()


class _Thinking:
    """Streams thinking to a console, dimmed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def write(self, text: str) -> None:
        """Show a piece, without the blank space at the start of all."""
        text = for_terminal(text if self._last else text.lstrip())
        if text:
            self._console.print(Text(text, style="dim italic"), end="", soft_wrap=True)
            self._last = text

    def end(self, blank_line: bool = False) -> None:
        """End the last line, if there was any thinking."""
        if self._last:
            breaks = 1 + blank_line - self._last.endswith("\n")
            self._console.print("\n" * breaks, end="")
            self._last = ""


class MarkdownScreen:
    """Renders Markdown block by block: finished blocks are printed, the last one is live.

    Only the block in progress is drawn again, and only as much of its end as the terminal can
    show, so answers of any length scroll as text should. Thinking streams dimmed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start()

    def _start(self) -> None:
        self._block = ""  # Markdown not printed yet
        self._printed = False  # whether something stands above
        self._thinking = _Thinking(self._console)
        self._live = _Drawing(self._console)
        self._drawn = 0.0

    def write(self, kind: Kind, text: str) -> None:
        """Show a piece: thinking at once, answer text when it is time to draw."""
        if kind is Kind.thinking:
            self._thinking.write(text)
        elif kind is Kind.answer:
            text = for_terminal(text)
            if not self._block:
                text = text.lstrip("\n")
                if text:
                    self._thinking.end(blank_line=True)
            self._block += text
            if "\n" in text:
                self._print_finished()
            self._draw()

    def _print_finished(self) -> None:
        """Print the blocks that further text cannot change."""
        done, rest = split_blocks(self._block)
        if done:
            self._print(done)
            self._block = rest
            self._drawn = 0.0

    def _print(self, markup: str) -> None:
        self._live.replace(_Blocks(markup, blank_line=self._printed))
        self._live.keep()
        self._printed = True

    def _draw(self) -> None:
        """Draw the block in progress, unless it was just drawn."""
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS or not self._block:
            return
        self._drawn = now
        self._live.replace(_Blocks(self._block, blank_line=self._printed, on_screen=True))

    def __enter__(self) -> "MarkdownScreen":
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thinking.end(blank_line=True)
        if self._block.strip():
            self._print(self._block)
        self._block = ""


class _Drawing:
    """The last lines on the screen, which are replaced as a text grows.

    A terminal that has become narrower has broken them into more rows: those are counted, so
    that a resize leaves none behind.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []  # of the lines drawn, in cells
        self._resumed = times_resumed()

    def replace(self, lines: "_Blocks") -> None:
        """Draw lines in the place of those that stand there; the cursor is left below."""
        resumed = times_resumed()
        if resumed != self._resumed:  # the shell has written below
            self._resumed, self._widths = resumed, []
        width = self._console.width
        rows = sum(max(-(-line // width), 1) for line in self._widths)
        erase = Control(*[(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * rows)
        segments = list(self._console.render(lines))
        self._widths = [Segment.get_line_length(line) for line in Segment.split_lines(segments)]
        self._console.print(Segments([erase.segment, *segments]), end="", crop=False)

    def keep(self) -> None:
        """Leave the lines where they stand, and draw below."""
        self._widths = []


class _Blocks:
    """Markdown with one blank line between blocks, where rich puts more around some kinds.

    `blank_line` puts one above, and `on_screen` leaves out what the terminal is too low to
    draw again.
    """

    def __init__(self, markup: str, *, blank_line: bool, on_screen: bool = False) -> None:
        self._markup = markup
        self._blank_line = blank_line
        self._on_screen = on_screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[list[Segment]] = []
        for block in _blocks(self._markup):
            if lines or self._blank_line:
                lines.append([])
            content = ChatMarkdown(block)
            rows = console.render_lines(content, options.update(height=None), pad=False)
            filled = [n for n, row in enumerate(rows) if any(s.text.strip() for s in row)]
            lines += rows[filled[0] : filled[-1] + 1] if filled else []
        if self._on_screen:
            lines = lines[-max(console.height - 2, 1) :]
        for line in lines:
            yield from _trimmed(line)
            yield Segment.line()


def _trimmed(line: list[Segment]) -> list[Segment]:
    """Take the blanks off the end of a line: a narrower terminal would break them into rows."""
    line = list(line)
    while line and not (line[-1].style and line[-1].style.bgcolor):
        last = line.pop()
        if text := last.text.rstrip(" "):
            return [*line, Segment(text, last.style)]
    return line


class ChatMarkdown(Markdown):
    """Markdown as chat models write it.

    Line breaks stand, and what looks like HTML or an escape (`<vector>`, LaTeX's `\\(`) is
    text: nothing that the model wrote disappears.
    """

    def __init__(self, markup: str) -> None:
        super().__init__(markup, code_theme="ansi_dark", hyperlinks=False)
        self.parsed = _parser().parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def split_blocks(markup: str) -> tuple[str, str]:
    """Cut Markdown before its last block: more text cannot change what stands before it.

    Unfinished lines are left out of account, since they may yet become anything.
    """
    lines = StringIO(markup).readlines()
    starts = _block_starts(markup[: markup.rfind("\n") + 1])
    cut = starts[-1] if len(starts) > 1 else 0
    return "".join(lines[:cut]), "".join(lines[cut:])


def _blocks(markup: str) -> list[str]:
    """Cut Markdown into its blocks."""
    lines = StringIO(markup).readlines()
    starts = _block_starts(markup)
    return ["".join(lines[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]


def _block_starts(markup: str) -> list[int]:
    """List the lines where blocks begin."""
    tokens = _parser().parse(markup)
    return [token.map[0] for token in tokens if token.level == 0 and token.map is not None]


@cache
def _parser() -> MarkdownIt:
    rules = MarkdownIt("commonmark", {"html": False})
    return rules.enable(["table", "strikethrough"]).disable(["escape", "reference"])
