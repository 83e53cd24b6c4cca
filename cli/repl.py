"""The chat loop: read, answer, repeat. It knows no model and no terminal."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from rich.console import Console

from orthrus_mlx.errors import ContextLengthError, OrthrusError
from orthrus_mlx.signals import ends_held

from .console import note, print_error
from .conversation import Conversation, Turn
from .progress import prefill_bar, probe_bar
from .reader import Reader, read_message
from .render import Screen
from .settings import Settings
from .slash import SlashCommands
from .stats import BY_COMMAND, BY_FLAG, Totals, chat_line, cut_line, no_drafts_line
from .terminal import answering
from .thinking import DEFAULT_TAGS, Answer


class Session(Protocol):
    """What answers; `orthrus_mlx.session.ChatSession` does."""

    reused_tokens: int
    prompt_text: str
    thinking: bool | None

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the chat template lets one choose between thinking and not."""

    @property
    def cached_tokens(self) -> int:
        """How many tokens the cache holds."""

    def stream(
        self, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Generator[Any, None, None]:
        """Stream the responses that answer the messages."""

    def reset(self) -> None:
        """Forget everything."""

    def prepare(self, constraint: Any) -> None:
        """Make what a constraint needs."""


class Chat:
    """One chat: who reads, who answers, where it shows, and what was said so far.

    When nobody is there to react (`interactive=False`, input from a pipe), every line is a message,
    but for /bye, and the first error or Ctrl-C ends the chat; otherwise it goes on.
    `keep` is called after each line that was dealt with. What a constraint shapes goes to
    `exact_screen`, if there is one: JSON is no Markdown.
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
        think_tags: tuple[str, str] = DEFAULT_TAGS,
        interactive: bool = True,
        extra_options: Mapping[str, Any] | None = None,
        exact_screen: Screen | None = None,
        keep: Callable[[Conversation], None] | None = None,
    ) -> None:
        self.session = session
        self.notes = notes
        self.model_name = model_name
        self.conversation = conversation or Conversation()
        self.settings = settings or Settings()
        self.totals = Totals()
        self._reader = reader
        self._screens = {False: screen, True: exact_screen or screen}
        self._think_tags = think_tags
        self._interactive = interactive
        self._extra_options = dict(extra_options or {})
        self._keep = keep or (lambda conversation: None)
        self._remedies = BY_COMMAND if interactive else BY_FLAG
        self._told_why = False  # whether it was said why answers have no drafts
        self._attempt = 0  # how often the last question was asked again
        self._commands = SlashCommands(self)

    def run(self) -> None:
        """Go on until the input ends or `/bye`."""
        while True:
            try:
                line = self._next_line()
                with ends_held():  # what is said by then is kept first
                    text = self._taken(line)
                    if text is not None:
                        self.ask(text)
                    self._keep(self.conversation)
            except EOFError:
                return
            except KeyboardInterrupt:  # the line was cleared
                if not self._interactive:
                    raise
            except BrokenPipeError:
                raise
            # A chat outlives its errors, such as a full disk: it holds what was said.
            except (OrthrusError, OSError, ValueError, RuntimeError) as error:
                if not self._interactive:
                    raise
                print_error(error, self.notes)
                if isinstance(error, ContextLengthError):
                    note(self.notes, "The conversation is too long: /undo some of it, or /clear")

    def _next_line(self) -> str | None:
        """Read on; None where a message waits already. EOFError at the end."""
        if self.conversation.pending is not None:
            return None
        if not self._interactive:
            return self._reader.read("")
        try:
            return read_message(self._reader)
        except OSError:  # the terminal is gone; nobody could ask again
            raise EOFError from None

    def _taken(self, line: str | None) -> str | None:
        """The message of a line; None for what was no message. EOFError at the end."""
        if line is None:
            pending, self.conversation.pending = self.conversation.pending, None
            return pending
        if self._interactive:
            return self._commands.take(line)
        if line.strip() == "/bye":
            raise EOFError
        return line if line.strip() else None

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
        screen = self._screens[self.settings.asked is not None]
        self.session.thinking = self.settings.thinking.wanted
        with (
            answering() as ctrl_c,
            screen,
            prefill_bar(self.notes, ctrl_c.check) as reading,
            probe_bar(self.notes, ctrl_c.check) as probing,
        ):
            answer = Answer(screen.write)
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
                            prompt = self.session.prompt_text
                            answer = Answer(screen.write, prompt, self._think_tags)
                        last = response
                        answer.feed(response.text)
                        ctrl_c.check()
            except KeyboardInterrupt:
                ctrl_c.pressed = ctrl_c.pressed or ctrl_c.cause is None
            answer.finish()
        if last is None:  # Ctrl-C while the prompt was read
            note(self.notes, "Stopped before the answer began; your message was not kept.")
        else:
            self._report(last, stopped=ctrl_c.cause, thinks=answer.thinks)
        if ctrl_c.pressed and not self._interactive:
            raise KeyboardInterrupt
        return Turn(question, answer.text, answer.thinking) if last is not None else None

    def _report(self, last: Any, stopped: str | None, thinks: bool) -> None:
        """Print the stats line, and why the answer ended if it was not the model's doing."""
        self.totals.add(last, self.session.reused_tokens)
        note(
            self.notes,
            chat_line(last, self.session.reused_tokens, sampled=self.settings.temp > 0),
        )
        line = no_drafts_line(last, self.settings.mode.value, self._remedies)
        if line and not self._told_why:  # once a chat
            self._told_why = True
            note(self.notes, line)
        asked = self.settings.asked
        noun = asked.noun if asked else ""
        line = cut_line(last, self._remedies, stopped=stopped, thinks=thinks, noun=noun)
        if line:
            note(self.notes, line)
        if self._interactive:
            self.notes.print()
