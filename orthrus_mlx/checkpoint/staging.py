"""A folder that appears whole or not at all, whatever ends the program in between."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from ..errors import OutputError
from ..signals import ends_as_exception, no_interrupts

SLACK = 1 << 20  # bytes, for the small files beside the weights


def check_absent(final: Path) -> None:
    """Refuse a path that exists.

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

    The folder lies in a hidden one beside `final`, with a lock file that names this program as
    the only writer. Both are removed on any exception, Ctrl-C and SIGTERM included. A killed
    program leaves both behind, unlocked, and the next run removes them.

    Args:
        final: where the folder is to appear; must not exist.
        needed: bytes about to be written.

    Raises:
        OutputError: if there is no room, another program writes the same folder, or the file
            system refuses.
    """
    check_absent(final)
    hidden = final.parent / f".{final.name}.orthrus-partial"
    folder = hidden / final.name
    created: list[Path] = []
    lock: BaseFileLock | None = None
    with ends_as_exception():
        try:
            created = _make_parents(final.parent)
            _check_room(final, needed)
            created = [*_make_parents(hidden), *created]
            lock = _lock(hidden / "lock")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
            _sync(folder)
            check_absent(final)
            folder.rename(final)
            _sync(final.parent)
            created.clear()
        except Timeout as e:
            raise OutputError(
                f"Another program is writing {final}. Let it finish, or name another folder."
            ) from e
        except OSError as e:
            raise _output_error(e, final, needed) from e
        finally:
            with no_interrupts():
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    _unlock(lock)
                for parent in (hidden, *created):
                    with contextlib.suppress(OSError):
                        parent.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Create `folder` and its parents; return the new ones, innermost first."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def _lock(path: Path) -> BaseFileLock:
    """Take the lock, or raise `Timeout` at once if another program holds it."""
    lock: BaseFileLock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as e:
        if e.errno not in (errno.ENOTSUP, errno.ENOLCK):
            raise
        lock = SoftFileLock(path.with_suffix(".soft"), timeout=0)  # a file system without locks
        lock.acquire()
    return lock


def _unlock(lock: BaseFileLock) -> None:
    """Remove the lock file while the lock is held, then release the lock.

    A program that waits for the lock sees that its file is gone, and makes a new one.
    """
    for name in ("lock", "lock.soft"):
        Path(lock.lock_file).with_name(name).unlink(missing_ok=True)
    lock.release()


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
    """Have the names in a folder on disk, where its file system offers that for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:  # exFAT disks and network shares of macOS
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
