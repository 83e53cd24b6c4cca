"""Conversations on disk: the schema, what is refused, and files that appear whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.cli.conversation import Conversation, ConversationError, Turn
from orthrus_mlx.errors import OutputError

SAID = Conversation("Be kind.", [Turn("hi", "Grüße 🦊"), Turn("why?", "So.", "hm")])


def test_the_file_is_the_documented_schema(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    Conversation(SAID.system, SAID.turns).save(path, "demo")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "format": "orthrus-mlx-chat",
        "version": 1,
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Grüße 🦊"},
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "So.", "thinking": "hm"},
        ],
    }
    assert "Grüße 🦊" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("said", [SAID, Conversation(), Conversation("Only a system prompt.")])
def test_what_is_saved_loads_again(tmp_path: Path, said: Conversation) -> None:
    path = tmp_path / "chat.json"
    Conversation(said.system, said.turns).save(path, "demo")
    loaded = Conversation.load(path)
    assert (loaded.system, loaded.turns, loaded.path) == (said.system, said.turns, path)


USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ok"}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (7, 'no "messages"'),
        ({}, 'no "messages"'),
        ({"format": "other", "messages": []}, '"format" is not "orthrus-mlx-chat"'),
        (
            {"format": "orthrus-mlx-chat", "version": 2, "messages": []},
            "version 2, and this release reads 1",
        ),
        ({"format": "orthrus-mlx-chat", "messages": []}, "version None"),
        ({"messages": {}}, '"messages" must be a list'),
        ({"messages": ["hi"]}, "message 1 must be an object"),
        ({"messages": [USER, {"role": "assistant"}]}, 'message 2 needs "content", a string'),
        ({"messages": [{"role": 1, "content": ""}]}, 'message 1 needs "role", a string'),
        ({"messages": [USER, {**ANSWER, "thinking": 3}]}, '"thinking" of message 2'),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "the roles are: user, assistant, sys"),
        ([1], "message 1 must be an object"),
        ([{**USER, "content": None}], 'message 1 needs "content", a string'),
        ([{**USER, "content": [{"type": "image_url"}]}], "message 1 has parts that are not text"),
        ({"messages": [ANSWER, USER]}, "the roles are: assistant, user"),
        ({"messages": [USER, USER]}, "the roles are: user, user"),
        ({"messages": [USER, {**ANSWER, "role": "tool"}]}, "the roles are: user, tool"),
    ],
)
def test_what_is_not_a_conversation_is_refused(tmp_path: Path, data: Any, problem: str) -> None:
    if isinstance(data, dict) and set(data) == {"messages"}:
        data = {"format": "orthrus-mlx-chat", "version": 1, **data}
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConversationError) as error:
        Conversation.load(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match="There is no file"):
        Conversation.load(tmp_path / "missing.json")
    with pytest.raises(ConversationError, match="cannot be read"):
        Conversation.load(tmp_path)
    (tmp_path / "image").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ConversationError, match="is not UTF-8 text"):
        Conversation.load(tmp_path / "image")


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.json"
    said = Conversation(turns=[Turn("hi", "ok")])
    said.save(path, "demo")
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said.turns.append(Turn("more", "text"))
    with pytest.raises(OutputError, match="No space left on device"):
        said.save(path, "demo")
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        Conversation().save(tmp_path / "no" / "chat.json", "demo")


def test_saving_again_keeps_the_mode_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    said = Conversation()
    said.save(path, "demo")
    path.chmod(0o600)
    said.save(path, "demo")
    assert path.stat().st_mode & 0o777 == 0o600


THOUGHT = [Turn("hi", "Yes.", "hm")]


@pytest.mark.parametrize(
    ("messages", "system", "turns", "pending"),
    [
        ([], None, [], None),
        ([USER, ANSWER], None, [Turn("hi", "ok")], None),
        ([USER], None, [], "hi"),
        ([USER, ANSWER, USER], None, [Turn("hi", "ok")], "hi"),
        ([{"role": "system", "content": "s"}, USER], "s", [], "hi"),
        ([{"role": "developer", "content": "s"}, USER], "s", [], "hi"),
        ([{**USER, "content": [{"type": "text", "text": "hi"}]}], None, [], "hi"),
        ([{**USER, "name": "Ada"}, {**ANSWER, "tool_calls": None}], None, [Turn("hi", "ok")], None),
        ([USER, {**ANSWER, "content": "Yes.", "reasoning_content": "hm"}], None, THOUGHT, None),
        ([USER, {**ANSWER, "content": "<think>\nhm\n</think>\n\nYes."}], None, THOUGHT, None),
        ([USER, {**ANSWER, "reasoning_content": None}], None, [Turn("hi", "ok")], None),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_openai_messages_are_read(
    tmp_path: Path, messages: Any, system: Any, turns: Any, pending: Any, wrapped: bool
) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps({"model": "m", "messages": messages} if wrapped else messages))
    loaded = Conversation.load(path)
    assert (loaded.system, loaded.turns, loaded.pending) == (system, turns, pending)
    assert loaded.path is None  # /save must not write over a file of another kind
