"""The slash commands: what each changes, and what it says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.cli.conversation import Turn
from orthrus_mlx.cli.settings import SETTINGS, Settings
from orthrus_mlx.cli.slash import COMMANDS, complete
from orthrus_mlx.errors import PromptError

from .fakes import FakeSession, lines
from .test_repl import make


def run(session: FakeSession, *typed: str, **options: Any) -> tuple[Any, list[str]]:
    """Play a chat; give it back with all that it noted apart from the stats lines."""
    chat = make(session, *typed, **options)
    chat.run()
    return chat, [line for line in lines(chat.notes) if "per forward ·" not in line]


def test_undo_takes_back_a_turn_at_a_time() -> None:
    chat, said = run(FakeSession("one", "two"), "1", "2", "/undo", "/undo", "/undo")
    assert chat.conversation.turns == []
    assert said == ["Taken back: 2", "Taken back: 1", "error: There is nothing to undo."]


def test_retry_answers_again_with_the_next_seed() -> None:
    session = FakeSession("one", "two", "three", "four")
    settings = Settings(temp=1.0, seed=5)
    chat, _ = run(session, "1", "/retry", "/retry", "2", settings=settings)
    assert [turn.answer for turn in chat.conversation.turns] == ["three", "four"]
    assert [options["seed"] for options in session.generate.options] == [5, 6, 7, 5]
    assert [len(sent) for sent in session.sent] == [1, 1, 1, 3]


def test_retry_that_gives_the_same_answer_says_why() -> None:
    _, said = run(FakeSession("one", "one"), "1", "/retry")
    assert said == ["The same answer; for others: /set temp 0.7"]


def test_retry_that_fails_keeps_the_old_answer() -> None:
    chat, said = run(FakeSession("one", [PromptError("No.")]), "1", "/retry")
    assert chat.conversation.turns == [Turn("1", "one")]
    assert said == ["error: No."]


def test_retry_that_is_stopped_at_once_keeps_the_old_answer() -> None:
    chat, _ = run(FakeSession("one", [KeyboardInterrupt()]), "1", "/retry")
    assert chat.conversation.turns == [Turn("1", "one")]


def test_retry_needs_a_question() -> None:
    assert run(FakeSession(), "/retry")[1] == ["error: There is no question to answer again."]


def test_reset_forgets_all_but_the_system_prompt() -> None:
    session = FakeSession("one", "two")
    chat, _ = run(session, "/system Be kind.", "1", "/reset", "2")
    assert chat.conversation.turns == [Turn("2", "two")]
    assert [m["content"] for m in session.sent[1]] == ["Be kind.", "2"]
    assert session.resets == 1


def test_system_sets_shows_and_removes() -> None:
    typed = ("/system", "/system Be kind.", "/system\nTwo\nlines", '/system ""')
    chat, said = run(FakeSession(), *typed)
    assert chat.conversation.system is None
    assert said == [
        "System prompt: none",
        "System prompt: Be kind.",
        "System prompt: Two",
        "lines",
        "System prompt: none",
    ]


def test_set_changes_a_setting_and_explains_itself() -> None:
    typed = ("/set temp 0.7", "/set top_p=0.9", "/set temp hot", "/set tmep 1", "/set")
    chat, said = run(FakeSession(), *typed)
    assert chat.settings == Settings(temp=0.7, top_p=0.9)
    assert said[:4] == [
        "temp = 0.7",
        "top_p = 0.9",
        "error: temp cannot be 'hot'; it takes a number from 0 up.",
        "error: No setting is called 'tmep'. Did you mean temp?",
    ]
    assert len(said) == 4 + len(SETTINGS)


def test_stats_sum_up_the_session() -> None:
    _, said = run(FakeSession("one", "two"), "/stats", "1", "2", "/stats")
    assert said == [
        "Nothing was answered yet.",
        "  2 answers, 8 tokens",
        "  50.0 tok/s · 2.00 tokens per forward, 50% of 8 drafts accepted",
        "  prompts: 20 tokens read, 0 reused from the cache",
        "  cache: 0 tokens",
        "  peak memory: 1.500 GB",
    ]


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "a chat.json"
    saved, said = run(FakeSession("one"), "1", f"/save {path}", "/save")
    assert said == [f"Saved 1 turn to {path}"] * 2
    loaded, said = run(FakeSession("two"), f'/load "{path}"', "2")
    assert said == [f"Loaded 1 turn from {path}; the last was: 1"]
    assert loaded.conversation.turns == [*saved.conversation.turns, Turn("2", "two")]


def test_a_file_that_is_dragged_onto_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "it's (a chat).json"
    dragged = re.sub(r"([ '()])", r"\\\1", str(path))
    _, said = run(FakeSession("one"), "1", f"/save {dragged}", f"/load {dragged} ")
    assert said == [f"Saved 1 turn to {path}", f"Loaded 1 turn from {path}; the last was: 1"]
    _, said = run(FakeSession(), f"/save {tmp_path}/it's")
    assert said == [f"Saved 0 turns to {tmp_path}/it's"]


@pytest.mark.parametrize("name", ["{}", "'{}'", '"{}"'])
def test_a_file_of_a_setting_is_named_alike(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    path = tmp_path / "a schema.json"
    path.write_text('{"type": "integer"}')
    typed = name.format(path) if "'" in name or '"' in name else str(path).replace(" ", "\\ ")
    for text in (typed, str(path)):
        chat, _ = run(FakeSession(), f"/set json_schema {text}")
        assert chat.settings.asked is not None and chat.settings.asked.text == str(path)


def test_save_replaces_only_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text("mine")
    _, said = run(FakeSession("one"), "1", f"/save {path}")
    assert said == [f"error: {path} exists already. To replace it: /save! {path}"]
    assert path.read_text() == "mine"
    _, said = run(FakeSession("one"), "1", f"/save! {path}")
    assert said == [f"Saved 1 turn to {path}"]
    assert json.loads(path.read_text())["messages"][0] == {"role": "user", "content": "1"}


def test_a_reset_conversation_does_not_overwrite_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    _, said = run(FakeSession("one"), "1", f"/save {path}", "/reset", "/save", f"/save {path}")
    assert said[-2] == "error: Save to which file? /save FILE"
    assert "exists already" in said[-1]


def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    typed = ("1", f"/load {bad}", f"/load {tmp_path / 'no.json'}", "/load")
    chat, said = run(FakeSession("one"), *typed)
    assert chat.conversation.turns == [Turn("1", "one")]
    assert said[0].startswith(f"error: {bad} cannot be read as JSON")
    assert said[1:] == [
        f"error: There is no file {tmp_path / 'no.json'}.",
        "error: Load which file? /load FILE",
    ]


@pytest.mark.parametrize("command", ["/bye", "/quit", "/exit", "/bye "])
def test_quit_leaves(command: str) -> None:
    session = FakeSession("one")
    run(session, command, "1")
    assert session.sent == []


MESSAGES = [
    "/no_think What is 2 + 2?",
    "/think hard",
    "/no_think",
    "/usr/bin/python does not start",
    "/etc",
    "/home is full",
    "/xyzzy",
    "//",
    " /help me",
    "/usr/bin\npasted lines",
    "/sav x\npasted lines",
]


@pytest.mark.parametrize("text", MESSAGES)
def test_only_a_known_command_is_one(text: str) -> None:
    chat, said = run(FakeSession("a"), text)
    assert [turn.question for turn in chat.conversation.turns] == [text]
    assert said == []


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("/sav x", "/save x"),
        ("/hlep", "/help"),
        ("/HELP", "/help"),
        ("/q", "/quit"),
        ("/clera", "/clear"),
        ("/byee", "/bye"),
        ("/", "/help"),
        ("/stat", "/stats"),
    ],
)
def test_a_near_miss_asks(typed: str, near: str) -> None:
    name = near.split()[0]
    asked = [
        f"No command is called {typed.split()[0]}. Did you mean {name}?",
        f"y runs {near}, n sends your line as a message.",
    ]
    chat, said = run(FakeSession(), typed)
    assert (said, chat.conversation.turns) == (asked, [])
    chat, said = run(FakeSession("a"), typed, "n")
    assert (said, [turn.question for turn in chat.conversation.turns]) == (asked, [typed])
    # Any other line is what it always is, and the question is forgotten.
    chat, _ = run(FakeSession("a", "b"), typed, "hello", "y")
    assert [turn.question for turn in chat.conversation.turns] == ["hello", "y"]
    chat, _ = run(FakeSession("a"), typed, "", "y")
    assert [turn.question for turn in chat.conversation.turns] == ["y"]


def test_yes_runs_what_was_meant(tmp_path: Path) -> None:
    _, said = run(FakeSession("one"), "1", f"/sav {tmp_path / 'x'}", "y")
    assert said[2] == f"Saved 1 turn to {tmp_path / 'x'}"


@pytest.mark.parametrize("command", ["/clear", "/reset", "/undo", "/retry", "/bye", "/stats"])
def test_a_command_that_takes_nothing_asks_before_it_drops_words(command: str) -> None:
    typed = f"{command} the table, how?"
    chat, said = run(FakeSession("one", "two", "three"), "1", typed, "n")
    assert [turn.question for turn in chat.conversation.turns] == ["1", typed]
    assert said == [
        f"{command} takes nothing behind it.",
        f"y runs {command}, n sends your line as a message.",
    ]


def test_clear_bye_and_question_mark_are_those_of_ollama() -> None:
    session = FakeSession("one", "two")
    chat, said = run(session, "/system Be kind.", "1", "/clear", "/? clear", "/bye", "2")
    assert chat.conversation.system == "Be kind."
    assert chat.conversation.turns == []
    assert session.resets == 1
    assert said[1:] == [
        "The conversation starts anew.",
        "  /clear            forget the conversation, but not the system prompt",
    ]
    assert run(FakeSession(), "/?")[1] == run(FakeSession(), "/help")[1]
    assert run(FakeSession(), "/help nothing")[1] == [
        "error: No command is called nothing. /help lists them all."
    ]


@pytest.mark.parametrize("name", [*SETTINGS, "temperature", "top-p", "num_predict", "think"])
def test_set_with_a_name_shows_the_value(name: str) -> None:
    before = Settings(seed=5)
    chat, said = run(FakeSession(), f"/set {name}", settings=before)
    names = {"temperature": "temp", "top-p": "top_p", "num_predict": "max_tokens"}
    if name == "think":
        assert said == ["thinking = on"]  # in Ollama it switches
        return
    name = names.get(name, name)
    assert said == [f"{name} = {str(getattr(before, name, None)).lower()}"]
    assert chat.settings == Settings(seed=5)


def test_set_takes_what_is_typed_in_ollama() -> None:
    typed = ("/set parameter temperature 0.5", "/set system Be=kind.", "/set nothink")
    chat, said = run(FakeSession(), *typed)
    assert said == ["temp = 0.5", "System prompt: Be=kind.", "thinking = off"]
    assert (chat.settings.temp, chat.conversation.system) == (0.5, "Be=kind.")


def test_set_thinking_says_where_it_changes_nothing() -> None:
    session = FakeSession()
    session.has_thinking_switch = False
    assert run(session, "/set thinking off", "/set thinking auto")[1] == [
        "thinking = off",
        "This model's chat template has no switch for thinking: nothing changes.",
        "thinking = auto",
    ]


@pytest.mark.parametrize("seed", ["-1", str(2**64), "1.5", "x"])
def test_set_seed_refuses_what_the_flag_refuses(seed: str) -> None:
    chat, said = run(FakeSession(), f"/set seed {seed}")
    assert said[0].startswith(f"error: seed cannot be '{seed}'")
    assert chat.settings.seed is None


def test_help_lists_every_command() -> None:
    said = run(FakeSession(), "/help")[1]
    for command in COMMANDS:
        assert any(line.startswith(f"  {command.name} ") for line in said)
    assert all(len(line) <= 80 for line in said)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/s", ["/system ", "/set ", "/stats", "/save "]),
        ("/und", ["/undo"]),
        ("/qu", ["/quit"]),
        ("/set m", ["/set min_p ", "/set max_tokens ", "/set mode "]),
        ("/set mode p", ["/set mode parallel"]),
        ("/set temp ", []),
        ("/set nothing ", []),
        ("hello", []),
        ("/s\n", []),
        ("/undo x", []),
    ],
)
def test_completion(text: str, expected: list[str]) -> None:
    assert list(complete(text)) == expected


def test_completion_of_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / "a b.json").touch()
    (tmp_path / ".hidden").touch()
    assert list(complete("/load ")) == ["/load chats/"]
    assert list(complete("/load chats/")) == ["/load chats/a b.json"]
    assert list(complete(f"/save {tmp_path}/ch")) == [f"/save {tmp_path}/chats/"]
    assert list(complete("/load nowhere/x")) == []
