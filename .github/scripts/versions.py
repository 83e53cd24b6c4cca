"""Run the tests with other releases of mlx and mlx-lm, and say what was found.

    python .github/scripts/versions.py oldest|newest|beyond [pytest's arguments]

oldest: the lower bounds in pyproject.toml. newest: the newest releases within the bounds. beyond:
the newest releases there are, pre-releases too, whatever the bounds say; it shows what the next
bounds will break. The environment is made anew in build/versions/WHICH.

Exit code: that of the tests, or 1 if the releases cannot be installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mlx", "mlx-lm")


def requirement(which: str, given: str) -> str:
    """A dependency such as `mlx[cpu]>=1.2,<2; marker`, with the bound that was asked for."""
    wanted, mark, marker = given.partition(";")
    name, lowest = re.fullmatch(r"([^<>=]+)>=([^,]+),.*", wanted.strip()).groups()  # type: ignore[union-attr]
    bound = {"oldest": f"=={lowest}", "newest": wanted[len(name) :], "beyond": ""}[which]
    return name + bound + mark + marker


def main() -> int:
    """Install, run, report."""
    which, *arguments = sys.argv[1:] or ["?"]
    if which not in ("oldest", "newest", "beyond"):
        print(__doc__)
        return 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    mine = [d for d in project["dependencies"] if re.match(rf"({'|'.join(PACKAGES)})\b[\[>]", d)]
    folder = ROOT / "build" / "versions" / which
    venv.EnvBuilder(clear=True, with_pip=True).create(folder)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, "pip"], check=True)
    subprocess.run([*pip, "-e", f"{ROOT}[test]"], check=True)
    pre = ["--pre"] if which == "beyond" else []
    # In a call of its own: what the bounds forbid is what is asked for, and pip says so.
    if subprocess.run([*pip, *pre, *(requirement(which, d) for d in mine)]).returncode:
        print(f"{which}: these releases cannot be installed.")
        return 1
    ask = f"from importlib.metadata import version; print(*map(version, {PACKAGES}))"
    found = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    names = ", ".join(map(" ".join, zip(PACKAGES, found.stdout.split(), strict=True)))
    print(f"{which}: {names}", flush=True)
    options = arguments or ["-n", "2", "--dist", "worksteal"]
    code = subprocess.run([python, "-m", "pytest", *options], cwd=ROOT).returncode
    print(f"{which}: {names}: " + ("the tests pass" if code == 0 else f"TESTS FAIL ({code})"))
    return code


if __name__ == "__main__":
    sys.exit(main())
