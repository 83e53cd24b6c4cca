"""The slash commands of a chat."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from orthrus_mlx.errors import OrthrusError

from .console import note
from .conversation import Conversation
from .reader import complete_path, typed_path
from .settings import FILES, SETTINGS, Settings, shorten
from .stats import Totals, acceptance, plural, speed
from .structured import building
from .thinking import NO_SWITCH


class Cache(Protocol):
    """What a chat's session keeps of the conversation."""

    @property
    def cached_tokens(self) -> int:
        """How many tokens the KV cache holds."""

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the chat template lets one choose between thinking and not."""

    def reset(self) -> None:
        """Forget everything."""

    def prepare(self, constraint: Any) -> None:
        """Make what a constraint needs."""


class ChatState(Protocol):
    """What the commands read and change of a chat; `orthrus_mlx.cli.repl.Chat` has it."""

    conversation: Conversation
    model_name: str
    notes: Console
    settings: Settings
    totals: Totals

    @property
    def session(self) -> Cache:
        """What answers."""

    def retry(self) -> None:
        """Answer the last question again."""


class CommandError(OrthrusError):
    """A slash command that cannot do its work now."""


@dataclass(frozen=True)
class Command:
    """A slash command, as `/help` shows it."""

    name: str
    takes: str
    help: str


COMMANDS = (
    Command("/help", "COMMAND", "show this list, or one command; /? does too"),
    Command("/clear", "", "forget the conversation, but not the system prompt"),
    Command("/undo", "", "take back the last question and its answer"),
    Command("/retry", "", "answer the last question again"),
    Command("/system", "TEXT", 'set the system prompt; alone, show it; "" removes it'),
    Command("/set", "NAME VALUE", "change a setting; without VALUE show it, alone all"),
    Command("/stats", "", "show what the session cost so far"),
    Command("/save", "FILE", "save the conversation; /save! replaces a file"),
    Command("/load", "FILE", "go on with a saved conversation, or OpenAI messages"),
    Command("/bye", "", "leave (or Ctrl-D); /quit and /exit too"),
)
NAMES = tuple(command.name for command in COMMANDS)
# Typed, but not listed.
_ALIASES = {"/?": "/help", "/reset": "/clear", "/quit": "/bye", "/exit": "/bye", "/save!": "/save"}
_KNOWN = (*NAMES, *_ALIASES)
_TAKES_NOTHING = {command.name for command in COMMANDS if not command.takes}

_KEYS = (
    ('"""', "around several lines; pasting them works too, and Esc, Enter"),
    ("Ctrl-C", "stop the answer, keeping what was said; or clear the line"),
    ("Ctrl-D", "leave"),
    ("Tab", "complete a command, a setting or a file name"),
)


def complete(text: str) -> Iterable[str]:
    """Complete what stands before the cursor, if it is a command."""
    name, space, argument = text.partition(" ")
    if not text.startswith("/") or "\n" in text:
        return []
    if not space:
        listed = [c.name + " " * bool(c.takes) for c in COMMANDS if c.name.startswith(name)]
        return listed or [alias for alias in _ALIASES if alias.startswith(name)]
    if name in ("/save", "/save!", "/load"):
        return [f"{name} {path}" for path in complete_path(argument)]
    if name != "/set":
        return []
    setting, space, value = argument.partition(" ")
    if not space:
        return [f"/set {known} " for known in SETTINGS if known.startswith(setting)]
    if setting in FILES:
        return [f"/set {setting} {path}" for path in complete_path(value)]
    choices = SETTINGS[setting].choices if setting in SETTINGS else ()
    return [f"/set {setting} {choice}" for choice in choices if choice.startswith(value)]


@dataclass(frozen=True)
class _Doubt:
    """A line that may be a message, and the command that may have been meant."""

    line: str
    command: str


