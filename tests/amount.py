"""How much is tested: a part by default, everything with `--full` (`make test-all`)."""

from __future__ import annotations

FULL = False  # set by conftest.py, before any test module is imported


def few(count: int, *, of: int) -> int:
    """`count` by default, `of` with `--full`."""
    return of if FULL else count
