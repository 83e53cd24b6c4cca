"""File names as people give them."""

from pathlib import Path

from .errors import OrthrusError


def expanded(name: str | Path, error: type[OrthrusError]) -> Path:
    """Put a home folder in the place of `~`; a user that does not exist raises `error`."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise error(
            f"{name} cannot be found: no home folder is known for {Path(name).parts[0]}. "
            "Write the folder's full name."
        ) from None
