"""A conversation: its turns, and its JSON file.

{"format": "orthrus-mlx-chat", "version": 1, "model": "demo", "messages": [
    {"role": "system", "content": "..."},                       may be missing
    {"role": "user", "content": "..."},
    {"role": "assistant", "content": "...", "thinking": "..."}]}   thinking may be missing

A plain list of OpenAI messages, alone or under "messages", can be read too.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orthrus_mlx.errors import OrthrusError, OutputError
from orthrus_mlx.files import CONVERSATION_BYTES, expanded, read_json

from .thinking import Answer

FORMAT = "orthrus-mlx-chat"
VERSION = 1


class ConversationError(OrthrusError):
    """A saved conversation cannot be read."""


@dataclass
class Turn:
    """A question and what was answered; the thinking is kept, but never sent again."""

    question: str
    answer: str
    thinking: str = ""


@dataclass
class Conversation:
    """What was said so far, and the file that it was saved to or loaded from.

    `pending` is a last message of the user that was loaded without an answer.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    path: Path | None = None
    pending: str | None = None
    model: str | None = None  # that answered, as the file says

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """List the messages to send: all that was said, then a new question."""
        messages = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        if question is not None:
            messages.append({"role": "user", "content": question})
        return messages

    def save(self, path: Path, model: str, *, overwrite: bool = False) -> None:
        """Write the conversation to a file, whole or not at all.

        A file that is there already is replaced only if it is this conversation's own.
        """
        path = expanded(path, OutputError)
        try:
            path = path.resolve()
            taken = path.exists() and path != self.path
            special = path.exists() and not path.is_file()  # a folder, a pipe, a device
        except (OSError, RuntimeError, ValueError) as error:  # too long, or links in a circle
            raise OutputError(f"{path} cannot be written: {_reason(error)}.") from None
        if special:
            raise OutputError(f"{path} is no regular file, and is not replaced. Give another name.")
        if taken and not overwrite:
            raise OutputError(f"{path} exists already. To replace it: /save! {path}")
        _write_whole(path, json.dumps(self._to_json(model), ensure_ascii=False, indent=2) + "\n")
        self.path = path

    def _to_json(self, model: str) -> dict[str, Any]:
        messages = self.messages()
        answers = [message for message in messages if message["role"] == "assistant"]
        for message, turn in zip(answers, self.turns, strict=True):
            if turn.thinking:
                message["thinking"] = turn.thinking
        return {"format": FORMAT, "version": VERSION, "model": model, "messages": messages}

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read a file that `save` wrote, or a list of OpenAI messages.

        Only the former is the conversation's own file, to be written again by the next save.
        """
        path = expanded(path, ConversationError)
        try:
            path = path.resolve()
            found = os.path.lexists(path)
        except (OSError, RuntimeError) as error:  # too long a name, a circle of links
            raise ConversationError(f"{path} cannot be read: {_reason(error)}.") from None
        if not found:
            raise ConversationError(f"There is no file {path}.")
        data = read_json(path, ConversationError, CONVERSATION_BYTES)
        try:
            conversation = cls._from_json(data)
        except ConversationError as error:
            raise ConversationError(f"{path} is not a saved conversation: {error}.") from None
        own = isinstance(data, dict) and "format" in data
        conversation.path = path if own else None
        return conversation

    @classmethod
    def _from_json(cls, data: Any) -> "Conversation":
        if isinstance(data, list):
            data = {"messages": data}
        if not isinstance(data, dict) or "messages" not in data:
            raise ConversationError('it has no "messages"')
        if data.get("format", FORMAT) != FORMAT:
            raise ConversationError(f'its "format" is not "{FORMAT}"')
        if "format" in data and data.get("version") != VERSION:
            raise ConversationError(
                f"it has version {data.get('version')!r}, and this release reads {VERSION}"
            )
        if not isinstance(data["messages"], list):
            raise ConversationError('"messages" must be a list')
        messages = [
            _read_message(message, number) for number, message in enumerate(data["messages"], 1)
        ]
        system = None
        if messages and messages[0][0] == "system":
            system = messages.pop(0)[1].text
        roles = [role for role, _ in messages]
        if roles != (["user", "assistant"] * len(roles))[: len(roles)]:
            raise ConversationError(
                "user and assistant must take turns, starting with user, "
                f"but the roles are: {', '.join(roles)}"
            )
        said = [answer for _, answer in messages]
        turns = [
            Turn(question.text, answer.text, answer.thinking)
            for question, answer in zip(said[::2], said[1::2], strict=False)
        ]
        pending = said[-1].text if len(said) % 2 else None
        model = data.get("model")
        return cls(system, turns, None, pending, model if isinstance(model, str) else None)


class _Said(NamedTuple):
    """What one message says."""

    text: str
    thinking: str


def _read_message(message: Any, number: int) -> tuple[str, _Said]:
    """Read a message, as we write it or as OpenAI does: its role and what it says."""
    if not isinstance(message, dict):
        raise ConversationError(f"message {number} must be an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise ConversationError(f'message {number} needs "role", a string')
    if isinstance(content, list):
        content = _join_parts(content, number)
    if not isinstance(content, str):
        raise ConversationError(f'message {number} needs "content", a string')
    key = "reasoning_content" if message.get("reasoning_content") is not None else "thinking"
    thinking = message.get(key, "")
    if not isinstance(thinking, str):
        raise ConversationError(f'"{key}" of message {number} must be a string')
    if role == "assistant" and not thinking:
        answer = Answer(lambda kind, text: None)
        answer.feed(content)
        answer.finish()
        content, thinking = answer.text, answer.thinking
    return "system" if role == "developer" else role, _Said(content, thinking)


def _join_parts(parts: list[Any], number: int) -> str:
    """Join the parts that OpenAI's messages may be in; all must be text."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ConversationError(f"message {number} has parts that are not text")
    return "\n".join(map(str, texts))


def _write_whole(path: Path, text: str) -> None:
    """Write a text file so that it appears complete, or not at all."""
    partial = path.with_name(f".orthrus-mlx.{os.getpid()}.partial")  # as long as a name may be
    try:
        # What was typed may hold bytes that are not UTF-8: they become escapes, as JSON has them.
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
