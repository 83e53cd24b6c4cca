"""Checkpoints from the Hub: only what is needed comes, and every way to fail is told apart."""

import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from orthrus_mlx import (
    CheckpointError,
    CheckpointNotFoundError,
    IncompleteCheckpointError,
    UnsafeCheckpointError,
)
from orthrus_mlx.checkpoint.hub_cache import cached_models, remove
from orthrus_mlx.checkpoint.hub_names import HubModel
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import inspect, load_model, load_tokenizer, locate, resolve
from tests.fake_hub import COMMIT, FakeHub
from tests.helpers import random_config, random_weights, write_checkpoint

REPO = "someone/orthrus-tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub().serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def no_waiting(monkeypatch):
    """The Hub client waits between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def published(hub, tmp_path, tiny16_dir):
    """A sharded checkpoint on the Hub, among files that nobody should download."""
    config = random_config(1, hidden_size=64)
    folder = tmp_path / "published"
    write_checkpoint(folder, config, random_weights(config), shards=3, tokenizer_from=tiny16_dir)
    (folder / "modeling_orthrus.py").write_text("raise SystemExit('run!')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.pth").write_bytes(b"pickle")
    hub.repos[REPO] = folder
    return hub


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_downloads_what_a_model_needs_and_no_code(published):
    folder = resolve(REPO)
    inspect(folder)
    names = {path.name for path in folder.rglob("*")}
    assert {"config.json", "tokenizer.json", "model-00003-of-00003.safetensors"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin", ".pt", ".pth"))]
    assert not [name for name in published.requested if name.endswith((".py", ".bin", ".pt"))]


def test_works_offline_once_cached(published, monkeypatch):
    first = resolve(REPO)
    offline(monkeypatch)
    again = resolve(REPO)
    assert again == first
    inspect(again)


def test_no_network_and_nothing_cached(hub, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(CheckpointNotFoundError, match="network"):
        resolve(REPO)
    with pytest.raises(CheckpointNotFoundError, match="network"):
        describe(REPO)


def test_unknown_model(hub):
    with pytest.raises(CheckpointNotFoundError, match="knows no model 'no/such-model'"):
        resolve("no/such-model")
    with pytest.raises(CheckpointNotFoundError, match="knows no model 'no/such-model'"):
        describe("no/such-model")


def test_unknown_revision(published):
    with pytest.raises(CheckpointNotFoundError, match="no revision 'v9'"):
        resolve(REPO, revision="v9")


def test_known_revision(published):
    assert resolve(REPO, revision=COMMIT) == resolve(REPO)


@pytest.mark.parametrize(
    "name", ["no such folder", "a/b/c", "./nothing", "/nothing/here", "~/nope/x"]
)
def test_neither_folder_nor_hub_id(name):
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        resolve(name)


def test_a_file_is_not_a_folder(tiny16_dir):
    with pytest.raises(CheckpointNotFoundError, match="is a file"):
        resolve(tiny16_dir / "model.safetensors")


def test_download_cut_short_goes_on(published, no_waiting):
    published.fail_after = 20_000
    with pytest.raises(CheckpointNotFoundError, match="run the same command again"):
        resolve(REPO)
    published.fail_after = None
    inspect(resolve(REPO))
    assert published.requested.count("config.json") == 1  # complete files are not fetched twice


def test_partial_download_found_offline(published, no_waiting, monkeypatch):
    """The Hub client gives what it has; that it is not all must be noticed."""
    published.fail_after = 20_000
    with pytest.raises(CheckpointNotFoundError):
        resolve(REPO)
    offline(monkeypatch)
    with pytest.raises((CheckpointNotFoundError, IncompleteCheckpointError)):
        inspect(resolve(REPO))


def test_info_downloads_no_weights(published):
    described = describe(REPO)
    local = describe(published.repos[REPO])
    assert described.folder is None
    assert described.views == local.views
    assert described.kv_bytes_per_token == local.kv_bytes_per_token
    assert (described.has_tokenizer, described.has_chat_template) == (True, True)
    assert "tokenizer.json" not in published.requested
    for name, size in published.sent.items():
        if name.endswith(".safetensors"):  # the client asks for the first 100 kB, headers and more
            assert size <= 100_001


def test_info_finds_what_was_probed(published, tmp_path, monkeypatch):
    from orthrus_mlx.device import probe as numerics

    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "cache"))
    found = numerics.Probe(((1, 2, 4),), (), 0.0, {1: 1.0, 2: 1.0, 4: 1.0})
    local = load_model(inspect(published.repos[REPO]))
    assert describe(REPO).probe is None
    numerics.store_probe(local, found)
    assert describe(REPO).probe == found


def test_info_reads_both_layouts(published, tmp_path):
    from orthrus_mlx.convert import convert

    published.repos["me/converted"] = convert(REPO, tmp_path / "out", diffusion_q_bits=0)
    described = describe("me/converted")
    assert described.layout == "mlx"
    assert described.views == describe(REPO).views


def test_info_offline_once_cached(published, monkeypatch):
    resolve(REPO)
    offline(monkeypatch)
    assert describe(REPO).folder is not None


def test_pickle_only_repository(published):
    for file in published.repos[REPO].glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        describe(REPO)


def test_the_card_names_the_base_model_and_keeps_its_licence(published, tmp_path):
    from huggingface_hub import ModelCard

    from orthrus_mlx.convert import convert

    folder: Path = published.repos[REPO]
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Theirs\n")
    (folder / "LICENSE").write_text("MIT License")
    out = convert(REPO, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert card.data.base_model == REPO
    assert "Theirs" not in card.text
    assert (out / "LICENSE").read_text() == "MIT License"


@pytest.mark.parametrize(
    ("address", "revision"),
    [
        (f"https://huggingface.co/{REPO}", None),
        (f" https://huggingface.co/{REPO}/ ", None),
        (f"https://huggingface.co/{REPO}?library=mlx#files", None),
        (f"https://huggingface.co/{REPO}/tree/main", "main"),
        (f"https://huggingface.co/{REPO}/blob/main/config.json", "main"),
        (f"https://huggingface.co/{REPO}.git", None),
        (f"http://hf.co/{REPO}", None),
        (f"huggingface.co/{REPO}", None),
        (f"hf://{REPO}@{COMMIT}", COMMIT),
        (f" {REPO}\n", None),
    ],
)
def test_an_address_is_a_name(address, revision):
    assert locate(address) == HubModel(REPO, revision)


def test_an_address_of_the_hub_in_use(published):
    assert resolve(f"{published.url}/{REPO}/tree/{COMMIT}") == resolve(REPO)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("https://github.com/someone/orthrus", "not the address of a model on the Hub"),
        ("https://huggingface.co/someone", "not the address of a model on the Hub"),
        ("https://huggingface.co/datasets/someone/data", "is a dataset on the Hub, not a model"),
        ("hf://", "not the address of a model on the Hub"),
    ],
)
def test_an_address_of_something_else(address, problem):
    with pytest.raises(CheckpointNotFoundError, match=problem):
        locate(address)


@pytest.mark.parametrize("name", ["", "  ", None, 7, "x" * 300, "~nobody-here/model/x"])
def test_a_name_that_names_nothing(name):
    with pytest.raises(CheckpointNotFoundError, match=r"is empty|expected|no (home )?folder"):
        locate(name)


def test_a_revision_is_that_of_a_hub_model(tmp_path):
    for name in ("demo", tmp_path):
        with pytest.raises(CheckpointNotFoundError, match=r"'v1'.*Leave the revision out"):
            locate(name, "v1")
    for nothing in ("", " ", 3):
        with pytest.raises(CheckpointNotFoundError, match="The revision is"):
            locate(REPO, nothing)
    with pytest.raises(CheckpointNotFoundError, match=r"'main'.*'v1'"):
        locate(f"https://huggingface.co/{REPO}/tree/main", "v1")
    assert locate(f"https://huggingface.co/{REPO}", "v1") == HubModel(REPO, "v1")


def test_a_local_folder_hides_a_hub_id_and_errors_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(REPO)
    folder.mkdir(parents=True)
    for attempt in (inspect, load_tokenizer):
        with pytest.raises(CheckpointError, match=f"hides .*https://huggingface.co/{REPO}"):
            attempt(locate(REPO))
    with pytest.raises(CheckpointNotFoundError, match=f"hides .*https://huggingface.co/{REPO}"):
        locate(REPO, "v1")
    assert locate(f"https://huggingface.co/{REPO}") == HubModel(REPO)


def broken(folder: Path, name: str) -> Path:
    """Let the link `name` of a snapshot lead nowhere; give what it led to."""
    blob = (folder / name).resolve()
    blob.unlink()
    return blob


def other_snapshot(folder: Path, commit: str) -> Path:
    """A second revision in the cache, with the same links."""
    return shutil.copytree(folder, folder.parent / commit, symlinks=True)


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00003.safetensors"])
def test_a_broken_cache_names_the_link_and_the_whole_snapshot(published, monkeypatch, name):
    folder = resolve(REPO)
    other = other_snapshot(folder, "b" * 40)
    (other / name).unlink()
    shutil.copyfile(folder / name, other / name)
    blob = broken(folder, name)
    offline(monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        inspect(resolve(REPO))
    assert f"{folder / name} links to {blob.name}, which is gone" in str(caught.value)
    assert f"--revision {'b' * 40}" in str(caught.value)
    inspect(resolve(REPO, "b" * 40))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    inspect(resolve(REPO))  # the network mends it


def test_a_revision_that_is_not_cached_names_one_that_is(published, monkeypatch):
    folder = resolve(REPO)
    offline(monkeypatch)
    with pytest.raises(CheckpointNotFoundError, match=f"--revision {folder.name}"):
        resolve(REPO, "v2")


def test_the_cache_is_listed_and_emptied(published, monkeypatch):
    folder = resolve(REPO)
    other = other_snapshot(folder, "b" * 40)
    (found,) = cached_models()
    assert (found.repo_id, found.orthrus) == (REPO, True)
    assert [s.complete for s in found.snapshots] == [True, True]
    weights = [f for f in published.repos[REPO].rglob("*") if (folder / f.name).exists()]
    assert found.size == sum(f.stat().st_size for f in weights)

    with pytest.raises(CheckpointNotFoundError, match="holds no someone/else"):
        remove(["someone/else"])
    with pytest.raises(CheckpointNotFoundError, match=r"no revision 'v9'.*bbbbbbbb"):
        remove([REPO], "v9")
    with pytest.raises(CheckpointNotFoundError, match="revision is empty"):
        remove([REPO], "")  # such as a variable that is not set
    with pytest.raises(CheckpointNotFoundError, match="demo belongs to the package"):
        remove(["demo"])
    part = remove([REPO], "bbbb")
    assert ([s.folder for _, gone in part.parts for s in gone], part.size) == ([other], 0)
    part.execute()
    assert not other.exists()
    inspect(resolve(REPO))
    whole = remove([f"https://huggingface.co/{REPO}"])
    assert whole.size == found.size
    whole.execute()
    assert cached_models() == []
    assert not folder.parents[1].exists()


def test_a_broken_model_is_listed_and_can_be_removed(published):
    folder = resolve(REPO)
    broken(folder, "tokenizer.json")
    (found,) = cached_models()
    assert (found.repo_id, found.orthrus, found.snapshots[0].complete) == (REPO, True, False)
    assert found.size > 10_000
    remove([REPO]).execute()
    assert not folder.parents[1].exists()
