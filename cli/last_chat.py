"""The last conversation, kept beside the history of lines for `chat --continue`."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from orthrus_mlx.errors import OutputError

from .console import note
from .conversation import Conversation, ConversationError
from .reader import history_path


def last_chat_path() -> Path:
    """Say where the last conversation is kept."""
    return history_path().with_name("last_chat.json")


def load_last() -> Conversation:
    """Read the last conversation; where /save put it, if anywhere, is not known any more."""
    path = last_chat_path()
    if not path.exists():
        raise ConversationError(f"There is no conversation to go on with: {path} does not exist.")
    conversation = Conversation.load(path)
    conversation.path = None
    return conversation


def keep_last(model: str, notes: Console) -> Callable[[Conversation], None]:
    """Make what keeps a conversation after each turn, and says so once if it cannot."""
    path = last_chat_path()
    folder = Path(model)
    name = str(folder.resolve()) if folder.is_dir() and model != "demo" else model
    failed = False

    def keep(conversation: Conversation) -> None:
        nonlocal failed
        copy = Conversation(conversation.system, conversation.turns)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            copy.save(path, name, overwrite=True)
        except (OSError, OutputError) as error:
            if not failed:
                note(notes, f"Not kept for --continue: {error}")
            failed = True

    return keep
