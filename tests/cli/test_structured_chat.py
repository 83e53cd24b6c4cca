"""Structured output in a chat: flags, /set, what is shown where, what a session keeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import JsonSchema, Regex, load
from orthrus_mlx.cli.conversation import Conversation, Turn
from orthrus_mlx.cli.last_chat import last_chat_path
from orthrus_mlx.cli.settings import Settings
from orthrus_mlx.cli.slash import complete
from orthrus_mlx.cli.structured import KINDS, read
from orthrus_mlx.decoding.constraints import Choices
from orthrus_mlx.session import ChatSession

from .fakes import FakeScreen, FakeSession, lines
from .test_app import invoke, plain
from .test_repl import make
from .test_slash import run
from .test_structured import LARK, SCHEMA


def shown(chat: Any) -> dict[str, str]:
    """What /set says of each constraint."""
    return {kind: chat.settings.set(kind, "").partition(" = ")[2] for kind in KINDS}


def test_setting_one_constraint_clears_the_others() -> None:
    session = FakeSession("{}", "y", "free")
    typed = (f"/set json_schema {SCHEMA}", "1", "/set choices y,n", "2", "/set choices none", "3")
    chat, said = run(session, *typed)
    assert said == [f"json_schema = {SCHEMA}", "choices = y,n", "choices = none"]
    asked = [options["constraint"] for options in session.generate.options]
    assert asked == [JsonSchema(SCHEMA), Choices(["y", "n"]), None]
    assert session.prepared == asked[:2]
    assert shown(chat) == dict.fromkeys(KINDS, "none")


def test_none_clears_only_the_one_that_is_named() -> None:
    chat, _ = run(FakeSession(), "/set choices y,n", "/set regex none")
    assert shown(chat) == {**dict.fromkeys(KINDS, "none"), "choices": "y,n"}


def test_values_keep_their_equals_signs_and_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "a.lark"
    file.write_text(LARK, encoding="utf-8")
    chat, said = run(FakeSession(), "/set regex a=b", "/set regex=x=[A-Z]", f"/set grammar {file}")
    assert said == ["regex = a=b", "regex = x=[A-Z]", f"grammar = {file}"]
    chat, said = run(FakeSession(), '/set json_schema {"type":\n"object"}', "/set temp = 0.5")
    assert chat.settings.asked is not None
    assert chat.settings.asked.constraint == JsonSchema('{"type":\n"object"}')
    assert chat.settings.temp == 0.5


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("json_schema nosuch.json", "There is no file nosuch.json"),
        ('json_schema {"type": "objekt"}', "objekt"),
        ("regex (", "unclosed group"),
        ("grammar nosuch.lark", "No such file"),
        ("choices a,,b", "A choice is empty"),
    ],
)
def test_a_bad_value_changes_nothing(typed: str, problem: str) -> None:
    chat, said = run(FakeSession(), "/set choices y,n", f"/set {typed}")
    assert shown(chat)["choices"] == "y,n"
    assert [line.startswith("error: ") for line in said].count(True) == 1
    assert problem in " ".join(said)


def test_what_the_tokenizer_cannot_write_changes_nothing() -> None:
    session = FakeSession()
    session.cannot_write = True
    chat, said = run(session, "/set choices y,n")
    assert said == ["error: No."]
    assert chat.settings.asked is None


def test_set_lists_what_holds_in_one_line_each() -> None:
    _, said = run(FakeSession(), "/set regex " + "ab" * 40, "/set")
    (line,) = [line for line in said if line.startswith("  regex")]
    assert line == f"  {'regex':<12}{'ab' * 14}a… a regular expression, or none"


def test_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "person.json").write_text(SCHEMA, encoding="utf-8")
    assert list(complete("/set json_s")) == ["/set json_schema "]
    assert list(complete("/set json_schema pe")) == ["/set json_schema person.json"]
    assert list(complete("/set grammar pe")) == ["/set grammar person.json"]


def test_constrained_answers_are_no_markdown() -> None:
    markdown, exact = FakeScreen(), FakeScreen()
    session = FakeSession("**a**", '"**a**"')
    make(
        session, "1", "/set json_schema true", "2", screen=markdown, exact_screen=exact
    ).run()  # fmt: skip
    assert (markdown.text(), exact.text()) == ("**a**", '"**a**"')


def test_an_answer_that_is_cut_is_said_to_be_unfinished() -> None:
    session: Any = ChatSession(*load("demo"))
    settings = Settings(max_tokens=3, asked=read("json_schema", SCHEMA))
    chat = make(session, "1", settings=settings)
    chat.run()
    assert lines(chat.notes)[-1] == (
        "Cut off at max_tokens (3) with the JSON unfinished: /set max_tokens 6 for more, "
        "-1 for all that fits."
    )


def test_flags_in_a_chat_through_a_pipe() -> None:
    result = invoke(
        "chat", "--no-calibrate", "--json-schema", SCHEMA, input="Ann is 7. As JSON.\nAnd Bob, 9?\n"
    )
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(answer) for answer in answers] == [{"name", "age"}] * 2
    assert "\x1b" not in result.stdout + result.stderr
    last = last_chat_path()
    assert last is not None and not last.exists()
    last.parent.mkdir(exist_ok=True)
    Conversation(turns=[Turn("Ann is 7.", "Yes.")]).save(last, "demo")
    for turns in ("1 turn", "2 turns"):
        more = "--continue", "--no-calibrate", "--choices", "yes,no"
        result = invoke("chat", *more, input="So?\n")
        assert result.stdout in ("yes\n", "no\n")
        assert f"Loaded {turns};" in result.stderr
    assert "(0 reused)" not in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["--regex", "("], 2, "unclosed group"),
        (["--regex", "a", "--choices", "a"], 2, "cannot be combined with --choices"),
        (["--json-schema", "nosuch.json"], 2, "no file nosuch.json"),
        (["--kv-bits", "7"], 1, "--kv-bits is 7"),
        (["--kv-bits", "8", "--kv-group-size", "7"], 1, "--kv-group-size is 7"),
        (["--kv-bits", "8", "--numerics", "exact"], 1, "cannot be combined"),
    ],
)
def test_bad_flags_are_refused_before_the_model_is_loaded(
    args: list[str], code: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orthrus_mlx.load", lambda *_, **__: pytest.fail("loaded"))
    result = invoke("chat", *args, input="hi\n")
    assert (result.exit_code, result.stdout) == (code, "")
    assert problem in " ".join(plain(result.stderr).replace("│", " ").split())


def ask(session: ChatSession, question: str, **options: Any) -> list[int]:
    message = [{"role": "user", "content": question}]
    given = {"max_tokens": 24, "mode": "parallel", "calibrate": False, **options}
    return [response.token for response in session.stream(message, **given)]


def test_what_is_learnt_of_constrained_answers_is_kept_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import orthrus_mlx.session

    model, tokenizer = load("demo")
    session, given = ChatSession(model, tokenizer), []

    def generate(*_: Any, evidence: Any, **__: Any) -> Any:
        given.append(evidence)
        yield from ()

    monkeypatch.setattr(orthrus_mlx.session, "stream_generate", generate)
    for constraint in (None, Regex("a"), None, JsonSchema(True)):
        ask(session, "hi", constraint=constraint)
    free, constrained = given[:2]
    assert free is not constrained
    assert given[2] is free and given[3] is constrained


def test_a_quantized_cache_is_kept_for_chats_that_quantize_alike(tmp_path: Path) -> None:
    from orthrus_mlx.cli.last_chat import keep_cache, load_cache

    model, tokenizer = load("demo")
    how = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 4, "mode": "ar"}
    first, second = "How tall is a giraffe?", "How tall is a house?"
    session = ChatSession(model, tokenizer)
    ask(session, first, **how)
    keep_cache(session, " 8 32 4")
    expected = ask(session, second, **how)
    for quantized, reused in ((" 8 32 4", True), ("", False), (" 4 32 4", False)):
        other = ChatSession(model, tokenizer)
        load_cache(other, quantized)
        assert bool(other.cached_tokens) == reused
        if reused:
            assert ask(other, second, **how) == expected
            assert other.reused_tokens > 4
