"""Reads what a person types, line by line or with an editor, and several lines as one."""

import asyncio
import os
import selectors
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

import platformdirs

from orthrus_mlx.errors import OutputError
from orthrus_mlx.files import expanded

QUOTES = '"""'

Waits = Callable[[], AbstractContextManager[object]]  # entered while input is waited for


class Reader(Protocol):
    """Gives a line a call; EOFError at the end, KeyboardInterrupt when it was cancelled."""

    def read(self, prompt: str) -> str:
        """Read one line, or several that were pasted together."""


def read_message(reader: Reader) -> str:
    '''Read a message: a line, or all that stands between """ and """.'''
    text = reader.read("> ")
    opening = text.lstrip()
    if not opening.startswith(QUOTES):
        return text
    text = opening[len(QUOTES) :]
    while not text.rstrip().endswith(QUOTES):
        try:
            text += "\n" + reader.read("… ")
        except EOFError:  # what is there is the message
            break
    return text.rstrip().removesuffix(QUOTES).rstrip().lstrip("\n")


class LineReader:
    """Reads lines from a pipe or a file."""

    def __init__(self, stream: TextIO | None = None, waits: "Waits | None" = None) -> None:
        self._stream = stream or sys.stdin
        self._waits = waits or nullcontext
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="replace")

    def read(self, prompt: str) -> str:
        """Read a line; the prompt is for people only."""
        waits, self._waits = self._waits, nullcontext  # the first line shows that more may come
        with waits():
            line = self._stream.readline()
        if not line:
            raise EOFError
        return line.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


class EditingReader:
    """Reads from a terminal, with line editing, history and completion."""

    def __init__(self, complete: Callable[[str], Iterable[str]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            history=_open_history(),
            completer=_completer(complete),
            complete_while_typing=False,
            key_bindings=keys,
            enable_suspend=True,  # Ctrl-Z
            input_processors=[_safe_display()],
            # The prompt belongs to the person, even when the answers go to a file.
            output=create_output(always_prefer_tty=True),
        )

    def read(self, prompt: str) -> str:
        """Edit a line; Esc and then Enter adds a line break, a paste keeps its own."""

        def with_select() -> asyncio.AbstractEventLoop:
            return asyncio.SelectorEventLoop(selectors.SelectSelector())

        # macOS cannot wait for /dev/tty by kqueue, which asyncio would take, nor by poll.
        with asyncio.Runner(loop_factory=with_select) as runner:
            return runner.run(self._session.prompt_async([("bold ansiblue", prompt)]))


def _safe_display() -> Any:
    """Show what a paste, a completion or the history holds as `for_terminal` shows it."""
    from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

    from .console import for_terminal

    class SafeDisplay(Processor):
        def apply_transformation(self, shown: TransformationInput) -> Transformation:
            return Transformation([(f[0], for_terminal(f[1])) for f in shown.fragments])

    return SafeDisplay()


def _completer(complete: Callable[[str], Iterable[str]]) -> Any:
    """Wrap a function that completes the text before the cursor."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    from .console import for_terminal

    class SlashCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            text = document.text_before_cursor
            for whole in complete(text):
                shown = for_terminal(whole.split()[-1])
                yield Completion(whole, start_position=-len(text), display=shown)

    return SlashCompleter()


def history_path() -> Path:
    """Say where the lines that were typed are kept."""
    chosen = os.environ.get("ORTHRUS_MLX_HISTORY")
    if chosen:
        return expanded(chosen, OutputError)
    return platformdirs.user_state_path("orthrus-mlx") / "chat_history"


def _open_history() -> Any:
    """Open the history, readable by its owner only; without one if that cannot be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from .console import note, stderr_console

    class KeptHistory(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a full disk ends no chat
                super().store_string(string)

    try:
        path = history_path()
        if path == Path(os.devnull):  # as was asked for
            return InMemoryHistory()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if not path.is_file():
            raise OutputError(f"{path} is not a regular file.")
        with path.open("ab"):
            return KeptHistory(str(path))
    except (OSError, OutputError) as error:
        note(stderr_console(), f"No history of your lines is kept: {error}")
        return InMemoryHistory()


def typed_path(name: str) -> Path:
    """Read a file name as it is typed, in quotes or as a file that is dragged here: `my\\ file`."""
    if "\\" in name or name[:1] in ("'", '"'):
        with suppress(ValueError):  # quotes that nothing closes belong to the name
            words = shlex.split(name)
            name = words[0] if len(words) == 1 and words[0] else name
    return Path(name)


def complete_path(prefix: str) -> Sequence[str]:
    """Complete the name of a file or folder."""
    folder, _, start = prefix.rpartition("/")
    try:
        base = expanded(folder + "/", OutputError) if "/" in prefix else Path()
        entries = sorted(base.iterdir())
    except (OSError, OutputError):
        return []
    lead = f"{folder}/" if "/" in prefix else ""
    return [
        f"{lead}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start) and (start or not entry.name.startswith("."))
    ]
