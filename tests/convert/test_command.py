"""The `convert` and `info` commands: mlx-lm's flags, clean stdout, one line for an error."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.cli.app import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return lambda *args: CliRunner().invoke(app, list(map(str, args)))


def test_convert_with_mlx_lms_flags(run, tiny16_dir):
    result = run("convert", "--hf-path", tiny16_dir, "-q", "--q-bits", 8, "--q-group-size", 32)
    assert result.exit_code == 0, result.output
    checkpoint = inspect(Path("mlx_model"))  # mlx-lm's default
    assert checkpoint.config.quantization.bits == 8
    assert "affine, 8 bits, groups of 32" in result.stdout
    assert "Wrote mlx_model. Try it: orthrus-mlx chat --model mlx_model" in result.stderr
    assert "Converting: 100 %" in result.stderr
    assert "Converting" not in result.stdout


def test_the_other_flags(run, tiny16_dir):
    result = run(
        *("convert", "--model", tiny16_dir, "--mlx-path", "out", "--dtype", "float16"),
        *("--quantize", "--q-mode", "mxfp4", "--diffusion-q-bits", 0),
    )
    assert result.exit_code == 0, result.output
    assert inspect(Path("out")).config.quantization.mode == "mxfp4"
    assert "float16" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mlx-path", "."], "exists already"),
        (["--q-bits", "8"], "no effect without quantize"),
        (["-q", "--q-bits", "7"], "error: --q-bits is 7; choose from (2, 3, "),
        (["-q", "--diffusion-q-bits", "1"], "error: --diffusion-q-bits is 1; choose from (0, 2, "),
    ],
)
def test_errors_are_one_line(run, tiny16_dir, args, message):
    result = run("convert", "--hf-path", tiny16_dir, *args)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("args", [[], ["--hf-path", "x", "--q-mode", "int4"]])
def test_wrong_usage(run, args):
    assert run("convert", *args).exit_code == 2


def test_info_for_people(run, tiny16_dir):
    result = run("info", tiny16_dir)
    assert result.exit_code == 0, result.output
    lines = {line[:13].strip(): line[13:].strip() for line in result.stdout.splitlines()[:8]}
    assert lines["Block"] == "16 rows, 15 drafts; mask token 3"
    assert lines["Context"] == "4,096 tokens (rope: default)"
    assert lines["Vocabulary"] == "800, tied embeddings"
    assert lines["Tokenizer"] == "yes, with a chat template"
    assert lines["Memory"].startswith("11.6 MB of weights, 3.1 kB of cache a token; 24.2 MB")
    assert any("diffusion view" in row and "1,180,416" in row for row in result.stdout.splitlines())


def test_info_for_programs(run, tiny16_dir):
    result = run("info", tiny16_dir, "--json")
    assert json.loads(result.stdout)["parameters"] == 5_812_992
    assert result.stderr == ""


def test_info_of_nothing(run):
    result = run("info", "no/such/folder")
    assert result.exit_code == 1
    assert "There is no folder no/such/folder" in result.stderr
