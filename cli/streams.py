"""The standard streams, when they are closed, full, or speak an encoding of few characters."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def prepare() -> None:
    """Put a stream in the place of each closed one, and let stderr fail in silence.

    Standard input is then at its end, and standard output refuses what is written. A later file
    cannot take their numbers. A terminal that is closed meanwhile is told no more: SIGHUP, which
    ends the program, may come later than what is written fails.
    """
    for name, mode, flags in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            stream = open(os.open(os.devnull, flags), mode)  # noqa: SIM115, PTH123
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stderr, io.TextIOWrapper):  # not so for a stand-in
        sys.stderr = _Notes(
            sys.stderr.buffer, sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.isatty():
        out = sys.stdout
        sys.stdout = _Screen(out.buffer, out.encoding, out.errors, line_buffering=True)


class _Notes(io.TextIOWrapper):
    """A stderr that drops what cannot be written: no command fails because of its notes."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        discard(self)


class _Screen(_Notes):
    """A terminal as stdout, which may be closed before the program ends."""

    def _failed(self, error: OSError) -> None:
        if error.errno != errno.EIO:
            raise error
        discard(self)


def discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that is written later, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stand-in that is no file
        pass


def write_any_text(stream: Any, tell: Callable[[str], None]) -> None:
    """Let a stream take text that its encoding lacks: `?` stands for it, and `tell` says so."""
    told = False

    def replace(error: UnicodeError) -> tuple[str, int]:
        nonlocal told
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not told:
            told = True
            tell(
                f"Standard output is {error.encoding}, which lacks some characters: `?` stands "
                "for them. With PYTHONIOENCODING=utf-8 all are written."
            )
        return "?" * (error.end - error.start), error.end

    codecs.register_error("orthrus_mlx.replace", replace)
    if hasattr(stream, "reconfigure"):  # not so for a stand-in
        stream.reconfigure(errors="orthrus_mlx.replace")
