"""Reading what is typed: lines from a pipe, and where the history is kept."""

import io
import sys
from pathlib import Path

import pytest

from orthrus_mlx.cli.reader import LineReader, history_path, read_message

from .fakes import FakeReader


def test_lines_from_a_pipe() -> None:
    reader = LineReader(io.StringIO("\ufeffone\r\ntwo\n\nlast"))
    assert [reader.read("> ") for _ in range(4)] == ["one", "two", "", "last"]
    with pytest.raises(EOFError):
        reader.read("> ")


def test_bytes_that_are_not_text_are_read_all_the_same() -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    assert LineReader(stream).read("> ") == "caf\ufffd"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["plain"], "plain"),
        (['"""one line"""'], "one line"),
        (['  """', "  a", "b  ", '  """'], "  a\nb"),
        (['"""', "never closed"], "never closed"),
        (['"""pasted\nwhole"""'], "pasted\nwhole"),
        (['say """ twice'], 'say """ twice'),
        (['""""""'], ""),
    ],
)
def test_messages(typed: list[str], message: str) -> None:
    assert read_message(FakeReader(*typed)) == message


def test_further_lines_have_their_own_prompt() -> None:
    reader = FakeReader('"""', "a", '"""')
    read_message(reader)
    assert reader.prompts == ["> ", "… ", "… "]


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", str(tmp_path / "mine"))
    assert history_path() == tmp_path / "mine"
    monkeypatch.delenv("ORTHRUS_MLX_HISTORY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    mac = "Library/Application Support"
    state = mac if sys.platform == "darwin" else ".local/state"
    assert history_path() == tmp_path / state / "orthrus-mlx/chat_history"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert history_path() == tmp_path / "state/orthrus-mlx/chat_history"
