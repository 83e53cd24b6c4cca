"""The app as a whole: help that is fast and teaches, versions, errors and exit codes."""

import importlib.metadata
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

import orthrus_mlx
from orthrus_mlx.cli.app import app
from orthrus_mlx.errors import CheckpointNotFoundError

COMMANDS = ("chat", "generate")


def invoke(*args: str, **options: Any) -> Any:
    return CliRunner().invoke(app, list(args), **options)


def plain(text: str) -> str:
    """Text without styles, boxes and line breaks."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text)
    return " ".join(text.split())


def test_help_lists_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_teaches_by_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert plain(result.stdout).count(f"orthrus-mlx {command}") >= 4
    assert "ORTHRUS_MLX_MODEL" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("args", [["--help"], ["chat", "--help"], ["generate", "--help"]])
def test_help_waits_for_no_model_code(args: list[str]) -> None:
    script = (
        "import sys, resource\n"
        "from orthrus_mlx.cli import main\n"
        f"sys.argv = ['orthrus-mlx', *{args}]\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "slow = {'mlx_lm', 'transformers', 'torch', 'huggingface_hub', 'prompt_toolkit'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported, seconds = result.stderr.splitlines()
    assert imported == "[]"
    assert float(seconds) < 1.0  # 0.2 s here; the promise of 0.5 s leaves room for slow machines


def test_version() -> None:
    result = invoke("--version")
    assert result.stdout == f"orthrus-mlx {importlib.metadata.version('orthrus-mlx')}\n"


def test_no_command_shows_the_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "generate" in result.output


def test_a_mistyped_command_is_a_usage_error() -> None:
    result = invoke("chatt")
    assert result.exit_code == 2
    assert "Did you mean 'chat'?" in plain(result.stderr)


def test_our_errors_are_one_line_and_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise CheckpointNotFoundError("There is no folder [x] here.")

    monkeypatch.setattr(orthrus_mlx, "load", load)
    result = invoke("generate", "hi", "--model", "x")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: There is no folder [x] here.\n"


def test_ctrl_c_is_code_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(orthrus_mlx, "load", load)
    result = invoke("generate", "hi", "--model", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_errors_are_red_where_colour_is_wanted() -> None:
    def stderr(**env: str) -> str:
        command = [sys.executable, "-m", "orthrus_mlx.cli", "generate", "hi", "--model", "/no/x"]
        env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")} | env
        return subprocess.run(command, capture_output=True, text=True, env=env).stderr

    assert "\x1b" not in stderr()
    assert "\x1b[1;31merror: " in stderr(FORCE_COLOR="1")
    assert "\x1b[31m" not in stderr(FORCE_COLOR="1", NO_COLOR="1")
