"""A model is compared with the memory of its device before its weights are read."""

import warnings
from pathlib import Path

import pytest

import orthrus_mlx
from orthrus_mlx import CheckpointError, load
from orthrus_mlx.device import backend, memory
from tests.cli.test_app import invoke, plain

GB = 10**9


def device(monkeypatch: pytest.MonkeyPatch, recommended: int, total: int) -> None:
    info = {"max_recommended_working_set_size": recommended, "memory_size": total}
    monkeypatch.setattr(backend, "device_info", lambda: info)
    monkeypatch.setattr(backend, "backend", lambda: backend.METAL)


@pytest.mark.parametrize(
    ("needed", "outcome"), [(8.9, None), (9.1, "warns"), (15.9, "warns"), (16.1, "refuses")]
)
def test_what_is_needed_beside_what_is_there(
    monkeypatch: pytest.MonkeyPatch, needed: float, outcome: str | None
) -> None:
    device(monkeypatch, 10 * GB, 16 * GB)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if outcome == "refuses":
            with pytest.raises(CheckpointError, match=r"'?m'? need 16\.1 GB.* has 16\.0 GB"):
                memory.check_memory(int(needed * GB), "m")
        else:
            memory.check_memory(int(needed * GB), "m")
    assert [w.category for w in caught] == [memory.MemoryWarning] * (outcome == "warns")
    if outcome == "warns":
        assert f"{needed} GB" in str(caught[0].message)
        assert "recommends to use 10.0 GB" in str(caught[0].message)


def test_a_cpu_recommends_nothing() -> None:
    memory.check_memory(10**18, "m")


def test_nothing_is_read_of_what_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, 10**6, 10**6)
    monkeypatch.setattr("orthrus_mlx.checkpoint.read.load_model", None)
    with pytest.raises(CheckpointError, match="weights of demo need"):
        load("demo")


def test_the_command_line_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device(monkeypatch, 10**6, 10**9)
    result = invoke("generate", "hi", "-m", "1", "--mode", "ar", "--no-verbose")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert plain(line).startswith("warning: The weights of demo need 0.0 GB")
    folder = Path(orthrus_mlx.__file__).parent / "demo"
    assert str(folder) not in line
