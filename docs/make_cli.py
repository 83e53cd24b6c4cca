"""Write docs/cli.md: the help of every command, as `--help` says it. Run by `make docs`."""

import inspect
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any

from rich.text import Text
from typer.main import get_command

from orthrus_mlx.cli.app import app

FILE = Path(__file__).with_name("cli.md")
WIDTH, COLUMN = 90, 34
HEAD = """# The command line

Written by `make docs` from the program itself: what `orthrus-mlx COMMAND --help` says. The flags of
mlx-lm beside ours are in [from-mlx-lm.md](from-mlx-lm.md).
"""


def text() -> str:
    """The whole file."""
    group: Any = get_command(app)
    return "\n".join([HEAD, *(command(name, group.commands[name]) for name in group.commands)])


def command(name: str, shown: Any) -> str:
    """One command: what it does, its arguments and options by panel, its examples."""
    panels: dict[str, list[str]] = {}
    for param in shown.params:
        if not getattr(param, "hidden", False):
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            panel = getattr(param, "rich_help_panel", None) or default
            panels.setdefault(panel, []).append(entry(param))
    blocks = ["\n".join([f"{panel}:", *entries]) for panel, entries in panels.items()]
    blocks.append("Examples:\n" + "\n".join(f"  {line}" for line in examples(shown)))
    usage = f"orthrus-mlx {name} [OPTIONS]" + "".join(
        f" {param.metavar}" if param.required else f" [{param.metavar}]"
        for param in shown.params
        if param.param_type_name == "argument"
    )
    about = plain(inspect.cleandoc(shown.help or ""))
    body = "\n\n".join(blocks)
    return f"## `{usage}`\n\n{about}\n\n```\n{body}\n```\n"


def entry(param: Any) -> str:
    """A flag and what it does, in two columns."""
    names = ", ".join([*param.opts, *param.secondary_opts])
    if param.param_type_name == "argument":
        names = param.metavar
    elif not param.is_flag:
        names += f" {value_of(param)}"
    said = plain(param.help or "")
    if param.envvar:
        said += f" [env: {param.envvar}]"
    if param.required:
        said += " [required]"
    elif param.show_default and param.default is not None and param.default is not False:
        default = getattr(param.default, "value", param.default)
        if param.secondary_opts:  # of a switch with two names, the one that holds
            default = param.opts[0] if default else param.secondary_opts[0]
        said += f" [default: {default}]"
    lines = textwrap.wrap(said, WIDTH - COLUMN, break_on_hyphens=False)
    first = f"  {names}"
    if len(first) < COLUMN - 1:
        first = f"{first:<{COLUMN}}{lines.pop(0)}"
    return "\n".join([first, *(" " * COLUMN + line for line in lines)])


def value_of(param: Any) -> str:
    """What stands for an option's value."""
    if param.metavar or not isinstance(param.default, Enum):
        return param.metavar or "TEXT"
    return "|".join(choice.value for choice in type(param.default))


def examples(shown: Any) -> list[str]:
    """The examples below a command's help."""
    lines = plain(shown.epilog or "").splitlines()
    return [line.strip() for line in lines[1:] if line.strip()]


def plain(markup: str) -> str:
    """Text without rich's markup."""
    return Text.from_markup(markup).plain.strip()


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
