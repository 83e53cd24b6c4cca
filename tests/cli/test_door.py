"""Text from outside never commands a terminal; output that cannot be written is one clear line."""

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import orthrus_mlx
from orthrus_mlx.cli.app import app
from orthrus_mlx.cli.console import SafeConsole, for_terminal, note, print_error
from orthrus_mlx.cli.conversation import Conversation, Turn
from orthrus_mlx.cli.info import grid
from orthrus_mlx.cli.reader import complete_path, history_path
from orthrus_mlx.cli.render import MarkdownScreen, PlainScreen
from orthrus_mlx.cli.repl import Chat
from orthrus_mlx.cli.slash import describe_loaded
from orthrus_mlx.cli.streams import write_any_text
from orthrus_mlx.cli.thinking import Kind
from orthrus_mlx.device.measured import cache_folder
from orthrus_mlx.errors import CheckpointError, OutputError

from .fakes import FakeReader, FakeScreen, FakeSession, lines, notes

# A title, C1's CSI, a right-to-left override, a zero-width space, a tag, a byte that is not UTF-8.
NASTY = "a\x1b]0;owned\x07\x9b2J\u202eb\u200b\u2066\U000e0041\ufeff\udcff c"
SHOWN = "a␛]0;owned␇�2J�b����� c"
JOINERS = "\u200c\u200d"
SIGNS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"


def test_no_control_or_invisible_character_passes() -> None:
    kept = "\t\n" + JOINERS + SIGNS
    unsafe = [
        chr(c)
        for c in range(sys.maxunicode + 1)
        if unicodedata.category(chr(c)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(c) not in kept
    ]
    hieroglyphs = range(0x13430, 0x13440)  # they join signs, and are seen by it
    passed = [c for c in unsafe if for_terminal(c) == c and ord(c) not in hieroglyphs]
    assert passed == []
    assert for_terminal(NASTY) == SHOWN


def test_ordinary_text_passes_as_it_is() -> None:
    text = "Grüße, مرحبا, שלום, 日本語, 👩‍👩‍👧 ❤️, नमस्ते, می‌خواهم\t\n"
    assert for_terminal(text) == text


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def _stream(screen: Any) -> None:
    with screen:
        for c in NASTY:
            screen.write(Kind.thinking, c)
        for c in NASTY:
            screen.write(Kind.answer, c)


def _saved(console: SafeConsole) -> None:
    conversation = Conversation(None, [Turn(NASTY, "")], Path(NASTY))
    note(console, describe_loaded(conversation))


WAYS: dict[str, Callable[[SafeConsole], None]] = {
    "error": lambda console: print_error(CheckpointError(NASTY), console),
    "operating system": lambda console: print_error(OSError(2, "No such file", NASTY), console),
    "note": lambda console: note(console, NASTY),
    "info": lambda console: console.print(grid({"Model": NASTY})),
    "loaded": _saved,
    "plain print": lambda console: console.print(NASTY, markup=False),
    "markdown answer": lambda console: _stream(MarkdownScreen(console)),
    "markdown entity": lambda console: _stream_entity(console),
    "plain answer": lambda console: _stream(PlainScreen(console.file)),
}


def _stream_entity(console: SafeConsole) -> None:
    with MarkdownScreen(console) as screen:
        screen.write(Kind.answer, "a &#27;]0;owned&#7; &#x202e;b")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_terminal_is_safe(way: str) -> None:
    console = SafeConsole(file=Tty(), force_terminal=True, color_system=None, width=200)
    WAYS[way](console)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "owned" in written
    # The console's own codes are CSI sequences; nothing else that a terminal obeys is there.
    assert "\x1b]" not in written
    assert not set(written) & set("\x07\x9b\u202e\u200b\u2066\U000e0041\ufeff\udcff")


@pytest.mark.parametrize(
    "args",
    [[NASTY], ["info", NASTY], ["info", "demo", NASTY], ["chat", "--mode", NASTY], [f"--{NASTY}"]],
    ids=["command", "error", "argument", "choice", "option"],
)
def test_what_is_typed_and_refused_is_shown_safely(args: list[str]) -> None:
    result = CliRunner().invoke(app, args)
    assert result.exit_code in (1, 2)
    assert "owned" in result.stderr
    assert not set(result.stderr) & set("\x1b\x07\x9b\u202e\u200b\u2066\ufeff")


def test_into_a_pipe_an_answer_stays_as_it_is() -> None:
    stream = io.StringIO()
    with PlainScreen(stream) as screen:
        screen.write(Kind.answer, "a\x1b[1m\u202e\r\n")
    assert stream.getvalue() == "a\x1b[1m\u202e\r\n"


def test_an_error_is_one_line() -> None:
    console = notes()
    print_error(CheckpointError("first\nerror: second\n"), console)
    assert lines(console) == ["error: first error: second"]


@pytest.mark.parametrize(("encoding", "written"), [("ascii", "? ??"), ("latin-1", "? é?")])
def test_what_stdout_cannot_encode_is_replaced_and_said_once(encoding: str, written: str) -> None:
    told: list[str] = []
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    write_any_text(stream, told.append)
    stream.write("☃ é")
    stream.write("日")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == written  # type: ignore[attr-defined]
    assert len(told) == 1
    assert "PYTHONIOENCODING=utf-8" in told[0]


COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "info": ["info", "demo"],
    "json": ["info", "demo", "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line_and_code_1(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            app(COMMANDS[name])
        monkeypatch.undo()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "error: Output cannot be written: No space left on device.\n"
    )


def test_closed_streams_are_no_traceback() -> None:
    """No stdout: one line. No stderr: as if nobody looked. Neither number goes to a file."""

    def run(closed: str, *args: str) -> Any:
        command = f'exec "$0" -m orthrus_mlx.cli "$@" {closed}'
        return subprocess.run(
            ["sh", "-c", command, sys.executable, *args],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )

    result = run(">&-", "--version")
    assert result.returncode == 1
    assert result.stderr == "error: Output cannot be written: Bad file descriptor.\n"
    result = run("<&- 2>&-", "--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("orthrus-mlx ")
    result = run("2>/dev/full", "nonsense")
    assert (result.returncode, result.stdout) == (2, "")


BAD_NAMES = [
    "x" * 300,
    "~nobody-such/x.json",
    "/dev/null/x.json",
    "missing/folder/x.json",
    "nul\0byte",
    "loop/x.json",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:12].replace("\0", "0"))
def test_a_chat_outlives_bad_file_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    console = notes()
    reader = FakeReader("hi", f"/save {name}", f"/save! {name}", f"/load {name}", "still there?")
    chat = Chat(FakeSession("Hello", "Yes"), reader, FakeScreen(), console, model_name="m")
    chat.run()
    assert [turn.answer for turn in chat.conversation.turns] == ["Hello", "Yes"]
    said = [line for line in lines(console) if line.startswith("error: ")]
    assert len(said) == 3
    assert all("Traceback" not in line for line in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop"]


def test_a_chat_outlives_a_full_disk() -> None:
    console = notes()
    full = OSError(28, "No space left on device")
    reader = FakeReader("hi", "again", "still there?")
    chat = Chat(FakeSession("Hello", ["a", full], "Yes"), reader, FakeScreen(), console,
                model_name="m")  # fmt: skip
    chat.run()
    assert [turn.answer for turn in chat.conversation.turns] == ["Hello", "Yes"]
    assert "error: Output cannot be written: No space left on device." in lines(console)


def test_a_conversation_replaces_nothing_but_files() -> None:
    with pytest.raises(OutputError, match="no regular file"):
        Conversation().save(Path("/dev/full"), "demo", overwrite=True)


def test_bytes_on_standard_input_that_are_not_utf8_are_one_line() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "generate", "-m", "4", "--mode", "ar"],
        input=b"caf\xe9",
        capture_output=True,
        check=False,
    )
    assert (asked.returncode, asked.stdout) == (1, b"")
    assert b"not valid Unicode" in asked.stderr