class SlashCommands:
    """Runs slash commands on a chat.

    A command is a known name at the start of a line. A name that is nearly one, or a command that
    takes nothing with more behind it, may be either: the person is asked.
    """

    def __init__(self, chat: ChatState) -> None:
        self._chat = chat
        self._doubt: _Doubt | None = None
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/undo": self._undo,
            "/retry": self._retry,
            "/system": self._system,
            "/set": self._set,
            "/stats": self._stats,
            "/save": self._save,
            "/save!": lambda name: self._save(name, overwrite=True),
            "/load": self._load,
        }

    def take(self, text: str) -> str | None:
        """Run a command, or give back the text that is a message.

        Raises:
            EOFError: the chat is over.
        """
        doubt, self._doubt = self._doubt, None
        reply = text.strip().lower()
        if doubt is not None and reply in ("n", "no"):
            return doubt.line
        if doubt is not None and reply in ("y", "yes"):
            self._run(doubt.command)
            return None
        name, argument = _split(text)
        if name in _KNOWN:
            if argument and _ALIASES.get(name, name) in _TAKES_NOTHING:
                self._ask(f"{name} takes nothing behind it.", text, name)
            else:
                self._run(text)
            return None
        near = _nearest(name) if "\n" not in text.strip() else None
        if near is not None:
            question = f"No command is called {name}. Did you mean {near}?"
            self._ask(question, text, f"{near} {argument}".strip())
            return None
        return text if reply else None

    def _ask(self, question: str, line: str, command: str) -> None:
        self._doubt = _Doubt(line, command)
        self._note(question)
        self._note(f"y runs {shorten(command)}, n sends your line as a message.")

    def _run(self, text: str) -> None:
        name, argument = _split(text)
        name = name if name in self._actions else _ALIASES.get(name, name)
        if name == "/bye":
            raise EOFError
        self._actions[name](argument)

    def _note(self, text: str) -> None:
        note(self._chat.notes, text)

    def _help(self, name: str) -> None:
        rows = [
            (f"{command.name} {command.takes}", command.help)
            for command in COMMANDS
            if not name or command.name.removeprefix("/") == name.removeprefix("/")
        ]
        if not rows:
            raise CommandError(f"No command is called {name}. /help lists them all.")
        for left, right in rows if name else (*rows, *_KEYS):
            self._note(f"  {left:<18}{right}")
        if not name:
            self._note("  Any other text is a message, also one that starts with a slash.")

    def _clear(self, _: str) -> None:
        self._chat.conversation.turns.clear()
        self._chat.conversation.path = None
        self._chat.session.reset()
        self._note("The conversation starts anew.")

    def _undo(self, _: str) -> None:
        turns = self._chat.conversation.turns
        if not turns:
            raise CommandError("There is nothing to undo.")
        self._note(f"Taken back: {shorten(turns.pop().question)}")

    def _retry(self, _: str) -> None:
        if not self._chat.conversation.turns:
            raise CommandError("There is no question to answer again.")
        before = self._chat.conversation.turns[-1]
        self._chat.retry()
        after = self._chat.conversation.turns[-1]
        if after is not before and after.answer == before.answer:
            greedy = self._chat.settings.temp == 0
            self._note(f"The same answer{'; for others: /set temp 0.7' if greedy else ''}")

    def _system(self, text: str) -> None:
        conversation = self._chat.conversation
        if text:
            conversation.system = None if text in ('""', "''") else text
        self._note(f"System prompt: {conversation.system or 'none'}")

    def _set(self, text: str) -> None:
        settings = self._chat.settings
        if not text:
            for line in settings.lines():
                self._note(f"  {line}")
            return
        text = text.removeprefix("parameter ").lstrip()  # as in Ollama
        if text.split(maxsplit=1)[0] == "system":
            self._system(text.removeprefix("system").strip())
            return
        # NAME VALUE or NAME=VALUE; a value may hold = and line breaks.
        name = re.split(r"[\s=]", text, maxsplit=1)[0]
        value = text.removeprefix(name).lstrip().removeprefix("=")
        if name == "nothink":
            name, value = "thinking", "off"
        elif name == "think" and not value.strip():
            value = "on"
        before = settings.asked
        said = settings.set(name, value.strip())
        if settings.asked is not None and settings.asked is not before:
            try:
                with building(self._chat.notes):
                    self._chat.session.prepare(settings.asked.constraint)
            except BaseException:
                settings.asked = before
                raise
        self._note(said)
        if value and settings.thinking.wanted is not None and "think" in name:
            note_missing_switch(self._chat.session, self._chat.notes)

    def _stats(self, _: str) -> None:
        totals = self._chat.totals
        if not totals.answers:
            self._note("Nothing was answered yet.")
            return
        read = totals.prompt_tokens
        self._note(f"  {plural(totals.answers, 'answer')}, {plural(totals.tokens, 'token')}")
        self._note(f"  {speed(totals)}, {acceptance(totals)}")
        self._note(f"  prompts: {read} tokens read, {totals.reused_tokens} reused from the cache")
        self._note(f"  cache: {self._chat.session.cached_tokens} tokens")
        self._note(f"  peak memory: {totals.peak_memory:.3f} GB")
        if totals.near_ties:
            self._note(f"  near-ties: {totals.near_ties}")

    def _save(self, name: str, overwrite: bool = False) -> None:
        conversation = self._chat.conversation
        path = typed_path(name) if name else conversation.path
        if path is None:
            raise CommandError("Save to which file? /save FILE")
        conversation.save(path, self._chat.model_name, overwrite=overwrite)
        self._note(
            f"Saved {plural(len(conversation.turns), 'turn')} to {_shown(conversation.path)}"
        )

    def _load(self, name: str) -> None:
        if not name:
            raise CommandError("Load which file? /load FILE")
        self._chat.conversation = Conversation.load(typed_path(name))
        self._note(describe_loaded(self._chat.conversation))


def describe_loaded(conversation: Conversation) -> str:
    """Say what was loaded, and where the conversation stopped."""
    line = f"Loaded {plural(len(conversation.turns), 'turn')}"
    if conversation.path is not None:
        line += f" from {_shown(conversation.path)}"
    if conversation.pending is not None:
        line += f"; now to answer: {shorten(conversation.pending)}"
    elif conversation.turns:
        line += f"; the last was: {shorten(conversation.turns[-1].question)}"
    return line


def note_missing_switch(session: Cache, notes: Console) -> None:
    """Say so if the chat template takes no word on thinking."""
    if not session.has_thinking_switch:
        note(notes, NO_SWITCH)


def _shown(path: Path | None) -> Path | None:
    """Shorten the path of a file below the working directory."""
    return path.relative_to(Path.cwd()) if path and path.is_relative_to(Path.cwd()) else path


def _split(text: str) -> tuple[str, str]:
    """Split off the first word; what follows may be several lines."""
    name, *rest = text.strip().split(maxsplit=1) if text.startswith("/") else ("", text)
    return name, rest[0] if rest else ""


def _nearest(name: str) -> str | None:
    """Find the command that was probably meant: a slip behind the first letter, or a start."""
    name = name.lower()
    alike = [command for command in _KNOWN if name[:1] == "/" and command[:2] == name[:2]]
    near = get_close_matches(name, alike, n=1, cutoff=0.75)
    near += [command for command in _KNOWN if name and command.startswith(name)]
    return near[0] if near else None
