"""A folder that appears whole or not at all, whatever ends the program in between."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import OutputError

SLACK = 1 << 20  # for what is written beside the weights


def check_absent(final: Path) -> None:
    """Refuse a path that is taken.

    Raises:
        OutputError: if `final` exists.
    """
    if os.path.lexists(final):
        raise OutputError(
            f"{final} exists already and is left alone. Remove it or name another folder."
        )


@contextmanager
def staged_folder(final: Path, needed: int) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends, and vanishes if it fails.

    It lies in a hidden folder beside `final`. That is removed on any exception, Ctrl-C and SIGTERM
    included; one that a killed program left behind is removed by the next run.

    Args:
        final: where the folder is to appear; must not exist.
        needed: how many bytes are about to be written.

    Raises:
        OutputError: if there is no room, or the file system refuses.
    """
    check_absent(final)
    created: list[Path] = []
    holder, lock = None, -1
    with _terminate_as_exception():
        try:
            created = _make_parents(final.parent)
            remove_stale(final)
            _check_room(final, needed)
            holder, lock = _make_holder(final)
            folder = holder / final.name
            folder.mkdir()
            yield folder
            _sync(folder)
            check_absent(final)
            folder.rename(final)
            _sync(final.parent)
            created.clear()
        except OSError as e:
            raise _output_error(e, final, needed) from e
        finally:
            with _no_interrupts():
                if holder is not None:
                    shutil.rmtree(holder, ignore_errors=True)
                    os.close(lock)
                for parent in created:
                    with contextlib.suppress(OSError):
                        parent.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder` and what it lies in; the folders that are new, innermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _holder_prefix(final: Path) -> str:
    return f".{final.name}.converting-"


def _make_holder(final: Path) -> tuple[Path, int]:
    """A new hidden folder, and the descriptor that keeps it locked while this program lives."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=_holder_prefix(final), dir=final.parent))
        try:
            descriptor = _lock(holder)
        except OSError:  # a file system without locks: what is left here is never called stale
            return holder, os.open(holder, os.O_RDONLY)
        if descriptor is not None:
            return holder, descriptor
        # Another run took it for a stale one between the two calls, and removes it.


def _lock(folder: Path) -> int | None:
    """Lock `folder`; None if another program holds the lock or has removed the folder.

    The system gives the lock back when its holder dies, however it dies.
    """
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def remove_stale(final: Path) -> None:
    """Remove what killed conversions to `final` left behind."""
    prefix = _holder_prefix(final)
    for path in final.parent.iterdir():
        if not path.name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):
            descriptor = _lock(path)
            if descriptor is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)


def _check_room(final: Path, needed: int) -> None:
    free = shutil.disk_usage(final.parent).free
    if free < needed + SLACK:
        raise OutputError(
            f"{final} needs {_size(needed + SLACK)}, and {final.parent} has {_size(free)} free. "
            "Make room or choose a folder on another disk."
        )


def _output_error(error: OSError, final: Path, needed: int) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        try:
            free = f", {_size(shutil.disk_usage(final.parent).free)} free"
        except OSError:
            free = ""
        return OutputError(
            f"{final} could not be written: {reason} ({_size(needed + SLACK)} needed{free}). "
            "Nothing was left behind; make room and run the command again."
        )
    at = f" ({error.filename})" if error.filename else ""
    return OutputError(f"{final} could not be written: {reason}{at}. Nothing was left behind.")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _terminate_as_exception() -> AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP unwind the stack, where they would end the program on the spot."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    return _handling([n for n in numbers if signal.getsignal(n) is signal.SIG_DFL], _raise_exit)


def _no_interrupts() -> AbstractContextManager[None]:
    """Ignore Ctrl-C and SIGTERM while cleaning up, which ends the work as they want it ended.

    (Blocking them would not do: they may arrive on one of MLX's threads.)
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return _handling([n for n in numbers if signal.getsignal(n) is not None], signal.SIG_IGN)


@contextmanager
def _handling(numbers: list[signal.Signals], handler: Any) -> Iterator[None]:
    """Handle signals in another way, where Python allows it: on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
