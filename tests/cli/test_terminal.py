"""Interrupts and resizes: Ctrl-C at the ends of the program, Ctrl-Z, a narrower terminal."""

import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import orthrus_mlx
from orthrus_mlx.cli import terminal
from orthrus_mlx.cli.app import app
from orthrus_mlx.cli.render import MarkdownScreen
from orthrus_mlx.cli.terminal import no_echo, times_resumed
from orthrus_mlx.cli.thinking import Kind

INTERRUPTS = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
AT_EXIT = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("module", ["numpy", "mlx", "typer", "rich"])
def test_ctrl_c_while_importing_is_code_130(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTS)
    result = _run(tmp_path, "info", "demo")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_at_the_end_is_code_130(tmp_path: Path) -> None:
    script = f"{AT_EXIT}from orthrus_mlx.cli import main\nmain()\n"
    result = _run(tmp_path, "--version", script=script)
    assert (result.returncode, result.stderr) == (130, "")


def test_importing_the_library_leaves_signals_alone(tmp_path: Path) -> None:
    script = "import orthrus_mlx, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    assert _run(tmp_path, script=script).stdout == "default_int_handler\n"


def _run(path: Path, *args: str, script: str | None = None) -> Any:
    start = ["-m", "orthrus_mlx.cli"] if script is None else ["-c", script]
    return subprocess.run(
        [sys.executable, *start, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path)},
        # Whoever runs the tests in the background may have had it ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_in_the_probe_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: (None, None))
    monkeypatch.setattr("orthrus_mlx.device.probe.cached_probe", interrupted)
    result = CliRunner().invoke(app, ["verify", "demo"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_z_suspends_and_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kill, happened = os.kill, []

    def stop(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGTSTP)
        assert signal.getsignal(number) is signal.SIG_DFL  # so that it would stop here
        happened.append("stopped")

    monkeypatch.setattr(os, "kill", stop)
    monkeypatch.setattr(terminal, "_show_cursor", lambda: happened.append("cursor"))
    before = times_resumed()
    with no_echo():
        for _ in range(2):
            kill(os.getpid(), signal.SIGTSTP)
    assert happened == ["cursor", "stopped"] * 2
    assert times_resumed() == before + 2
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


class Screen:
    """A Markdown screen whose terminal may be resized; tells how far up each drawing went."""

    def __init__(self, width: int) -> None:
        self.console = Console(
            file=io.StringIO(), width=width, height=50, force_terminal=True, color_system=None
        )
        self._screen = MarkdownScreen(self.console)

    def write(self, text: str) -> None:
        self._screen._drawn = 0.0  # it is time to draw
        self._screen.write(Kind.answer, text)

    def rows_replaced(self) -> int:
        file = self.console.file
        assert isinstance(file, io.StringIO)
        ups = file.getvalue().count("\x1b[1A")
        file.seek(0)
        file.truncate()
        return ups


def test_a_narrower_terminal_leaves_no_line_behind() -> None:
    screen = Screen(60)
    screen.write("word " * 20)  # rows of 59 and 39 cells
    assert screen.rows_replaced() == 0
    screen.write("more")
    assert screen.rows_replaced() == 2
    screen.console.width = 25  # the terminal breaks 59 cells into 3 rows, and 44 into 2
    screen.write(" more")
    assert screen.rows_replaced() == 5
    screen.console.width = 60  # now there are 5 rows of up to 24 cells
    screen.write(" more")
    assert screen.rows_replaced() == 5


def test_after_a_suspension_nothing_above_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(60)
    screen.write("word")
    monkeypatch.setattr(terminal, "_resumed", times_resumed() + 1)
    screen.write(" more")
    assert screen.rows_replaced() == 0
    screen.write(" more")
    assert screen.rows_replaced() == 1
