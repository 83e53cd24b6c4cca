"""A conversation: its turns, and its JSON file.

{"format": "orthrus-mlx-chat", "version": 1, "model": "demo", "messages": [
    {"role": "system", "content": "..."},                       may be missing
    {"role": "user", "content": "..."},
    {"role": "assistant", "content": "...", "thinking": "..."}]}   thinking may be missing
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthrus_mlx.errors import OrthrusError, OutputError

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
    """What was said so far, and the file that it was saved to or loaded from."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    path: Path | None = None

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
        path = path.expanduser().resolve()
        if path.exists() and path != self.path and not overwrite:
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
        """Read a file that `save` wrote."""
        path = path.expanduser().resolve()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConversationError(f"There is no file {path}.") from None
        except OSError as error:
            raise ConversationError(f"{path} cannot be read: {error.strerror}.") from None
        except ValueError as error:  # bad JSON, or not UTF-8
            raise ConversationError(f"{path} is not JSON: {error}.") from None
        try:
            conversation = cls._from_json(data)
        except ConversationError as error:
            raise ConversationError(f"{path} is not a saved conversation: {error}.") from None
        conversation.path = path
        return conversation

    @classmethod
    def _from_json(cls, data: Any) -> "Conversation":
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConversationError(f'it has no "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise ConversationError(
                f"it has version {data.get('version')!r}, and this release reads {VERSION}"
            )
        messages = data.get("messages")
        if not isinstance(messages, list):
            raise ConversationError('"messages" must be a list')
        for number, message in enumerate(messages, 1):
            _check_message(message, number)
        system = None
        if messages and messages[0]["role"] == "system":
            system = messages[0]["content"]
            messages = messages[1:]
        roles = [message["role"] for message in messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ConversationError(
                "user and assistant must take turns, starting with user and ending with "
                f"assistant, but the roles are: {', '.join(roles)}"
            )
        turns = [
            Turn(question["content"], answer["content"], answer.get("thinking", ""))
            for question, answer in zip(messages[::2], messages[1::2], strict=True)
        ]
        return cls(system, turns)


def _check_message(message: Any, number: int) -> None:
    if not isinstance(message, dict):
        raise ConversationError(f"message {number} must be an object")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ConversationError(f'message {number} needs "{key}", a string')
    if not isinstance(message.get("thinking", ""), str):
        raise ConversationError(f'"thinking" of message {number} must be a string')


def _write_whole(path: Path, text: str) -> None:
    """Write a text file so that it appears complete, or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
