"""The progress bar for long prompts: on a terminal, only when it helps, and gone afterwards."""

import io

import pytest
from rich.console import Console

from orthrus_mlx.cli.console import for_terminal
from orthrus_mlx.cli.prefill import PrefillBar

from .vt import Terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def read_prompt(file: io.StringIO, total: int, terminal: bool) -> str:
    console = Console(file=file, force_terminal=terminal, width=80)
    with PrefillBar(console) as bar:
        for done in range(0, total + 1, total // 4):
            bar(done, total)
    return file.getvalue()


def test_a_long_prompt_shows_a_bar_that_goes_away() -> None:
    output = read_prompt(Tty(), 8192, terminal=True)
    assert "Reading the prompt" in output
    terminal = Terminal(80, 20)
    terminal.feed(output.replace("\n", "\r\n"))
    assert terminal.lines() == []


def test_a_short_prompt_or_a_pipe_shows_none() -> None:
    assert read_prompt(Tty(), 400, terminal=True) == ""
    assert read_prompt(io.StringIO(), 8192, terminal=False) == ""


def test_the_check_can_stop_the_reading() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PrefillBar(Console(), check)(0, 10)


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert for_terminal("a\tb\r\n\x1b[2Jc\x07\x9b1m é") == "a\tb\n␛[2Jc␇\ufffd1m é"
