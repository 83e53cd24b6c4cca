"""The first use of exact numerics in a real terminal: a bar while the device is probed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pexpect")

from .test_chat_terminal import QUESTION, Person

# The program as it is, but for a probe that finds at once what it then takes its time to report:
# 60 steps of STEP seconds.
PROBING = """
import os, sys, time
from orthrus_mlx.device import probe as numerics
from orthrus_mlx import generate
def slowly(model, *, progress):
    for step in range(1, 61):
        progress(step, 60)
        time.sleep(float(os.environ["STEP"]))
    rows = (1, 2, 4, 8, 15, 16)
    return numerics.Probe((rows,), ((8, 8), (16, 16)), 0.0, dict.fromkeys(rows, 1.0))
generate.cached_probe = slowly
from orthrus_mlx.cli import main
sys.argv = ["orthrus-mlx", *sys.argv[1:]]
main()
"""
SHOWN = "Measuring this device"


@pytest.fixture
def start(measured_tiny16: Path, tmp_path: Path) -> Iterator[Any]:
    people = []

    def start(command: str, *args: str, step: float = 0.05) -> Person:
        env = {"ORTHRUS_MLX_HISTORY": str(tmp_path / "history"), "PROMPT_TOOLKIT_NO_CPR": "1"}
        env["STEP"] = str(step)
        args = (command, "--model", str(measured_tiny16), "--numerics", "exact", *args)
        people.append(Person(list(args), env, tmp_path, PROBING))
        return people[-1]

    yield start
    for person in people:
        person.kill()


def test_generate_shows_a_bar_and_then_the_answer(start: Any) -> None:
    me = start("generate", QUESTION, step=0.02)
    me.sees(SHOWN)
    assert me.leaves() == 0
    screen = "\n".join(me.screen())
    assert "So the area is 84." in screen
    assert SHOWN not in screen


def test_ctrl_c_during_the_probe_ends_generate(start: Any) -> None:
    me = start("generate", QUESTION)
    me.sees(SHOWN)
    me.type("\x03")
    assert me.leaves() == 130
    assert "\n".join(me.screen()).strip().removeprefix("^C") == "Stopped by Ctrl-C."


def test_ctrl_c_during_the_probe_takes_a_turn_of_the_chat_back(start: Any) -> None:
    me = start("chat", "--plain")
    me.awaits_prompt()
    me.type(f"{QUESTION}\r")
    me.sees(SHOWN)
    me.type("\x03")
    me.sees("Stopped before the answer began; your message was not kept.")
    me.awaits_prompt()
    me.type(f"{QUESTION}\r")
    me.sees("So the area is 84.")
    me.awaits_prompt()
    assert SHOWN not in "\n".join(me.screen())
    me.type("\x04")
    assert me.leaves() == 0


@pytest.mark.parametrize("command", ["generate", pytest.param("chat", marks=pytest.mark.full)])
def test_a_pipe_sees_the_answer_alone(measured_tiny16: Path, command: str) -> None:
    args = [command, "--model", str(measured_tiny16), "--numerics", "exact"]
    result = subprocess.run(
        [sys.executable, "-c", PROBING, *args],
        capture_output=True,
        text=True,
        input=QUESTION,
        env=os.environ | {"TERM": "xterm-256color", "STEP": "0"},
    )
    assert result.returncode == 0, result.stderr
    assert "So the area is 84." in result.stdout
    assert "Probing" not in result.stdout + result.stderr
