"""What the README and its neighbours name is there: commands, flags, make targets, files."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from orthrus_mlx.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", ".github/ISSUE_TEMPLATE/report.yml")
TEXTS = [pytest.param((ROOT / page).read_text(encoding="utf-8"), id=page) for page in PAGES]


def code(text: str) -> list[str]:
    """What stands between backticks, and the lines of code blocks, without their comments."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [*re.findall(r"`([^`]+)`", rest), *lines]


@pytest.mark.parametrize("text", TEXTS)
def test_every_command_and_flag_is_there(text: str) -> None:
    group: Any = get_command(app)
    known = {flag for param in group.params for flag in param.opts}
    for line in code(text):
        for name, given in re.findall(r"orthrus-mlx ([a-z][a-z-]*|--\w+)([^|]*)", line):
            if name.startswith("--"):
                assert name in known | {"--help"}
                continue
            assert name in group.commands, line
            params = group.commands[name].params
            flags = {flag for param in params for flag in (*param.opts, *param.secondary_opts)}
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", given)) <= flags | {"--help"}, line


@pytest.mark.parametrize("text", TEXTS)
def test_every_make_target_and_file_is_there(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:`|^)(?:\w+=\w+ )?make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target
    for line in code(text):
        for name in re.findall(r"(?:^|\s)((?:benchmarks|docs|recipes|\.github)/[\w./-]*\w)", line):
            assert (ROOT / name).exists(), name
        for name in re.findall(r"^python -m (recipes[\w.]*)", line):
            assert (ROOT / f"{name.replace('.', '/')}.py").exists(), name


def test_the_drawing_of_the_house_names_each_room_once() -> None:
    drawing = (ROOT / "README.md").read_text().partition("## How it works")[2].split("```")[1]
    drawn = re.findall(r"(?<![\w/.])(\.?[a-z_]+(?:/|\.py))(?![\w/])", drawing)
    top = ("orthrus_mlx", "convert", "cli", "tests", "docs", "benchmarks", "recipes", "results")
    inside = [path for path in (ROOT / "orthrus_mlx").iterdir() if path.name[0] not in "._"]
    rooms = [path.name for path in inside if path.suffix == ".py"]
    rooms += [f"{path.name}/" for path in inside if path.is_dir()]
    assert sorted(drawn) == sorted(rooms + [f"{name}/" for name in (*top, ".github")])
