"""What the command line sees is the same on every machine: no colours, 80 columns, no model."""

import os
from pathlib import Path

import pytest

# Read by typer when it is imported.
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "ORTHRUS_MLX_MODEL", "MLX_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", str(tmp_path / "state" / "history"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
