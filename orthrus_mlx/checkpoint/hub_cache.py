"""The Hub's cache on this disk: what it holds, what is broken in it, and how to remove from it.

A model lies in `models--OWNER--NAME`: contents in `blobs`, and in `snapshots/COMMIT` a folder of
links to them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, CheckpointNotFoundError, OutputError
from .config import is_orthrus, read_json
from .contents import check, weight_files
from .hub_names import HubModel, parse
from .tensors import read_headers

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy, HFCacheInfo

PREFIX = "models--"
SHORT = 8  # digits of a commit that are shown


@dataclass(frozen=True)
class CachedSnapshot:
    """One revision of a model in the cache.

    Attributes:
        commit: its id.
        folder: where it lies.
        refs: branches and tags that name it.
        size: bytes that it alone, or with others, needs.
        complete: whether it can be loaded.
    """

    commit: str
    folder: Path
    refs: tuple[str, ...]
    size: int
    complete: bool


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        repo_id: its id on the Hub.
        folder: where it lies.
        size: bytes on disk; a blob that several revisions share counts once.
        last_used: seconds since 1970; 0 where that is not known.
        snapshots: its revisions, newest first.
        orthrus: whether one of them has a diffusion view.
    """

    repo_id: str
    folder: Path
    size: int
    last_used: float
    snapshots: tuple[CachedSnapshot, ...]
    orthrus: bool


def cached_models() -> list[CachedModel]:
    """Every model in the Hub's cache, by id; those that huggingface_hub calls corrupted too."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():  # nothing was ever downloaded
        return []
    models, sound = [], set()
    for repo in _scan().repos:
        if repo.repo_type != "model":
            continue
        sound.add(repo.repo_path.name)
        revisions = sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True)
        snapshots = tuple(
            CachedSnapshot(
                r.commit_hash,
                r.snapshot_path,
                tuple(sorted(r.refs)),
                r.size_on_disk,
                is_complete(r.snapshot_path),
            )
            for r in revisions
        )
        models.append(
            CachedModel(
                repo.repo_id,
                repo.repo_path,
                repo.size_on_disk,
                repo.last_accessed,
                snapshots,
                _has_view(snapshots),
            )
        )
    # What has a broken link is left out by the scan, and is what a person wants to see and remove.
    for folder in cache.glob(f"{PREFIX}*"):
        if folder.is_dir() and not folder.is_symlink() and folder.name not in sound:
            models.append(_broken_model(folder))
    return sorted(models, key=lambda model: model.repo_id.lower())


def remove(names: Sequence[str], revision: str | None = None) -> Removal:
    """Prepare to remove models, or one revision of a model, from the cache; nothing is done yet.

    Raises:
        CheckpointNotFoundError: for a name that the cache does not hold.
    """
    if revision is not None and len(names) != 1:
        raise CheckpointNotFoundError("A revision is that of one model; name just one.")
    models = {model.repo_id: model for model in cached_models()}
    parts: list[tuple[CachedModel, tuple[CachedSnapshot, ...]]] = []
    size = 0
    for name in dict.fromkeys(names):
        found = _wanted(name, revision)
        model = models.get(found.repo_id)
        if model is None:
            raise CheckpointNotFoundError(
                f"The Hub's cache holds no {found.repo_id}. `orthrus-mlx list --all` shows what it "
                "holds."
            )
        chosen = model.snapshots
        if found.revision is not None:
            chosen = (_named(model, found.revision),)
        strategy = None if chosen == model.snapshots else _strategy(model, chosen)
        size += model.size if strategy is None else strategy.expected_freed_size
        parts.append((model, chosen))
    return Removal(tuple(parts), size)


@dataclass(frozen=True)
class Removal:
    """What is to be removed.

    Attributes:
        parts: models, each with those of its revisions that go.
        size: bytes that become free.
    """

    parts: tuple[tuple[CachedModel, tuple[CachedSnapshot, ...]], ...]
    size: int

    def execute(self) -> None:
        """Remove it.

        Raises:
            OutputError: if something cannot be removed.
        """
        for model, chosen in self.parts:
            if strategy := _strategy(model, chosen):
                strategy.execute()
            gone = [model.folder] if chosen == model.snapshots else [s.folder for s in chosen]
            for folder in gone:  # what huggingface_hub leaves, as where links are broken
                shutil.rmtree(folder, ignore_errors=True)
                if folder.exists():
                    raise OutputError(f"{folder} cannot be removed. Does it belong to you?")


def _strategy(model: CachedModel, chosen: tuple[CachedSnapshot, ...]) -> DeleteCacheStrategy | None:
    """How huggingface_hub removes revisions of one model; None for a model that it calls corrupted.

    It looks for a commit in every model, and copies of a model share commits: show it but one.
    """
    cache = _scan()
    own = [repo for repo in cache.repos if repo.repo_path == model.folder]
    commits = [snapshot.commit for snapshot in chosen]
    return replace(cache, repos=frozenset(own)).delete_revisions(*commits) if own else None


def _scan() -> HFCacheInfo:
    from huggingface_hub import constants, scan_cache_dir

    return scan_cache_dir(constants.HF_HUB_CACHE)


def _wanted(name: str, revision: str | None) -> HubModel:
    found = parse(name)
    if found is None:
        raise CheckpointNotFoundError(
            f"{name} is not a Hub id of the form owner/name, and only the Hub's cache is removed "
            "from. A folder of your own is yours to delete; the demo belongs to the package."
        )
    if revision is not None and not revision.strip():
        raise CheckpointNotFoundError(
            "The revision is empty. Give a branch, a tag or a commit, or leave it out for all."
        )
    return HubModel(found.repo_id, revision or found.revision)


def _named(model: CachedModel, revision: str) -> CachedSnapshot:
    """The one snapshot that a branch, a tag or the start of a commit names."""
    for snapshot in model.snapshots:
        if revision in snapshot.refs:
            return snapshot
    fitting = [s for s in model.snapshots if s.commit.startswith(revision)]
    if len(fitting) == 1:
        return fitting[0]
    raise CheckpointNotFoundError(
        f"The Hub's cache holds {'several revisions' if fitting else 'no revision'} {revision!r} "
        f"of {model.repo_id}; there are {', '.join(s.commit[:SHORT] for s in model.snapshots)}."
    )


def hint_at(folder: Path) -> str:
    """What is broken in a snapshot, and which other one is whole; "" outside a Hub cache."""
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith(PREFIX):
        return ""
    return _hint([folder], [f for f in folder.parent.iterdir() if f != folder])


def hint_for(repo_id: str) -> str:
    """What is broken in the snapshots of a model, and which one is whole."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE, PREFIX + repo_id.replace("/", "--"), "snapshots")
    snapshots = sorted(folders.glob("*"))
    return _hint(snapshots, snapshots)


