"""Runs the command line as `python -m orthrus_mlx.cli`."""

from . import main

main()
