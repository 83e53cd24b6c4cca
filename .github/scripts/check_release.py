"""Check before a release that the tag, the package and the changelog name one version.

    python .github/scripts/check_release.py [TAG]

Without TAG only the files are compared.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def problems(tag: str | None) -> list[str]:
    """What does not agree, a line each."""

    def read(name: str) -> str:
        return (ROOT / name).read_text(encoding="utf-8")

    number = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    places = {
        "orthrus_mlx/_version.py": rf'^__version__ = "{re.escape(number)}"$',
        "CITATION.cff": rf"^version: {re.escape(number)}$",
    }
    if tag is not None:
        places["CHANGELOG.md"] = rf"^## \[{re.escape(number)}\] - \d{{4}}-\d\d-\d\d$"
    found = [
        f"{name} does not have version {number}, as pyproject.toml does."
        for name, pattern in places.items()
        if not re.search(pattern, read(name), re.MULTILINE)
    ]
    if tag is not None and tag != f"v{number}":
        found.append(f"The tag is {tag}, and the version {number}.")
    return found


if __name__ == "__main__":
    found = problems(sys.argv[1] if len(sys.argv) > 1 else None)
    print("\n".join(found) or "All name one version.")
    sys.exit(bool(found))
