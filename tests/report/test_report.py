"""`orthrus-mlx report`: sections that fail or stop early, Markdown, the JSON file, no paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import orthrus_mlx
from orthrus_mlx.checkpoint import info as checkpoint_info
from orthrus_mlx.cli.app import app
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.device import probe as probing
from orthrus_mlx.model import Model
from orthrus_mlx.tools import report as logic
from orthrus_mlx.tools import report_sections
from orthrus_mlx.tools.markdown import cell, code, table
from orthrus_mlx.tools.report_sections import Section, Subject
from tests.lossless import row_kernels
from tests.verify.test_command import Letters

DEMO = Path(orthrus_mlx.__file__).parent / "demo"


def section(name: str, found: Any) -> Section:
    """A section that finds this, or raises it."""

    def measure(subject: Subject, progress: Any) -> Any:
        progress(1, 1)
        if isinstance(found, BaseException):
            raise found
        return found

    return Section(name, f"About {name}", measure, lambda found: [f"it is {found['x']}"])


def measured(*sections: Section) -> logic.Report:
    info = checkpoint_info.describe(DEMO)
    return logic.measure(None, None, info, "demo", sections=sections)


VERIFIED = section("verify", {"passed": True, "verdict": "LOSSLESS: all.", "x": 1})


def test_a_section_is_its_measurement_and_its_lines() -> None:
    sections = (VERIFIED, section("tune", {"x": 7}), section("nothing", None))
    report = measured(*sections)
    assert report.passed
    assert report.sections["tune"] == {"x": 7}
    assert "nothing" not in report.sections
    lines = logic.markdown(report.to_dict(), sections).splitlines()
    assert lines[2] == "**LOSSLESS: all.**"
    assert re.search(r"^\| Measured \| .*, load \d+\.\d of \d+ cores \|$", "\n".join(lines), re.M)
    assert lines[-3:] == ["### About tune", "", "it is 7"]


def test_a_section_that_fails_is_told_and_the_others_go_on() -> None:
    error = RuntimeError(f"{DEMO}/model.safetensors and {Path.home()}/x: [metal] `no` kernel\nmore")
    sections = (section("probe", error), VERIFIED)
    report = measured(*sections)
    assert not report.passed
    text = logic.markdown(report.to_dict(), sections)
    assert (
        "**Failed:** `RuntimeError: MODEL/model.safetensors and ~/x: [metal] 'no' kernel`" in text
    )
    assert "**LOSSLESS: all.**" in text
    assert str(Path.home()) not in text


def test_a_folder_is_not_the_start_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the clone is /tmp/n and the home /tmp/nora."""
    here, home, model = (tmp_path / name for name in ("n", "nora", "n.ora"))
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    text = f"{here}/a, {home}/b; {model}/c {home}: {here}. {home}"
    assert logic.without_paths(text, model) == "./a, ~/b; MODEL/c ~: .. ~"


def test_ctrl_c_keeps_what_is_known() -> None:
    sections = (section("probe", {"x": 1}), section("verify", KeyboardInterrupt()), VERIFIED)
    report = measured(*sections)
    assert report.interrupted
    assert list(report.sections) == ["probe"]
    text = logic.markdown(report.to_dict(), sections)
    assert "NOT VERIFIED: the report was interrupted before." in text
    assert "it is 1" in text


def test_a_section_that_was_interrupted_is_the_last_one() -> None:
    half = {"passed": False, "verdict": "LOSSLESS SO FAR: ...", "interrupted": True, "x": 1}
    report = measured(section("verify", half), section("bench", {"x": 2}))
    assert report.interrupted
    assert list(report.sections) == ["verify"]
    assert not report.passed


