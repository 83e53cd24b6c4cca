"""Several machines: which ranks run a command, `--alone`, and the terminal under `mlx.launch`."""

import os
import subprocess
import sys
from contextlib import suppress
from enum import StrEnum
from functools import cache
from typing import Annotated, Any

import typer

from orthrus_mlx.distributed import launched

COMMANDS = ("chat", "generate", "serve", "verify", "bench")  # that load a model over all ranks


class Alone(StrEnum):
    """Whether one of several machines may go on alone."""

    auto = "auto"
    never = "never"


def _keep(choice: Alone | None) -> None:
    if choice is not None:
        os.environ["ORTHRUS_MLX_ALONE"] = choice.value


def _takes_alone(
    alone: Annotated[
        Alone | None,
        typer.Option(
            "--alone",
            metavar="auto|never",
            callback=_keep,
            expose_value=False,
            show_default=False,
            help="Started by mlx.launch on several machines: go on with the first one alone where "
            "what was measured says that it is faster, or never. [dim]\\[default: auto][/dim] "
            "[dim]\\[env: ORTHRUS_MLX_ALONE][/dim]",
            rich_help_panel="Model",
        ),
    ] = None,
) -> None: ...


@cache
def alone_option() -> Any:
    """The option `--alone`, which every command that loads a model takes."""
    one = typer.Typer(add_completion=False)
    one.command()(_takes_alone)
    command: Any = typer.main.get_command(one)
    return next(param for param in command.params if param.name == "alone")


def meet() -> None:
    """Join the other ranks, if there are any. Rank 0 goes on; the others end in here."""
    if not launched():
        return
    from orthrus_mlx.distributed.group import join

    group = join()
    if group is not None and group.rank:
        from orthrus_mlx.distributed.follower import follow

        follow(group)


def refuse(command: str) -> None:
    """Refuse a command that one machine runs, before the other ranks wait for it in vain."""
    from orthrus_mlx.distributed.group import join
    from orthrus_mlx.errors import DistributedError

    if join() is not None:
        raise DistributedError(f"{command} runs on one machine alone: start it without mlx.launch.")


def take_terminal() -> None:
    """Talk to the terminal itself where a launcher put pipes in its place.

    Not where the launcher reads that terminal too: each would get half of the keys. It passes
    lines on, which do.
    """
    if not launched() or sys.stdin.isatty() or _launcher_reads_terminal():
        return
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR)
        sys.stdout.flush()
        for number in (0, 1, 2):
            os.dup2(terminal, number)
        os.close(terminal)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True)


def _launcher_reads_terminal() -> bool:
    """Whether this process's parent has a terminal for its input; also if that is not known."""
    parent = os.getppid()
    with suppress(OSError):
        return _is_terminal(os.readlink(f"/proc/{parent}/fd/0"))  # noqa: PTH115
    with suppress(OSError, subprocess.SubprocessError):
        command = ["lsof", "-a", "-p", str(parent), "-d", "0", "-Fn"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10)
        names = [line[1:] for line in shown.stdout.splitlines() if line.startswith("n")]
        return _is_terminal(names[0]) if names else True
    return True


def _is_terminal(name: str) -> bool:
    return name.startswith(("/dev/pts/", "/dev/tty"))
