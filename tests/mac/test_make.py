"""`make demo` with a Python that cannot do: it says so, and leaves no .venv that would keep it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("stands_in", "said"),
    [
        ("sys.version_info = (3, 9, 6)", "3.11 or newer is needed"),
        ("sys.platform = 'darwin'; platform.machine = lambda: 'x86_64'", "for Apple silicon only"),
        ("sys.platform = 'darwin'; platform.machine = lambda: 'arm64'", "-m venv"),
    ],
)
def test_a_python_that_cannot_do(stands_in: str, said: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "python"
    run = f"import platform, sys; {stands_in}; exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 1\nexec {sys.executable} -c "{run}" "$2"\n'
    )
    python.chmod(0o755)
    ended = subprocess.run(
        ["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode != 0 and said in ended.stdout + ended.stderr
    assert not (tmp_path / ".venv").exists()
