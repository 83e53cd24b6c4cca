"""Ctrl-C while the command line is being imported, or is at its end: leave at once, code 130.

Imports answer a KeyboardInterrupt with a traceback, and half a module may be left. So the signal is
set where imports begin, in `orthrus_mlx/__init__.py`, and only in a process that is the command
line. Elsewhere signals are the caller's.
"""

import os
import signal
import sys

_SCRIPT, _MODULE = "orthrus-mlx", "orthrus_mlx.cli"


def leave_on_ctrl_c() -> bool:
    """Let Ctrl-C end the process, unless someone chose otherwise; say whether it does."""
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _leave):
        return False  # the background of a script ignores it
    signal.signal(signal.SIGINT, _leave)
    return True


def raise_on_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    os._exit(130)


def _is_command_line() -> bool:
    called = os.path.basename(sys.orig_argv[0] if len(sys.orig_argv) < 2 else sys.orig_argv[1])  # noqa: PTH119
    return called == _SCRIPT or sys.orig_argv[1:3] == ["-m", _MODULE]


if _is_command_line():
    leave_on_ctrl_c()
