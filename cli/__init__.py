"""The command line: `orthrus-mlx COMMAND`."""

import sys


def main() -> None:
    """Run the command line; the entry point of the `orthrus-mlx` script."""
    from orthrus_mlx._early import leave_on_ctrl_c, raise_on_ctrl_c

    from .streams import prepare

    leaves = leave_on_ctrl_c()
    prepare()
    try:
        from .app import app

        if leaves:
            raise_on_ctrl_c()
        app(prog_name="orthrus-mlx")
    except KeyboardInterrupt:  # while typer builds the commands
        sys.exit(130)
    finally:
        if leaves:  # only the interpreter's own end is left
            leave_on_ctrl_c()
