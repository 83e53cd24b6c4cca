"""What the command line sees is the same on every machine: no terminal, and no history of lines."""

import os
from pathlib import Path

import pytest

# Read by typer when it is imported.
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", str(tmp_path / "state" / "history"))
