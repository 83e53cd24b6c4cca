"""Upload a converted folder to the Hugging Face Hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import OutputError, brief


def upload(folder: Path, repo_id: str) -> None:
    """Create `repo_id` if it does not exist, and upload `folder` to it.

    Raises:
        OutputError: if the Hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo_id=repo_id, repo_type="model", exist_ok=True)
        api.upload_folder(
            folder_path=str(folder),
            repo_id=repo_id,
            repo_type="model",
            commit_message="Upload weights converted with orthrus-mlx",
        )
    except Exception as e:  # the HTTP client's own errors
        command = f"hf upload {repo_id} {shlex.quote(str(folder))}"
        raise OutputError(
            f"The conversion is complete in {folder}, but uploading it to {repo_id} failed: "
            f"{brief(e)}. Log in with `hf auth login`, then run `{command}`."
        ) from e
