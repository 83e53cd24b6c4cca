"""`orthrus-mlx list` and `rm`: what was downloaded, and how it goes."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

import orthrus_mlx

from .test_app import invoke, plain

COMMIT = "0123456789abcdef" * 2 + "01234567"
DEMO = Path(orthrus_mlx.__file__).parent / "demo"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with the demo as someone/demo, and with a model of another kind."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    for repo, files in (("someone--demo", DEMO), ("other--llama", other)):
        model = tmp_path / f"models--{repo}"
        snapshot = model / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(COMMIT)
        (model / "blobs").mkdir()
        for file in files.iterdir():
            blob = model / "blobs" / file.name
            blob.write_bytes(file.read_bytes()) if file.is_file() else None
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return tmp_path


def test_orthrus_checkpoints_are_listed_with_their_sizes(cache: Path) -> None:
    result = invoke("list")
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if "someone/demo" in line)
    size = sum(file.stat().st_size for file in DEMO.iterdir() if file.is_file())
    assert row.split()[1:3] == [f"{size / 1e6:.1f}", "MB"]
    assert COMMIT[:8] in row
    assert row.split()[-1] == "complete"
    assert "llama" not in result.stdout
    assert "1 model without a diffusion view is in the cache too" in result.stderr
    assert "other/llama" in invoke("list", "--all").stdout


def test_the_list_as_json(cache: Path) -> None:
    models = json.loads(invoke("list", "--all", "--json").stdout)
    assert [(m["model"], m["orthrus"]) for m in models] == [
        ("other/llama", False),
        ("someone/demo", True),
    ]
    assert models[1]["revisions"][0]["refs"] == ["main"]


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    result = invoke("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No Orthrus checkpoint" in result.stderr


def test_rm_asks_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache / "models--someone--demo"
    refused = invoke("rm", "someone/demo")
    assert refused.exit_code == 2
    assert "--yes" in plain(refused.stderr)
    monkeypatch.setattr("orthrus_mlx.cli.models.is_person", lambda: True)
    assert invoke("rm", "someone/demo", input="n\n").exit_code == 1
    assert folder.exists()
    agreed = invoke("rm", "someone/demo", input="y\n")
    assert agreed.exit_code == 0, agreed.output
    assert "MB" in agreed.stderr
    assert not folder.exists()
    assert (cache / "models--other--llama").exists()


def test_rm_of_what_is_not_there(cache: Path) -> None:
    result = invoke("rm", "someone/demo", "no/such", "--yes")
    assert result.exit_code == 1
    assert "holds no no/such" in result.stderr
    assert (cache / "models--someone--demo").exists()  # all or nothing
    assert invoke("rm", "demo", "--yes").exit_code == 1
    assert invoke("rm", "someone/demo", "--yes").exit_code == 0
    assert not (cache / "models--someone--demo").exists()
