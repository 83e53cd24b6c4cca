"""The Hugging Face Hub: fetch a checkpoint's snapshot, or only what describes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointNotFoundError, IncompleteCheckpointError, brief
from .hub_cache import hint_for
from .hub_names import EXAMPLE_HUB_ID

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# The model card and the licence, so that a converted copy carries the same terms.
TERMS_FILES = ("README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")
# Everything that a model and its tokenizer can need, and nothing that could hold code.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "orthrus_diff.safetensors",
    *TOKENIZER_FILES,
    *TERMS_FILES,
)
# Enough to describe a checkpoint: kilobytes.
DESCRIPTION_PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Description:
    """A repository on the Hub: its small files in `folder`, and the names of all its files."""

    folder: Path
    names: frozenset[str]
    repo_id: str
    commit: str


def download(repo_id: str, revision: str | None = None) -> Path:
    """The folder of `repo_id`'s snapshot; downloads the files needed that are not cached.

    Without a network, the cached files are used.

    Raises:
        CheckpointNotFoundError: unknown id or revision, gated, or no network and nothing cached.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(repo_id, revision):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS)))


def cached(repo_id: str, revision: str | None = None) -> Path | None:
    """The cached snapshot of `repo_id`, complete or not; None if none. Does not ask the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=list(PATTERNS), local_files_only=True
        )
        return Path(folder)
    except LocalEntryNotFoundError:
        return None


def describe(repo_id: str, revision: str | None = None) -> Description:
    """Fetch the small files of `repo_id` and the list of the others; no weights.

    Raises:
        CheckpointNotFoundError: unknown id or revision, gated, or no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(repo_id, revision):
        repo = HfApi().model_info(repo_id, revision=revision)
        names = frozenset(file.rfilename for file in repo.siblings or ())
        folder = snapshot_download(
            repo_id, revision=repo.sha, allow_patterns=list(DESCRIPTION_PATTERNS)
        )
        return Description(Path(folder), names, repo_id, repo.sha or "main")


def file_header(repo: Description, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of one safetensors file on the Hub, from its header.

    Raises:
        IncompleteCheckpointError: for a file that is not safetensors.
        CheckpointNotFoundError: no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    with _hub_errors(repo.repo_id, repo.commit):
        try:
            header = HfApi().parse_safetensors_file_metadata(
                repo.repo_id, name, revision=repo.commit
            )
        except SafetensorsParsingError as e:
            raise IncompleteCheckpointError(
                f"{name} of {repo.repo_id} is not a safetensors file: {brief(e)}"
            ) from e
    return {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in header.tensors.items()}


@contextmanager
def _hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors as hub

    try:
        yield
    except IncompleteCheckpointError:
        raise
    except hub.GatedRepoError as e:
        raise CheckpointNotFoundError(
            f"{repo_id} is gated: accept its terms on its Hub page, then run `hf auth login`."
        ) from e
    except hub.RevisionNotFoundError as e:
        raise CheckpointNotFoundError(f"{repo_id} has no revision {revision!r} on the Hub.") from e
    except hub.RepositoryNotFoundError as e:
        raise CheckpointNotFoundError(
            f"The Hub knows no model {repo_id!r} (or it is private: `hf auth login`). Check the "
            f"spelling, or give a folder. A public one is {EXAMPLE_HUB_ID}."
        ) from e
    except Exception as e:  # the HTTP client's own errors
        raise CheckpointNotFoundError(
            f"{repo_id} is not (wholly) in the local cache and cannot be downloaded: {brief(e)}. "
            "Check the network and the free disk space, then run the same command again; files "
            f"that are complete are not fetched twice. {hint_for(repo_id)}".rstrip()
        ) from e
