"""docs/results.md is made from the files in results/, which name nobody."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.tools.report import markdown

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "results").glob("*.json"))
MAKE: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "make_results.py"))


def test_the_page_is_that_of_the_files() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == MAKE["text"](), "stale: run `make docs`"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_result_names_no_folder(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"/(Users|home|root|private|var|tmp|Volumes)/|\\\\", text)
    assert markdown(json.loads(text)).startswith("## orthrus-mlx report")


def result() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(FILES[0].read_text(encoding="utf-8"))
    return raw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interrupted": True}, "x.json is not complete"),
        ({"sections": {}}, "x.json is not complete"),
        ({"format": 0}, "x.json has format 0"),
    ],
)
def test_what_is_not_complete_is_no_row(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(result() | change))
    with pytest.raises(MAKE["BadResultError"], match=message):
        MAKE["text"](tmp_path)


def test_a_mac_is_a_row_and_says_whether_it_is_lossless(tmp_path: Path) -> None:
    raw = result()
    raw["device"] |= {"name": "Apple M3 | <b>", "backend": "Metal"}
    raw["sections"]["verify"]["verdict"] = "NOT LOSSLESS: exact mode differs"
    (tmp_path / "mac.json").write_text(json.dumps(raw))
    page = MAKE["text"](tmp_path)
    assert "No Mac is among them" not in page
    assert r"| Apple M3 \| \<b\> | Metal |" in page
    assert "| NOT LOSSLESS |" in page
