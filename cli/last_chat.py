"""The last conversation and its cache, kept beside the history of lines for `chat --continue`."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from orthrus_mlx.checkpoint.fingerprint import outline
from orthrus_mlx.errors import OutputError
from orthrus_mlx.session import ChatSession

from .console import note
from .conversation import Conversation, ConversationError
from .options import DEMO
from .reader import history_path

LARGEST_CACHE = 1 << 30  # bytes on disk; reading a longer conversation again is the lesser evil


def last_chat_path() -> Path | None:
    """Say where the last conversation is kept, its cache beside it; None if no history is."""
    path = history_path()
    return None if path == Path(os.devnull) else path.with_name("last_chat.json")


def load_last() -> Conversation:
    """Read the last conversation; where /save put it, if anywhere, is not known any more."""
    path = last_chat_path()
    if path is None or not path.exists():
        where = path or "ORTHRUS_MLX_HISTORY"
        raise ConversationError(f"There is no conversation to go on with: none is kept at {where}.")
    conversation = Conversation.load(path)
    conversation.path = None
    return conversation


def keep_last(model: str, notes: Console) -> Callable[[Conversation], None]:
    """Make what keeps a conversation when it has changed, and says so once if it cannot."""
    path = last_chat_path()
    folder = Path(model)
    name = str(folder.resolve()) if model != DEMO and folder.is_dir() else model
    failed = False
    kept: Conversation | None = None

    def keep(conversation: Conversation) -> None:
        nonlocal failed, kept
        copy = Conversation(conversation.system, [*conversation.turns])
        if (
            path is None or not copy.turns or copy == kept
        ):  # /clear does not take the last conversation away
            return
        kept = replace(copy)
        try:
            _make_private(path)
            copy.save(path, name, overwrite=True)
        except (OSError, OutputError) as error:
            if not failed:
                note(notes, f"Not kept for --continue: {error}")
            failed = True

    return keep


def keep_cache(session: ChatSession, quantized: str = "") -> None:
    """Keep the cache of the last conversation, where it is not too large.

    `quantized` says how it is quantized, if it is: another chat that does so may take it up. An
    empty one is of a chat in which nothing was said: the last conversation is an earlier one.
    """
    key, path = _key(session, quantized), last_chat_path()
    if key is None or path is None or not 0 < session.cache_bytes <= LARGEST_CACHE:
        return
    path = path.with_suffix(".safetensors")
    partial = path.with_name(f"partial-{path.name}")
    try:
        _make_private(partial)
        session.save_cache(partial, key)
        partial.replace(path)
    except (OSError, RuntimeError):  # it only saves time, and there may be no room for it
        partial.unlink(missing_ok=True)


def load_cache(session: ChatSession, quantized: str = "") -> None:
    """Take up the cache of the last conversation, if the same weights made it, quantized alike."""
    key, path = _key(session, quantized), last_chat_path()
    if key is not None and path is not None:
        session.load_cache(path.with_suffix(".safetensors"), key)


def _key(session: ChatSession, quantized: str) -> str | None:
    weights = _weights(session.model)
    return weights and weights + quantized


def _make_private(path: Path) -> None:
    """Make a file that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)


def _weights(model: Any) -> str | None:
    """Name the weight files of a model and their state; None if the model is not what they hold."""
    folder = getattr(model, "folder", None)  # of a checkpoint that `load` read
    origin = getattr(model, "origin", None)
    changed = origin is not None and outline(model) != origin.loaded  # since, by an adapter
    if folder is None or changed or getattr(model, "several", None):  # a part of a cache
        return None
    paths = sorted(folder.glob("[!.]*.safetensors"))  # not `._NAME`, which macOS writes
    files = [(str(file.resolve()), file.stat()) for file in paths]
    states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()
