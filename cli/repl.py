"""The chat loop: read, answer, repeat. It knows no model and no terminal."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from rich.console import Console

from orthrus_mlx.errors import ContextLengthError, OrthrusError

from .console import note, print_error
from .conversation import Conversation, Turn
from .progress import prefill_bar, probe_bar
from .reader import Reader, read_message
from .render import Screen
from .settings import Settings
from .slash import SlashCommands
from .stats import Totals, chat_line
from .terminal import answering
from .thinking import Kind, Piece, ThinkingSplitter


class Session(Protocol):
    """What answers; `orthrus_mlx.session.ChatSession` does."""

    reused_tokens: int
    prompt_text: str

    @property
    def cached_tokens(self) -> int:
        """How many tokens the cache holds."""

    def stream(
        self, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Generator[Any, None, None]:
        """Stream the responses that answer the messages."""

    def reset(self) -> None:
        """Forget everything."""


class Chat:
    """One chat: who reads, who answers, where it shows, and what was said so far.

    When nobody is there to react (`interactive=False`, input from a pipe), the first error or
    Ctrl-C ends the chat; otherwise it goes on.
    """

    def __init__(
        self,
        session: Session,
        reader: Reader,
        screen: Screen,
        notes: Console,
        *,
        model_name: str,
        conversation: Conversation | None = None,
        settings: Settings | None = None,
        think_tags: tuple[str, str] = ("<think>", "</think>"),
        interactive: bool = True,
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.session = session
        self.notes = notes
        self.model_name = model_name
        self.conversation = conversation or Conversation()
        self.settings = settings or Settings()
        self.totals = Totals()
        self._reader = reader
        self._screen = screen
        self._think_tags = think_tags
        self._interactive = interactive
        self._extra_options = dict(extra_options or {})
        self._attempt = 0  # how often the last question was asked again
        self._commands = SlashCommands(self)

    def run(self) -> None:
        """Go on until the input ends or `/quit`."""
        while True:
            try:
                text = read_message(self._reader)
            except KeyboardInterrupt:  # the line was cleared
                if not self._interactive:
                    raise
                continue
            except EOFError:
                return
            if not text.strip():
                continue
            try:
                if self._commands.handles(text):
                    if not self._commands.run(text):
                        return
                else:
                    self.ask(text)
            except OrthrusError as error:
                if not self._interactive:
                    raise
                print_error(error, self.notes)
                if isinstance(error, ContextLengthError):
                    note(self.notes, "The conversation is too long: /undo some of it, or /reset")

    def ask(self, question: str) -> None:
        """Answer a question; it becomes part of the conversation if that works."""
        turn = self._answer(question, attempt=0)
        if turn is not None:
            self.conversation.turns.append(turn)
            self._attempt = 0

    def retry(self) -> None:
        """Answer the last question again; the old answer stays if that fails."""
        last = self.conversation.turns.pop()
        turn = None
        try:
            turn = self._answer(last.question, attempt=self._attempt + 1)
        finally:
            self.conversation.turns.append(turn or last)
        if turn is not None:
            self._attempt += 1

    def _answer(self, question: str, attempt: int) -> Turn | None:
        """Stream an answer to the screen; None if it was stopped before its first token."""
        last: Any = None
        with (
            answering() as ctrl_c,
            self._screen,
            prefill_bar(self.notes, ctrl_c.check) as reading,
            probe_bar(self.notes, ctrl_c.check) as probing,
        ):
            answer = _Answer(self._screen)
            responses = self.session.stream(
                self.conversation.messages(question),
                **self.settings.options(attempt),
                **self._extra_options,
                prompt_progress_callback=reading,
                probe_progress_callback=probing,
            )
            try:
                with closing(responses):
                    for response in responses:
                        if last is None:
                            answer.splitter = self._new_splitter()
                        last = response
                        answer.feed(response.text)
                        ctrl_c.check()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                ctrl_c.pressed = True
            answer.finish()
        if last is None:  # Ctrl-C while the prompt was read
            note(self.notes, "Stopped before the answer began; your message was not kept.")
            return None
        self._report(last, stopped=ctrl_c.pressed)
        return answer.turn(question)

    def _new_splitter(self) -> ThinkingSplitter:
        opens, closes = self._think_tags
        is_open = self.session.prompt_text.rstrip().endswith(opens)
        return ThinkingSplitter(is_open, opens, closes)

    def _report(self, last: Any, stopped: bool) -> None:
        """Print the stats line, and why the answer ended if it was not the model's doing."""
        self.totals.add(last, self.session.reused_tokens)
        line = chat_line(last, self.session.reused_tokens, sampled=self.settings.temp > 0)
        if stopped and last.finish_reason is None:
            line = f"stopped · {line}"
        elif last.finish_reason == "length":
            line = f"cut off at max_tokens ({self.settings.max_tokens}) · {line}"
        note(self.notes, line)
        if self._interactive:
            self.notes.print()


class _Answer:
    """An answer on its way to the screen."""

    def __init__(self, screen: Screen) -> None:
        self.splitter = ThinkingSplitter()
        self._screen = screen
        self._said: dict[Kind, str] = dict.fromkeys(Kind, "")

    def feed(self, text: str) -> None:
        """Show the next piece of text."""
        self._show(self.splitter.feed(text))

    def finish(self) -> None:
        """Show what was held back."""
        self._show(self.splitter.finish())

    def turn(self, question: str) -> Turn:
        """Put question and answer together."""
        answer = self._said[Kind.answer]
        if self._said[Kind.tag]:  # the blank lines after the thinking are part of neither
            answer = answer.lstrip("\n")
        return Turn(question, answer, self._said[Kind.thinking].strip())

    def _show(self, pieces: list[Piece]) -> None:
        for kind, text in pieces:
            self._said[kind] += text
            self._screen.write(kind, text)
