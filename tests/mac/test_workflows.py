"""What CI runs exists, and runs as well by hand; versions agree."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = [
    pytest.param(job, id=f"{file.stem}-{name}")
    for file in WORKFLOWS
    for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items()
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("job", JOBS)
def test_each_step_is_a_make_target_or_a_script(job: dict[str, Any]) -> None:
    for step in job["steps"]:
        if "run" not in step:
            assert "uses" in step
            continue
        words = step["run"].split()
        if words[0] == "make":
            assert set(words[1:]) <= TARGETS
        else:
            assert words[0] in ("bash", "python")
            assert (ROOT / words[1]).is_file()
        assert "${{" not in step["run"], "give it by env: what a tag is called runs no command"


@pytest.mark.parametrize("job", JOBS)
def test_every_job_ends_and_leaves_no_token(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 180
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_every_name_of_the_version_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = runpy.run_path(str(ROOT / ".github" / "scripts" / "check_release.py"))["problems"]
    assert problems(None) == []
    assert "The tag is v0.0.0" in problems("v0.0.0")[-1]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("oldest", "mlx[cpu]==0.32.4; sys_platform == 'linux'"),
        ("newest", "mlx[cpu]>=0.32.4,<0.33; sys_platform == 'linux'"),
        ("beyond", "mlx[cpu]; sys_platform == 'linux'"),
    ],
)
def test_bounds_that_are_asked_for(which: str, expected: str) -> None:
    script = runpy.run_path(str(ROOT / ".github" / "scripts" / "versions.py"))
    given = "mlx[cpu]>=0.32.4,<0.33; sys_platform == 'linux'"
    assert script["requirement"](which, given) == expected


def test_the_oldest_macos_that_wheels_run_on() -> None:
    script = runpy.run_path(str(ROOT / ".github" / "scripts" / "mac_wheels.py"))
    wheels = [
        "mlx-1-cp312-cp312-macosx_14_0_arm64.whl",
        "x-1-cp39-abi3-macosx_10_12_x86_64.macosx_11_0_arm64.macosx_10_12_universal2.whl",
        "y-1-py3-none-any.whl",
    ]
    assert script["oldest_macos"](wheels) == "14.0"
    assert script["oldest_macos"](wheels[1:]) == "10.12"
    assert script["oldest_macos"](wheels[2:]) == "11.0"


def test_the_picture_of_a_session_loads_nothing() -> None:
    picture = (ROOT / "docs" / "session.svg").read_text(encoding="utf-8")
    assert "LOSSLESS" in picture
    links = set(re.findall(r"https?://[^\s\"')<]+", picture))
    assert links <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert "url(http" not in picture
