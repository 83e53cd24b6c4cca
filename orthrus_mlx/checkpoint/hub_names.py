"""What names a model on the Hub: its id, owner/name, or the address of its page."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import CheckpointNotFoundError

EXAMPLE_HUB_ID = "chiennv/Orthrus-Qwen3-1.7B"


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub, as it was asked for: its id, and a branch, tag or commit."""

    repo_id: str
    revision: str | None = None

    @property
    def url(self) -> str:
        """The address of its page."""
        return f"https://huggingface.co/{self.repo_id}"


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub repository id, owner/name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.startswith((".", "~"))


def parse(name: str) -> HubModel | None:
    """The model that a Hub id or the address of a Hub page names; None for any other text.

    Raises:
        CheckpointNotFoundError: for an address that names no model.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    name = name.strip()
    host = name.partition("/")[0].lower()
    if "://" not in name and host not in constants.HF_URL_HOSTS:
        return HubModel(name) if is_hub_id(name) else None
    try:
        found = parse_hf_uri(name.removesuffix(".git"), constants.ENDPOINT)
    except HfUriError as e:
        raise CheckpointNotFoundError(
            f"{name} is not the address of a model on the Hub. Give its id, owner/name, such as "
            f"{EXAMPLE_HUB_ID}, or the address of its page."
        ) from e
    if found.type != "model":
        raise CheckpointNotFoundError(f"{name} is a {found.type} on the Hub, not a model.")
    return HubModel(found.id, found.revision)
