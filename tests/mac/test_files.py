"""What macOS leaves beside files: Finder's .DS_Store, AppleDouble `._NAME`, other disks' limits."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS

import orthrus_mlx
from orthrus_mlx import CheckpointError, load
from orthrus_mlx.checkpoint import hub_cache, staging
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.cli import last_chat, reader
from orthrus_mlx.convert import convert
from orthrus_mlx.errors import DataError, OutputError
from orthrus_mlx.files import APPLE_DOUBLE
from orthrus_mlx.tools.prompts import from_file

DEMO = Path(orthrus_mlx.__file__).parent / "demo"
ROOT = Path(__file__).parents[2]
LEFT_BY_MACOS = APPLE_DOUBLE + b"\x00\x02\x00\x00Mac OS X        \x00\xb5\xff" * 4


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """The demo on a disk that cannot hold what macOS keeps of files, opened in Finder."""
    folder = tmp_path / "My Disk" / "demo"
    shutil.copytree(DEMO, folder)
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(LEFT_BY_MACOS)
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    return folder


def test_a_littered_checkpoint_is_as_a_clean_one(littered: Path, tmp_path: Path) -> None:
    model, tokenizer = load(littered)
    assert tokenizer.has_chat_template
    assert describe(littered).parameters == describe(DEMO).parameters
    convert(littered, tmp_path / "mlx", quantize=True, q_group_size=32)
    assert [path.name for path in (tmp_path / "mlx").iterdir() if path.name[0] == "."] == []
    named = last_chat._weights(model)
    (littered / "._model.safetensors").write_bytes(LEFT_BY_MACOS * 2)
    assert last_chat._weights(model) == named


def test_a_file_of_macos_for_a_text_is_named(littered: Path, tmp_path: Path) -> None:
    templates = littered / "additional_chat_templates"
    templates.mkdir()
    (templates / "._tools.jinja").write_bytes(LEFT_BY_MACOS)
    with pytest.raises(CheckpointError, match=r"_tools\.jinja is no text: macOS put it.*dot_clean"):
        load(littered)
    prompts = tmp_path / "._questions.txt"
    prompts.write_bytes(LEFT_BY_MACOS)
    with pytest.raises(DataError, match="is no text: macOS put it"):
        from_file(prompts)


def test_finder_has_looked_into_the_cache_of_the_hub(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--owner--name" / "snapshots"
    (snapshots / "abc").mkdir(parents=True)
    (snapshots / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    model = hub_cache._broken_model(snapshots.parent)
    assert [snapshot.folder.name for snapshot in model.snapshots] == ["abc"]


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_disk_that_cannot_sync_folders(
    number: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    final = tmp_path / "out"

    def write() -> None:
        with staging.staged_folder(final, 0) as folder:
            (folder / "x").touch()

    if passes:
        write()
    else:
        with pytest.raises(OutputError, match="could not be written"):
            write()
    assert final.exists() == passes


def test_lines_typed_are_kept_in_the_library_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORTHRUS_MLX_HISTORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(platformdirs, "user_state_path", lambda name: MacOS(name).user_state_path)
    path = reader.history_path()
    assert path == tmp_path / "Library" / "Application Support" / "orthrus-mlx" / "chat_history"
    reader._open_history()
    assert path.stat().st_mode & 0o077 == 0


def test_no_two_files_differ_by_case_alone() -> None:
    names: dict[str, Path] = {}
    for folder in ("orthrus_mlx", "cli", "convert", "tests", "docs", "benchmarks", "recipes"):
        for path in (ROOT / folder).rglob("*"):
            if "__pycache__" not in path.parts:
                other = names.setdefault(str(path.relative_to(ROOT)).casefold(), path)
                assert other == path
