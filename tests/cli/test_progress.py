"""The progress bars: on a terminal, only when they help, and gone afterwards."""

import io

import pytest
from rich.console import Console

from orthrus_mlx.cli import progress
from orthrus_mlx.cli.console import for_terminal
from orthrus_mlx.cli.progress import prefill_bar, probe_bar
from orthrus_mlx.device import backend

from .vt import Terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def read_prompt(file: io.StringIO, total: int, terminal: bool) -> str:
    console = Console(file=file, force_terminal=terminal, width=80)
    with prefill_bar(console) as bar:
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


def probe(file: io.StringIO, terminal: bool, steps: int = 3) -> str:
    """A probe of three steps, as far as it comes."""
    console = Console(file=file, force_terminal=terminal, width=80)
    with probe_bar(console) as bar:
        for done in range(1, steps + 1):
            bar(done, 3)
    return file.getvalue()


@pytest.mark.parametrize("steps", [2, 3], ids=["stopped", "whole"])
def test_the_probe_shows_a_bar_that_goes_away(steps: int) -> None:
    output = probe(Tty(), terminal=True, steps=steps)
    assert "Measuring this device" in output
    terminal = Terminal(80, 20)
    terminal.feed(output.replace("\n", "\r\n"))
    assert terminal.lines() == []


@pytest.mark.parametrize(("on", "more"), [("CPU", ""), ("Metal", ", compiling kernels")])
def test_a_probe_into_a_pipe_says_how_far_it_is_once_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, on: str, more: str
) -> None:
    monkeypatch.setattr(backend, "backend", lambda: on)
    now = iter([0.0, 0.0, 1.0, 3.0, 4.0, 4.0, 4.0, 5.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(now))
    file = io.StringIO()
    with probe_bar(Console(file=file, force_terminal=False, width=80)) as bar:
        for done in (1, 4, 8, 8, 10):  # at 0, 1, 3, 3 and 4 s
            bar(done, 10)
        bar(1, 10)  # a second thing to measure, from 4 to 5 s
        bar(2, 10)
    assert file.getvalue().splitlines() == [
        f"Measuring this device{more}: 80 %",
        f"Measuring this device{more}: 100 %",
    ]


def test_a_short_probe_into_a_pipe_or_one_found_on_disk_shows_none() -> None:
    assert probe(io.StringIO(), terminal=False) == ""
    assert probe(Tty(), terminal=True, steps=0) == ""


def test_the_check_can_stop_the_reading() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefill_bar(Console(), check)(0, 10)


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert for_terminal("a\tb\r\n\x1b[2Jc\x07\x9b1m é") == "a\tb\n␛[2Jc␇\ufffd1m é"
