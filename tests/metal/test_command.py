"""`orthrus-mlx tune`, and --no-tune."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import orthrus_mlx
from orthrus_mlx import metal
from orthrus_mlx.cli import options
from orthrus_mlx.cli.tune import print_table
from orthrus_mlx.metal import kernels, verdict
from orthrus_mlx.metal import tune as tuner
from orthrus_mlx.tools.report_sections import Subject, measure_tune, show_tune
from tests.cli.test_app import invoke, plain
from tests.helpers import write_checkpoint
from tests.lossless import row_kernels

from .faulty import FAULTY
from .test_tune import OTHER, SIZES, small


def test_without_metal_tune_says_so_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mx.metal.is_available():
        pytest.skip("this is a Mac")
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "measured"))
    result = invoke("tune", "demo")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "no Metal here" in result.stderr
    assert not (tmp_path / "measured").exists()
    told = json.loads(invoke("tune", "--json").stdout)
    assert told["state"] == "no Metal here" and told["model"] == "demo"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed checkpoint, on a device that says it is a Mac."""
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "measured"))
    for module in (metal, kernels, verdict):
        monkeypatch.setattr(module, "on_metal", lambda: True)
    monkeypatch.setattr(tuner, "VARIANTS", (FAULTY, OTHER))
    folder = tmp_path / "model\x1b[31m"
    return write_checkpoint(folder, row_kernels.CONFIG | SIZES, dict(weights_of(small())))


def weights_of(model: Any) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def tuned(checkpoint: Path, what: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    command = (sys.executable, "-m", "tests.metal.faulty", what)
    monkeypatch.setattr(tuner.tune, "__defaults__", (60.0, command, lambda done, total: None))
    return invoke("tune", str(checkpoint), *flags)


def test_what_is_to_be_pasted_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    used = {"kernel": "lanes-2", "rows": [2]}
    shape = {"outputs": 64, "dim": 128, "bits": 4, "group": 64, "dtype": "bfloat16"}
    product = {**shape, "used": used, "ms": {"lanes-2": [[2, 1.0, 0.5]]}}
    found = {"device": "Apple M9", "mlx": "1", "products": [product], "faults": {}}
    print_table("My Models/orthrus", found)
    assert "orthrus-mlx verify 'My Models/orthrus'" in capsys.readouterr().out


def test_the_table_says_what_is_used_and_what_failed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tuned(checkpoint, "crash", monkeypatch)
    assert result.exit_code == 0, result.output
    text = plain(result.stdout)
    assert "\x1b[31m" not in result.stdout
    assert "…" not in text
    assert "64 x 128" in text and "0.50" in text
    assert f"{FAULTY} is not used: its process died (SIGABRT), checking 64 x 128" in text
    assert "OUR KERNELS for 4 of 4 shapes" in text and "orthrus-mlx verify" in text
    model = orthrus_mlx.checkpoint.read.load_model(
        orthrus_mlx.checkpoint.read.inspect(checkpoint), lazy=True
    )
    assert model.kernels
    found = measure_tune(Subject(model, None, (), 1), lambda done, total: None)
    assert found is not None
    lines = show_tune(found)
    assert any("64 x 128" in line and "0.50" in line for line in lines)
    assert any(f"{FAULTY} is not used: its process died" in line for line in lines)
    told = json.loads(tuned(checkpoint, "none", monkeypatch, "--json").stdout)
    assert told["state"] == "our kernels" and told["faults"] == {}
    assert {product["used"]["kernel"] for product in told["products"]} == {FAULTY}
    result = invoke("tune", str(checkpoint), "--forget")
    assert "Deleted" in result.stderr
    assert not list((checkpoint.parent / "measured").glob("kernels-*"))
    assert "There is no" in invoke("tune", str(checkpoint), "--forget").stderr


def test_where_nothing_is_faster_that_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "VARIANTS", (FAULTY,))
    text = plain(tuned(checkpoint, "slow", monkeypatch).stdout)
    assert "MLX'S OWN KERNELS go on" in text and "0.99" in text


@pytest.mark.parametrize("command", ["generate", "chat", "verify", "bench", "cache-prompt"])
def test_no_tune_reaches_the_loader(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class SeenError(Exception):
        pass

    def load(model: str, **how: Any) -> Any:
        asked.append(how.get("tune", True))
        raise SeenError

    monkeypatch.setattr(orthrus_mlx, "load", load)
    flags = {"generate": ["hi"], "cache-prompt": ["--prompt", "hi", "--prompt-cache-file", "x"]}
    given = flags.get(command, [] if command == "chat" else ["demo"])
    for more, environment in (([], {}), (["--no-tune"], {}), ([], {"ORTHRUS_MLX_TUNE": "0"})):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            invoke(command, *given, *more)
    assert asked == [True, False, False]


def test_load_model_of_the_commands_leaves_the_default_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def load(model: str, **how: Any) -> tuple[Any, Any]:
        asked.append(how)
        return None, None

    monkeypatch.setattr(orthrus_mlx, "load", load)
    options.load_model("demo", None, quiet=True)
    options.load_model("demo", None, quiet=True, tune=False)
    assert asked == [{"revision": None}, {"revision": None, "tune": False}]
