"""Where the test data is: fixtures that find it, or skip saying what is missing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same commit always gets the same examples; `make fuzz` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured on this device out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of reference checkpoints: $ORTHRUS_REFERENCE, or beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("ORTHRUS_REFERENCE") or beside)
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set ORTHRUS_REFERENCE to the folder")
    return folder


@pytest.fixture(scope="session")
def tiny16_dir(reference_dir: Path) -> Path:
    """A small trained checkpoint in the public Hugging Face layout (block 16, bf16)."""
    folder = reference_dir / "tiny16"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny16_golden(reference_dir: Path) -> list[dict[str, Any]]:
    """48 prompts and tiny16's greedy ids in float32; keys kind, question, prompt, tokens."""
    path = reference_dir / "tiny16_golden.json"
    if not path.is_file():
        pytest.skip(f"no golden ids at {path}")
    return json.loads(path.read_text())
