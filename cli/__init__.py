"""The command line: `orthrus-mlx COMMAND`."""

import sys


def main() -> None:
    """Run the command line; the entry point of the `orthrus-mlx` script."""
    try:
        from .app import app

        app(prog_name="orthrus-mlx")
    except KeyboardInterrupt:  # while still importing
        sys.exit(130)
