"""The one door for files from outside: regular files of a known size, as UTF-8 text.

A pipe would be waited for without end, a device may have no end, and a link can point anywhere.
Every file that this package reads is opened here, or checked here before a library opens it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import OrthrusError, OutputError, UnsafeCheckpointError

MIB = 1 << 20
# The most bytes of each kind: far above real files, far below what exhausts memory once parsed.
CHECKPOINT_BYTES = 8 * MIB  # a text file of a checkpoint, unless named here:
CHECKPOINT_FILE_BYTES = {
    "tokenizer.json": 48 * MIB,
    "vocab.json": 48 * MIB,
    "merges.txt": 48 * MIB,
    "tokenizer.model": 48 * MIB,
    "model.safetensors.index.json": 32 * MIB,
    "chat_template.jinja": MIB,
}
HEADER_BYTES = 16 * MIB  # of a safetensors file: some 100,000 tensors
MEASURED_BYTES = MIB
OPTIONS_BYTES = MIB
CONVERSATION_BYTES = 64 * MIB
PREDICTION_BYTES = 4 * MIB  # more than any context holds
LINE_BYTES = 64 * MIB  # of prompts or training data, whose files may be of any size

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # begins `._NAME`: what macOS keeps where a disk cannot


def open_file(
    path: Path, error: type[OrthrusError], most: int | None = None, folder: Path | None = None
) -> BufferedReader:
    """Open a regular file to read its bytes.

    Args:
        path: the file.
        error: what to raise.
        most: the most bytes that it may have.
        folder: the checkpoint folder that it must lie in once links are followed.

    Raises:
        error: for what is absent, no regular file, too large or unreadable.
        UnsafeCheckpointError: for a link that leaves `folder`.
    """
    if folder is not None:
        check_inside(path, folder)
    try:
        # Without O_NONBLOCK, to open a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as e:  # ValueError: a null character in the name
        raise error(f"{path} cannot be read: {reason(e)}.") from e
    file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if file is None:
        os.close(descriptor)
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise error(f"{path} cannot be read: it is {kind}, not a regular file.")
    size = os.fstat(descriptor).st_size
    if most is not None and size > most:
        file.close()
        raise error(f"{path} has {size} bytes; files of its kind have {most} at most.")
    return file


def check_tensor_file(path: Path, error: type[OrthrusError]) -> None:
    """Refuse a safetensors file that is no regular one, or whose header would fill the memory.

    Raises:
        error: as `open_file`. Other faults are for the library to find.
    """
    with open_file(path, error) as file:
        start = file.read(8)
    size = int.from_bytes(start, "little")
    if HEADER_BYTES < size <= path.stat().st_size:  # beyond the file, nothing is read of it
        raise error(
            f"{path} is not a whole safetensors file (a header of {size} bytes, of which there may "
            f"be {HEADER_BYTES}): download it again."
        )


def open_part(path: Path, error: type[OrthrusError], folder: Path | None = None) -> BufferedReader:
    """Open a text file of a checkpoint, which is `folder` where the file does not lie at its top.

    Raises:
        as `open_file`.
    """
    return open_file(path, error, part_bytes(path), folder or path.parent)


def part_bytes(path: Path) -> int:
    """The most bytes that this text file of a checkpoint may have."""
    return CHECKPOINT_FILE_BYTES.get(path.name, CHECKPOINT_BYTES)


def read_bytes(
    path: Path, error: type[OrthrusError], most: int, folder: Path | None = None
) -> bytes:
    """All bytes of a regular file; the arguments and errors are those of `open_file`."""
    with open_file(path, error, most, folder) as file:
        try:
            content = file.read(most + 1)  # a file may grow, and some of /proc tell no size
        except OSError as e:
            raise error(f"{path} cannot be read: {reason(e)}.") from e
    if len(content) > most:
        raise error(f"{path} has more than {most} bytes, the most for files of its kind.")
    return content


def read_text(path: Path, error: type[OrthrusError], most: int, folder: Path | None = None) -> str:
    """A regular file as text, without its byte order mark; as `read_bytes`.

    Raises:
        error: also for a file that is not UTF-8.
    """
    return decoded(read_bytes(path, error, most, folder), str(path), error)


def read_json(path: Path, error: type[OrthrusError], most: int, folder: Path | None = None) -> Any:
    """The value in a JSON file; as `read_text`.

    Raises:
        error: also for a file that is not JSON.
    """
    return parse_json(read_text(path, error, most, folder), str(path), error)


def read_lines(path: Path, error: type[OrthrusError]) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a file of any size, whose lines have `LINE_BYTES` at most.

    Only line feeds end a line: Unicode has other separators, which may stand in a JSON string.
    """
    with open_file(path, error) as file:
        for number in itertools.count(1):
            try:
                line = file.readline(LINE_BYTES + 1)
            except OSError as e:
                raise error(f"{path} cannot be read: {reason(e)}.") from e
            if not line:
                return
            if len(line) > LINE_BYTES:
                raise error(f"{path}:{number}: a line of more than {LINE_BYTES} bytes.")
            yield number, decoded(line, f"{path}:{number}", error).rstrip("\r\n")


def decoded(content: bytes, where: str, error: type[OrthrusError]) -> str:
    """Bytes as UTF-8 text, without a byte order mark.

    Raises:
        error: naming the encoding, where its mark tells, or the first byte at fault.
    """
    if content.startswith(UTF16_MARKS):
        raise error(f"{where} is UTF-16 text; save it as UTF-8.")
    if content.startswith(APPLE_DOUBLE):
        raise error(
            f"{where} is no text: macOS put it beside another file, for what that disk cannot "
            "store. Remove it, or run `dot_clean` on its folder."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise error(
            f"{where} is not UTF-8 text: byte {content[e.start]:#04x} at {e.start}. Save it as "
            "UTF-8."
        ) from e


def parse_json(text: str, where: str, error: type[OrthrusError]) -> Any:
    """The value of a JSON text; half characters, which only \\u escapes can write, are replaced.

    Raises:
        error: saying what is no JSON.
    """
    try:
        value = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # maybe half of a pair: no text has that
            value = json.loads(whole_text(json.dumps(value, ensure_ascii=False)))
    except RecursionError:
        raise error(f"{where} cannot be read as JSON: brackets within brackets.") from None
    except ValueError as e:
        raise error(f"{where} cannot be read as JSON: {e}.") from e
    return value


def whole_text(text: str) -> str:
    """Text whose half characters (lone surrogates) are replaced, so that it can be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leaves its checkpoint.

    Args:
        path: a file of the checkpoint.
        folder: the checkpoint; where that is a snapshot in the Hub's cache, links may lead to the
            other files that the cache holds of the same repository.

    Raises:
        UnsafeCheckpointError: naming the link and its target.
    """
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: links in a circle
        raise UnsafeCheckpointError(f"{path} is a link that leads nowhere: {reason(e)}.") from e
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    if not target.is_relative_to(home):
        raise UnsafeCheckpointError(
            f"{path} is a link to {target}, outside of {home}. Put the file itself there."
        )


def check_parent(path: Path) -> None:
    """Refuse a file to write whose folder is not there, before anything is computed for it."""
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} to write {path.name} into.")


def reason(error: BaseException) -> str:
    """What went wrong, without the file's name, which the message has already."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def expanded(name: str | Path, error: type[OrthrusError]) -> Path:
    """Put a home folder in the place of `~`; a user that does not exist raises `error`."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise error(
            f"{name} cannot be found: no home folder is known for {Path(name).parts[0]}. "
            "Write the folder's full name."
        ) from None
