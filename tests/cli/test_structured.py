"""Structured output on the command line: what each flag writes, and how bad values are refused."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import orthrus_mlx
from orthrus_mlx import ConstraintError, JsonSchema, load
from orthrus_mlx.chat.prompt import encode_chat, encode_start, encode_text
from orthrus_mlx.cli.stats import BY_FLAG, cut_line
from orthrus_mlx.cli.structured import building, read, split_choices

from .fakes import response
from .test_app import invoke, plain
from .test_generate import Fake, fake  # noqa: F401  (a fixture)

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
QUESTION = "Ann is 7 years old. As JSON."
LARK = 'start: NUMBER " + " NUMBER\nNUMBER: /[0-9]{1,3}/\n'
GBNF = 'root ::= ("yes" | "no") "!"\n'


def ask(*args: str) -> str:
    result = invoke("generate", QUESTION, "--no-calibrate", *args)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout + result.stderr
    return str(result.stdout)


@pytest.mark.parametrize("mode", ["ar", "parallel", "auto"])
def test_a_schema_as_text(mode: str) -> None:
    assert json.loads(ask("--json-schema", SCHEMA, "--mode", mode)) == {"name": "Ann", "age": 7}


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"person": SCHEMA, "sum.lark": LARK, "word.gbnf": GBNF}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert ask("--json-schema", "person") == ask("--json-schema", SCHEMA)
    left, plus, right = ask("--grammar", "sum.lark").split()
    assert left.isdigit() and plus == "+" and right.isdigit()
    assert ask("--grammar", "word.gbnf") in ("yes!\n", "no!\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("json_schema", "~/person").constraint == JsonSchema(SCHEMA)


def test_a_regex_and_choices() -> None:
    answer = ask("--regex", "[0-9]{2} cm")
    assert answer[:2].isdigit() and answer[2:] == " cm\n"
    assert ask("--choices", "yes\\, it is, no") in ("yes, it is\n", "no\n")


def test_a_comma_in_a_choice_has_a_backslash() -> None:
    assert split_choices("a, b\\, c ,d\\e") == ["a", "b, c", "d\\e"]
    assert split_choices("a,") == ["a", ""]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--json-schema", "nosuch.json", "There is no file nosuch.json"),
        ("--json-schema", "{", "is not valid JSON"),
        ("--json-schema", "[]", "expected an object"),
        ("--json-schema", '{"type": "objekt"}', "objekt"),
        ("--json-schema", '{"not": {}}', "not"),
        ("--json-schema", '{"$ref": "https://example.com/x"}', "https://example.com/x"),
        ("--json-schema", "[" * 20_000, "brackets|recursion|JSON"),
        ("--json-schema", '{"enum": ["' + "x" * 200_000 + '"]}', "at most 65,536"),
        ("--json-schema", "large", "65536 at most"),
        ("--json-schema", "folder", "it is a folder"),
        ("--json-schema", "pipe", "a pipe or a device"),
        ("--json-schema", "latin", "not UTF-8"),
        ("--regex", "(", "unclosed group"),
        ("--regex", "(?=a)", "look-ahead"),
        ("--regex", "", "is empty"),
        ("--grammar", "nosuch.lark", "No such file"),
        ("--grammar", "person", "cannot be"),
        ("--choices", "a,,b", "A choice is empty"),
    ],
)
def test_bad_values_are_refused_before_the_model_is_loaded(
    flag: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "large").write_bytes(b" " * (131_072 + 1))
    (tmp_path / "latin").write_bytes(b'{"title": "\xe4"}')
    (tmp_path / "gbnf").write_text(GBNF, encoding="utf-8")
    (tmp_path / "person").write_text(SCHEMA, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    read("grammar", "gbnf")  # loading libraries does not count
    start = time.process_time()  # others may keep this machine busy
    with pytest.raises(ConstraintError):
        read(flag.removeprefix("--").replace("-", "_"), value)
    assert time.process_time() - start < 0.1
    result = invoke("generate", "hi", flag, value)
    assert (result.exit_code, result.stdout) == (2, "")
    text = " ".join(plain(result.stderr).split())
    assert flag in text
    assert any(part in text for part in said.split("|")), text


def test_one_constraint_at_a_time() -> None:
    result = invoke("generate", "hi", "--regex", "a", "--choices", "a,b")
    assert result.exit_code == 2
    assert "cannot be combined with --choices" in plain(result.stderr)


def test_without_llguidance_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    result = invoke("generate", "hi", "--choices", "a,b")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: Constraints need llguidance: pip install 'orthrus-mlx[grammar]'.\n"
    )


def test_the_answer_goes_on_behind_a_prefill() -> None:
    start = '{"name": "Bo'
    rest = ask("--json-schema", SCHEMA, "--prefill-response", start)
    assert json.loads(start + rest)["name"].startswith("Bo")


def test_thinking_goes_aside_and_the_json_to_stdout(
    fake: Fake,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake.generate.answers = ["<think>\nHm.\n</think>\n\n{}"]
    result = invoke("generate", "hi", "--json-schema", "true", "--prediction", "{}")
    assert result.exit_code == 0, result.output
    assert result.stdout == "{}\n"
    assert "Hm." in result.stderr
    options = fake.generate.options[0]
    assert options["constraint"] == JsonSchema("true")
    assert options["prediction"] == "{}"


def test_a_cached_prompt_is_answered_under_a_constraint(tmp_path: Path) -> None:
    file = str(tmp_path / "cached")
    invoke("cache-prompt", "--prompt-cache-file", file, "-p", QUESTION[:12])
    rest = ("generate", QUESTION[12:], "--prompt-cache-file", file, "--json-schema", SCHEMA)
    assert json.loads(invoke(*rest, "--no-calibrate").stdout) == {"name": "Ann", "age": 7}
    start = '{"name": "An'
    more = invoke(*rest, "--no-calibrate", "--prefill-response", start).stdout
    assert json.loads(start + more)["name"].startswith("An")


def test_a_prefill_that_the_constraint_does_not_allow() -> None:
    result = invoke("generate", "hi", "--json-schema", SCHEMA, "--prefill-response", "[1")
    assert result.exit_code == 1
    assert "begins with text that the constraint does not allow" in plain(result.stderr)


@pytest.mark.parametrize("answer", ['{"na', '\n{"na', "ea", " 12 cm", "<|im_end|>", ""])
def test_no_token_reaches_across_the_start_of_an_answer(answer: str) -> None:
    _, tokenizer = load("demo")
    messages = [{"role": "user", "content": "Th"}, {"role": "assistant", "content": answer}]
    merging = "{% for m in messages %}{{ m.content }}{% endfor %}"  # nothing between the two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer._tokenizer, "chat_template", merging)
        patch.setattr(orthrus_mlx.chat.prompt.warnings, "warn", lambda *_, **__: None)
        ids, text = encode_chat(tokenizer, messages, unfinished=True, apart=True)
    start = encode_start(tokenizer, text, answer)
    assert ids[len(ids) - len(start) :] == start
    space = answer[: len(answer) - len(answer.lstrip())]
    head = encode_text(tokenizer, "Th" + space, add_special_tokens=False)
    assert ids[: len(ids) - len(start)] == head
    assert tokenizer.decode(start) == answer.lstrip()


def test_an_answer_that_is_cut_is_said_to_be_unfinished() -> None:
    result = invoke("generate", QUESTION, "--no-calibrate", "--json-schema", SCHEMA, "-m", "5")
    assert "Cut off at max_tokens (5) with the JSON unfinished: --max-tokens 10" in result.stderr
    result = invoke("generate", QUESTION, "--no-calibrate", "--regex", "[0-9]{30}", "-m", "3")
    assert "with the text unfinished" in result.stderr
    _, tokenizer = load("demo")
    whole = encode_text(tokenizer, "10 cm", add_special_tokens=False)
    result = invoke(
        "generate", QUESTION, "--no-calibrate", "--choices", "10 cm", "-m", str(len(whole))
    )
    assert result.stdout == "10 cm\n"
    assert "Cut off" in result.stderr and "unfinished" not in result.stderr


def test_an_answer_cut_while_thinking_has_not_begun() -> None:
    last = response("x", 5, 1, "length")
    last.complete = False
    line = cut_line(last, BY_FLAG, stopped=None, thinks=True, noun="JSON")
    assert line is not None and "while thinking" in line and "unfinished" not in line


def test_a_prediction_changes_the_cost_alone(tmp_path: Path) -> None:
    def rivers(*args: str) -> Any:
        flags = ("--mode", "parallel")
        return invoke("generate", "Three rivers, as JSON", *flags, *args)

    free = rivers()
    file = tmp_path / "expected.txt"
    file.write_text(free.stdout, encoding="utf-8")
    for given in (free.stdout.strip(), str(file)):
        expected = rivers("--prediction", given)
        assert expected.stdout == free.stdout
        assert passes(expected.stderr) > passes(free.stderr)
    assert rivers("--prediction", "nothing like it").stdout == free.stdout


def passes(notes: str) -> float:
    """The tokens per forward pass that the notes report."""
    return float(notes.partition("Drafting: ")[2].split()[0])


def test_a_prediction_needs_drafts() -> None:
    result = invoke("generate", "hi", "--prediction", "x", "--mode", "ar")
    assert result.exit_code == 2
    assert "--mode ar does not draft" in plain(result.stderr)


def test_building_a_grammar_shows_on_a_screen_alone() -> None:
    import io

    from rich.console import Console

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for file in (io.StringIO(), Screen()):
        with building(Console(file=file, force_terminal=file.isatty())):
            time.sleep(0.01)
        assert ("Building the grammar" in file.getvalue()) == file.isatty()