def test_a_conversation_with_bytes_that_are_not_utf8_is_saved(tmp_path: Path) -> None:
    """A terminal may send any byte: what it sent is kept, and the file is JSON."""
    path = tmp_path / ("long" * 60 + ".json")
    Conversation(None, [Turn("\udcff \N{GRINNING FACE}", "ok")]).save(path, "m")
    assert json.loads(path.read_text("utf-8"))["messages"][0]["content"] == "\udcff 😀"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_unknown_users_home_is_one_error_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "~nobody-such/x"
    with pytest.raises(CheckpointError, match=r"~nobody-such/x cannot be found: .*~nobody-such\."):
        orthrus_mlx.load(name)
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", name)
    with pytest.raises(OutputError, match="cannot be found"):
        history_path()
    assert complete_path(name) == []
    result = CliRunner().invoke(app, ["convert", "--model", "demo", "--mlx-path", name])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {name} cannot be found")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("width", [60, 80])
def test_a_terminal_breaks_lines_between_words_and_no_command(width: int) -> None:
    command = "`orthrus-mlx convert --hf-path owner/name --mlx-path here`"
    text = f"{'A line of some words that is longer than it. ' * 2}{command}, {'x' * 200} and on."
    for show in (note, lambda c, t: print_error(OutputError(t), c)):
        screen, pipe = io.StringIO(), io.StringIO()
        show(SafeConsole(file=screen, force_terminal=True, width=width, no_color=True), text)
        show(SafeConsole(file=pipe, width=width), text)
        plain_lines = [
            re.sub(r"\x1b\[[0-9;]*m", "", line) for line in screen.getvalue().split("\n")
        ]
        assert " ".join(line for line in plain_lines if line) == pipe.getvalue().strip()
        assert all(len(line) <= width for line in plain_lines if "x" * 200 not in line)
        assert sum(command in line for line in plain_lines) == 1
        assert pipe.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--prompts=~/no/file", "--output=~/answers.jsonl"],
        ["generate", "--prompts=~/prompts.jsonl", "--output=~/no/file"],
        ["report", "--json=~/no/file"],
        ["bench", "--prompts=~/no/file"],
        ["verify", "demo", "--prompts=~/no/file"],
    ],
)
def test_a_home_folder_that_the_shell_left_in_a_flag(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello!"}')
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert f"{tmp_path}/no" in result.stderr.replace("\n", "")


def test_a_home_folder_in_the_name_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", "~/measured")
    assert cache_folder() == Path.home() / "measured"