def _hint(suspects: list[Path], candidates: list[Path]) -> str:
    parts = []
    if broken := [link for folder in suspects for link in broken_links(folder)]:
        link, more = broken[0], f", as are {len(broken) - 1} more" if len(broken) > 1 else ""
        parts.append(
            f"In the Hub's cache, {link} links to {link.readlink().name}, which is gone{more}: "
            "with a network, the next start downloads it again."
        )
    if whole := [folder.name for folder in candidates if is_complete(folder)]:
        parts.append(f"A complete snapshot is cached: --revision {whole[0]} loads it.")
    return " ".join(parts)


def broken_links(folder: Path) -> list[Path]:
    """The links of a snapshot whose content is gone."""
    return sorted(p for p in folder.rglob("*") if p.is_symlink() and not p.exists())


def is_complete(folder: Path) -> bool:
    """Whether a snapshot can be loaded, as far as its config and headers tell."""
    try:
        check(folder, read_headers(weight_files(folder)))
    except (CheckpointError, OSError):
        return False
    return (folder / "tokenizer.json").exists() and not broken_links(folder)


def _broken_model(folder: Path) -> CachedModel:
    snapshots = tuple(
        CachedSnapshot(path.name, path, (), _size(path, links=True), is_complete(path))
        for path in sorted(filter(Path.is_dir, folder.glob("snapshots/*")))  # no .DS_Store
    )
    return CachedModel(
        _repo_id(folder), folder, _size(folder), 0.0, snapshots, _has_view(snapshots)
    )


def _has_view(snapshots: Sequence[CachedSnapshot]) -> bool:
    for snapshot in snapshots:
        try:
            if is_orthrus(read_json(snapshot.folder / "config.json")):
                return True
        except (CheckpointError, OSError):
            continue
    return False


def _size(folder: Path, links: bool = False) -> int:
    """Bytes of the files of a folder, and of those that its links lead to if `links`."""
    files = (p for p in folder.rglob("*") if p.is_file() and (links or not p.is_symlink()))
    return sum(p.stat().st_size for p in files)


def _repo_id(folder: Path) -> str:
    return folder.name.removeprefix(PREFIX).replace("--", "/")
