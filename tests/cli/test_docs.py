"""The docs say what the program says."""

import argparse
import importlib
import re
import runpy
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.main import get_command

from orthrus_mlx.cli.app import app
from orthrus_mlx.cli.habits import REFUSED

DOCS = Path(__file__).parents[2] / "docs"


def test_the_help_in_the_docs_is_that_of_the_program() -> None:
    made = runpy.run_path(str(DOCS / "make_cli.py"))["text"]()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == made, "stale: run `make docs`"


def test_every_command_and_flag_is_in_it() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    group: Any = get_command(app)
    for name, command in group.commands.items():
        section = text.partition(f"## `orthrus-mlx {name} ")[2].partition("\n## ")[0]
        for param in command.params:
            for flag in (*param.opts, *param.secondary_opts):
                assert param.param_type_name == "argument" or f"{flag}" in section, (name, flag)


def test_help_shows_no_text_where_a_number_is_wanted() -> None:
    group: Any = get_command(app)
    for name, command in group.commands.items():
        hints = get_type_hints(command.callback)
        for param in command.params:
            if {int, float} & {hints.get(param.name), *get_args(hints.get(param.name))}:
                assert param.metavar, (name, param.name)


def test_every_script_of_benchmarks_is_in_their_table() -> None:
    folder = DOCS.parent / "benchmarks"
    table = (folder / "README.md").read_text(encoding="utf-8")
    scripts = [f for f in folder.glob("*.py") if "ArgumentParser(" in f.read_text("utf-8")]
    assert scripts
    assert [f.name for f in scripts if f"| `{f.name}` |" not in table] == []


def theirs(command: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flags of a command of the mlx-lm that is installed."""
    module = importlib.import_module(f"mlx_lm.{command}")
    make = getattr(module, "setup_arg_parser", None) or module.configure_parser
    monkeypatch.setattr(sys, "argv", [command])
    parser: argparse.ArgumentParser = make()
    return {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize(
    ("command", "ours"), [("generate", "generate"), ("convert", "convert"), ("cache_prompt", "")]
)
def test_every_flag_of_mlx_lm_is_taken_or_refused_and_in_the_table(
    command: str, ours: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "from-mlx-lm.md").read_text(encoding="utf-8")
    table = text.partition(f"## {command}\n")[2].partition("\n## ")[0]
    flags = theirs(command, monkeypatch)
    assert [flag for flag in sorted(flags) if f"`{flag}" not in table] == []
    if ours:
        group: Any = get_command(app)
        taken = {flag for param in group.commands[ours].params for flag in param.opts}
        assert flags - taken - REFUSED.keys() - {"-qa"} == set()
        assert taken & REFUSED.keys() == set()


def test_every_flag_of_mlx_lm_s_server_is_in_the_table() -> None:
    text = (DOCS / "from-mlx-lm.md").read_text(encoding="utf-8")
    table = text.partition("## server\n")[2].partition("\n## ")[0]
    source = Path(str(importlib.import_module("mlx_lm.server").__file__)).read_text("utf-8")
    flags = re.findall(r'"(--[a-z-]+)"', source.partition("def main(")[2])
    assert len(flags) > 10  # its parser is made in `main`, and can only be read
    assert [flag for flag in flags if f"`{flag}`" not in table] == []
