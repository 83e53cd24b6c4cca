"""The slash commands of a chat."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from rich.console import Console

from orthrus_mlx.errors import OrthrusError

from .console import note
from .conversation import Conversation
from .reader import complete_path
from .settings import SETTINGS, Settings
from .stats import Totals, acceptance, plural, speed


class Cache(Protocol):
    """What a chat's session keeps of the conversation."""

    @property
    def cached_tokens(self) -> int:
        """How many tokens the KV cache holds."""

    def reset(self) -> None:
        """Forget everything."""


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
    """A slash command that does not exist, or cannot do its work now."""


@dataclass(frozen=True)
class Command:
    """A slash command, as `/help` shows it."""

    name: str
    takes: str
    help: str


COMMANDS = (
    Command("/help", "", "show this list"),
    Command("/reset", "", "forget the conversation, but not the system prompt"),
    Command("/undo", "", "take back the last question and its answer"),
    Command("/retry", "", "answer the last question again"),
    Command("/system", "TEXT", 'set the system prompt; alone, show it; "" removes it'),
    Command("/set", "NAME VALUE", "change a setting; alone, show them all"),
    Command("/stats", "", "show what the session cost so far"),
    Command("/save", "FILE", "save the conversation; /save! replaces a file"),
    Command("/load", "FILE", "go on with a saved conversation"),
    Command("/quit", "", "leave (or Ctrl-D)"),
)
NAMES = tuple(command.name for command in COMMANDS)
_HIDDEN = {"/save!": "/save", "/exit": "/quit"}  # typed, but not listed

_KEYS = (
    ('"""', "around several lines; pasting them, or Alt-Enter, works too"),
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
        return [c.name + " " * bool(c.takes) for c in COMMANDS if c.name.startswith(name)]
    if name in ("/save", "/save!", "/load"):
        return [f"{name} {path}" for path in complete_path(argument)]
    if name != "/set":
        return []
    setting, space, value = argument.partition(" ")
    if not space:
        return [f"/set {known} " for known in SETTINGS if known.startswith(setting)]
    choices = SETTINGS[setting].choices if setting in SETTINGS else ()
    return [f"/set {setting} {choice}" for choice in choices if choice.startswith(value)]


class SlashCommands:
    """Runs slash commands on a chat."""

    def __init__(self, chat: ChatState) -> None:
        self._chat = chat
        self._actions: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/undo": self._undo,
            "/retry": self._retry,
            "/system": self._system,
            "/set": self._set,
            "/stats": self._stats,
            "/save": self._save,
            "/save!": lambda name: self._save(name, overwrite=True),
            "/load": self._load,
        }

    def handles(self, text: str) -> bool:
        """Whether the text is a command: it starts with a slash, and is one line or known."""
        name = text.split(maxsplit=1)[0]
        known = name in NAMES or name in _HIDDEN
        return text.startswith("/") and (known or "\n" not in text.strip())

    def run(self, text: str) -> bool:
        """Run a command; False says that the chat is over."""
        name, _, argument = text.strip().partition(" ")
        if "\n" in name:  # /system, then lines
            name, _, argument = text.strip().partition("\n")
        if _HIDDEN.get(name, name) == "/quit":
            return False
        if name not in self._actions:
            raise CommandError(_unknown(name))
        self._actions[name](argument.strip())
        return True

    def _note(self, text: str) -> None:
        note(self._chat.notes, text)

    def _help(self, _: str) -> None:
        rows = [(f"{command.name} {command.takes}", command.help) for command in COMMANDS]
        for left, right in (*rows, *_KEYS):
            self._note(f"  {left:<18}{right}")
        self._note("  A message that starts with a slash: put a space before it.")

    def _reset(self, _: str) -> None:
        self._chat.conversation.turns.clear()
        self._chat.conversation.path = None
        self._chat.session.reset()
        self._note("The conversation starts anew.")

    def _undo(self, _: str) -> None:
        turns = self._chat.conversation.turns
        if not turns:
            raise CommandError("There is nothing to undo.")
        self._note(f"Taken back: {_shorten(turns.pop().question)}")

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
        name, _, value = text.replace("=", " ").partition(" ")
        self._note(settings.set(name, value.strip()))

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
        path = _path(name) if name else conversation.path
        if path is None:
            raise CommandError("Save to which file? /save FILE")
        conversation.save(path, self._chat.model_name, overwrite=overwrite)
        self._note(
            f"Saved {plural(len(conversation.turns), 'turn')} to {_shown(conversation.path)}"
        )

    def _load(self, name: str) -> None:
        if not name:
            raise CommandError("Load which file? /load FILE")
        self._chat.conversation = Conversation.load(_path(name))
        self._note(describe_loaded(self._chat.conversation))


def describe_loaded(conversation: Conversation) -> str:
    """Say what was loaded, and where the conversation stopped."""
    line = f"Loaded {plural(len(conversation.turns), 'turn')} from {_shown(conversation.path)}"
    if conversation.turns:
        line += f"; the last was: {_shorten(conversation.turns[-1].question)}"
    return line


def _path(name: str) -> Path:
    """Take a file name as it is typed, with or without quotes."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    return Path(name)


def _shown(path: Path | None) -> Path | None:
    """Shorten the path of a file below the working directory."""
    return path.relative_to(Path.cwd()) if path and path.is_relative_to(Path.cwd()) else path


def _unknown(name: str) -> str:
    near = get_close_matches(name, NAMES, n=1)
    hint = f"Did you mean {near[0]}?" if near else "/help lists them all."
    return f"No command is called {name}. {hint}"


def _shorten(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
