"""How much is tested, and where the test data is: fixtures find it, or skip saying what is missing.

By default tests marked `full` are left out, and others take fewer prompts and examples (`few`).
`pytest --full` runs everything.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests import amount

# Matrices this small gain nothing from more threads, and pytest-xdist has a worker for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is tested sees the same terminal and settings everywhere, whatever those of the caller are.
os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80"}
OF_A_PERSON = ("MODEL", "TUNE", "ALONE", "API_KEY", "HOST")
for name in ("FORCE_COLOR", "NO_COLOR", "MLX_RANK", *(f"ORTHRUS_MLX_{n}" for n in OF_A_PERSON)):
    os.environ.pop(name, None)

# The same commit always gets the same examples; `make fuzz` looks for new ones. Nothing here is
# about time, and test machines are busy.
settings.register_profile(
    "few",
    max_examples=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("full", settings.get_profile("few"), max_examples=200)
settings.register_profile("fuzz", settings.get_profile("full"), derandomize=False, print_blob=True)

# Of the 48 golden prompts: one of each kind but prose, two of the first, and all of those (prose)
# in which bf16 decides a near-tie otherwise than float32.
FEW_GOLDEN = (0, 4, 11, 15, 19, 28, 31, 37, 42, 44, 45, 47)

Golden = list[dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run everything: all prompts, long runs, the recipes"
    )


def pytest_configure(config: pytest.Config) -> None:
    amount.FULL = config.getoption("--full")
    settings.load_profile("full" if amount.FULL else "few")  # --hypothesis-profile comes after


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if amount.FULL:
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of this run, the same for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(shared_tmp: Path) -> Iterator[None]:
    """Keep what is measured on this device out of the user's own cache, and measure it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTHRUS_MLX_CACHE", str(shared_tmp / "measured"))
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
def measured_tiny16(tiny16_dir: Path, shared_tmp: Path, own_cache: None) -> Path:
    """`tiny16_dir`, with its costs in the shared cache: for tests that start the program."""
    from orthrus_mlx import load, mlx_generate

    with FileLock(shared_tmp / "measured.lock"):
        done = shared_tmp / "measured.done"
        if not done.exists():
            list(mlx_generate(load(tiny16_dir)[0], [5, 6, 7], (), 4, mode="auto"))
            done.touch()
    return tiny16_dir


@pytest.fixture(scope="session")
def tiny16_golden(reference_dir: Path) -> Golden:
    """48 prompts and tiny16's greedy ids in float32; keys kind, question, prompt, tokens."""
    path = reference_dir / "tiny16_golden.json"
    if not path.is_file():
        pytest.skip(f"no golden ids at {path}")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def few_golden(tiny16_golden: Golden) -> Golden:
    """The golden prompts that are decoded by default: 12 of the 48, all of them with `--full`."""
    return tiny16_golden if amount.FULL else [tiny16_golden[n] for n in FEW_GOLDEN]