def test_the_name_of_a_model_is_public(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    assert logic.public_name(str(tmp_path / "my model")) == "my model"
    assert logic.public_name(str(tmp_path / "my model" / ".." / "my model")) == "my model"
    assert logic.public_name("demo") == "demo"
    assert logic.public_name("owner/name") == "owner/name"


def test_nothing_ends_a_cell_or_begins_a_tag() -> None:
    assert cell("a|b\n<img src=x> [x](y) `z`") == r"a\|b \<img src=x\> \[x\](y) \`z\`"
    assert code("a `b`\n| c") == "`a 'b' | c`"
    assert table(("A", "B"), [("x", 1)]) == ["| A | B |", "| --- | ---: |", "| x | 1 |"]


def test_costs_show_the_cycles_that_were_timed() -> None:
    found = {
        "ar_step_ms": 8.0,
        "verify": [[1, 1.0], [4, 4.5], [8, 2.0]],
        "draft": [[4, 0.0], [8, 1.25]],  # a cycle less a verify pass, which noise can make zero
        "fused": [[1, 3, 1.9]],
    }
    shown = "\n".join(report_sections.show_costs(found))
    assert "| 1 | 1.00 |  |" in shown
    assert "| 4 | 4.50 | 4.50 |" in shown
    assert "| 8 | 2.00 | 3.25 |" in shown
    assert "| 1 + 3 | 1.90 |" in shown


def test_figures_have_four_digits() -> None:
    assert logic.rounded({1: (1.23456789, 7, None, True)}) == {"1": [1.235, 7, None, True]}


# ------------------------------------------------------------------------------- the command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A tiny model whose probe and costs are known."""
    model = row_kernels.build(Model)
    probe = probing.probe(model, contexts=(24,), steps=())
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "measured"))
    monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: (model, Letters()))
    monkeypatch.setattr(report_sections, "cached_probe", lambda *_, **__: probe)
    monkeypatch.setattr(report_sections, "device_costs", lambda *_, **__: NOMINAL)
    monkeypatch.setattr("orthrus_mlx.generate.device_costs", lambda *_, **__: NOMINAL)
    probing.store_probe(model, probe)
    return model


def invoke(*args: str) -> Any:
    return CliRunner().invoke(app, ["report", "--num-prompts", "2", "-m", "8", *args])


def test_what_is_posted(quick: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    result = invoke("--json", str(file))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "## orthrus-mlx report: `demo`"
    assert lines[2].startswith("**LOSSLESS: exact mode wrote the tokens of plain decoding")
    heads = [line for line in lines if line.startswith("### ")]
    always = [section for section in report_sections.SECTIONS if section.name != "tune"]
    assert heads == [f"### {section.title}" for section in always]  # nothing was tuned here
    assert "\x1b" not in result.stdout
    assert any(line.startswith("| exact | T=0.8 | one-pass | 2 of 2 |") for line in lines)
    assert any(line.startswith("| 8 | 1.50 | 3.00 |") for line in lines)
    assert any(line.startswith("| code | ") for line in lines)
    raw = json.loads(file.read_text())
    assert raw["passed"]
    assert raw["sections"].keys() == {section.name for section in always}
    assert logic.markdown(raw) == result.stdout
    assert raw["versions"]["orthrus-mlx"] == orthrus_mlx.__version__
    assert "Please post it" in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    for text in (result.stdout, file.read_text()):
        assert f"{Path.home()}/" not in text
        assert str(tmp_path) not in text


def test_a_device_without_exact_numerics_is_no_success(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = report_sections.cached_probe(quick).cost_ms
    alone = probing.Probe(((1,),), (), 0.5, costs)
    monkeypatch.setattr(report_sections, "cached_probe", lambda *_, **__: alone)
    result = invoke()
    assert result.exit_code == 1
    assert "NO EXACT MODE HERE" in result.stdout
    assert "No exact numerics here." in result.stdout


def test_ctrl_c_in_the_benchmark(
    quick: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from orthrus_mlx.tools import bench

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "time_ours", interrupted)
    file = tmp_path / "half.json"
    result = invoke("--json", str(file))
    assert result.exit_code == 130
    assert "Interrupted: this is what was measured by then." in result.stdout
    assert "LOSSLESS" in result.stdout
    assert json.loads(file.read_text())["interrupted"]
    assert "Please post it" not in result.stderr


@pytest.mark.parametrize("name", ["", "absent/mine.json", "/dev/null"])
def test_where_it_cannot_write_is_said_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthrus_mlx, "load", None)
    result = invoke("--json", str(tmp_path / name))
    assert result.exit_code == 1
    assert "name a file" in result.stderr or "There is no folder" in result.stderr
