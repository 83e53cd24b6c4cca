"""The last conversation and its cache, kept beside the history of lines for `chat --continue`."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from orthrus_mlx.errors import OutputError
from orthrus_mlx.session import ChatSession

from .console import note
from .conversation import Conversation, ConversationError
from .options import DEMO
from .reader import history_path

LARGEST_CACHE = 1 << 30  # bytes on disk; reading a longer conversation again is the lesser evil


def last_chat_path() -> Path:
    """Say where the last conversation is kept; its cache is beside it."""
    return history_path().with_name("last_chat.json")


def _cache_path() -> Path:
    return last_chat_path().with_suffix(".safetensors")


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
    name = str(folder.resolve()) if model != DEMO and folder.is_dir() else model
    failed = False

    def keep(conversation: Conversation) -> None:
        nonlocal failed
        copy = Conversation(conversation.system, conversation.turns)
        try:
            _make_private(path)
            copy.save(path, name, overwrite=True)
        except (OSError, OutputError) as error:
            if not failed:
                note(notes, f"Not kept for --continue: {error}")
            failed = True

    return keep


def keep_cache(session: ChatSession) -> None:
    """Keep the cache of the last conversation, where it is not too large."""
    key, path = _weights(session.model), _cache_path()
    if key is None or session.cache_bytes > LARGEST_CACHE:
        return
    partial = path.with_name(f"partial-{path.name}")
    try:
        _make_private(partial)
        session.save_cache(partial, key)
        partial.replace(path)
    except (OSError, RuntimeError):  # it only saves time, and there may be no room for it
        partial.unlink(missing_ok=True)


def load_cache(session: ChatSession) -> None:
    """Take up the cache of the last conversation, if it was made by the same weights."""
    key = _weights(session.model)
    if key is not None:
        session.load_cache(_cache_path(), key)


def _make_private(path: Path) -> None:
    """Make a file that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)


def _weights(model: Any) -> str | None:
    """Name the weight files of a model and the state they are in."""
    folder = getattr(model, "folder", None)  # of a checkpoint that `load` read
    if folder is None:
        return None
    files = [(str(file.resolve()), file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()
