"""Files from outside: what is no regular file, too large, elsewhere or no UTF-8 is refused."""

import codecs
import json
import os
import shutil
from contextlib import suppress

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orthrus_mlx import CheckpointError, OrthrusError, UnsafeCheckpointError, load
from orthrus_mlx.checkpoint.config import ModelConfig
from orthrus_mlx.checkpoint.contents import weight_files
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import inspect, load_tokenizer, resolve
from orthrus_mlx.checkpoint.write import copy_files, files_to_copy
from orthrus_mlx.cli.conversation import Conversation
from orthrus_mlx.convert import convert
from orthrus_mlx.errors import LONGEST, GenerationError
from orthrus_mlx.files import LINE_BYTES, part_bytes, read_lines
from orthrus_mlx.session import ChatSession
from orthrus_mlx.tools import prompt_cache
from orthrus_mlx.tools.prompts import from_file
from orthrus_mlx.training.data import read_records
from orthrus_mlx.training.options import read_config
from orthrus_mlx.training.state import Workspace, file_digest

DEMO = resolve("demo")
INDEX = "model.safetensors.index.json"
TEXTS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/tools.jinja",
    INDEX,
    "README.md",
    "LICENSE",
]


@pytest.fixture
def folder(tmp_path):
    """The demo without weights, which no test here needs."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").touch()
    return folder


def read_checkpoint(folder):
    """Read every text file as `load` and `convert` do."""
    weight_files(folder)
    ModelConfig.from_folder(folder)
    load_tokenizer(folder)
    return files_to_copy(folder)


def make_pipe(path):
    os.mkfifo(path)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_circle(path):
    path.symlink_to(path)


def make_large(path):
    path.touch()
    os.truncate(path, part_bytes(path) + 1)


def make_outside(path):
    path.symlink_to(__file__)


def replaced(folder, name, make):
    path = folder / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    make(path)
    return path


@pytest.mark.parametrize(
    "make", [make_pipe, make_device, make_folder, make_circle, make_large, make_outside]
)
@pytest.mark.parametrize("name", TEXTS)
def test_text_files_of_a_checkpoint(folder, name, make):
    path = replaced(folder, name, make)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert str(path) in str(caught.value)
    if make is make_outside:
        assert type(caught.value) is UnsafeCheckpointError


def test_weights_that_lie_elsewhere(folder):
    replaced(folder, "model.safetensors", lambda path: path.symlink_to(DEMO / path.name))
    with pytest.raises(UnsafeCheckpointError, match=r"model\.safetensors is a link to"):
        load(folder)


def test_links_within_the_folder_or_the_hub_cache(tmp_path):
    """As `snapshot_download` lays files out, with the cache itself reached over a link."""
    repo = tmp_path / "hub" / "models--owner--name"
    snapshot = repo / "snapshots" / "0123"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(DEMO.iterdir())):
        shutil.copyfile(path, repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")
    reached = tmp_path / "elsewhere" / "models--owner--name" / "snapshots" / "0123"
    assert inspect(reached).tensors.keys() == inspect(DEMO).tensors.keys()
    read_checkpoint(reached)
    other = tmp_path / "hub" / "models--owner--other"
    other.mkdir()
    (other / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    replaced(snapshot, "config.json", lambda p: p.symlink_to(other / "config.json"))
    with pytest.raises(UnsafeCheckpointError, match="outside of"):
        read_checkpoint(reached)


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "chat_template.jinja"])
def test_convert_publishes_nothing_from_elsewhere(tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEMO, folder)
    replaced(folder, name, make_outside)
    with pytest.raises(UnsafeCheckpointError, match=name):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsafeCheckpointError, match=name):
        copy_files([folder / name], tmp_path)


def run_settings(path):
    path.parent.joinpath("x.training").mkdir()
    path.rename(path.parent / "x.training" / "run.json")
    workspace = Workspace(path.parent / "x")
    workspace.resume = True
    workspace.claim({})


READERS = {
    "conversation.json": Conversation.load,
    "prompts.txt": from_file,
    "prompts.jsonl": from_file,
    "train.jsonl": lambda path: list(read_records(path)),
    "digest.jsonl": file_digest,
    "train.yaml": read_config,
    "run.json": run_settings,
}


@pytest.mark.parametrize("make", [make_pipe, make_device, make_folder])
@pytest.mark.parametrize("name", READERS)
def test_other_files(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(OrthrusError, match="not a regular file"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["conversation.json", "train.yaml", "run.json"])
def test_files_beyond_the_limit_of_their_kind(tmp_path, name):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, (64 << 20) + 1)
    with pytest.raises(OrthrusError, match="files of its kind have"):
        READERS[name](tmp_path / name)


def test_a_line_without_end(tmp_path):
    (tmp_path / "train.jsonl").touch()
    os.truncate(tmp_path / "train.jsonl", LINE_BYTES + 2)
    with pytest.raises(OrthrusError, match=r"train\.jsonl:1: a line of more than"):
        list(read_lines(tmp_path / "train.jsonl", OrthrusError))


# Encodings

MARK = codecs.BOM_UTF8
CHAT = {"format": "orthrus-mlx-chat", "version": 1, "model": "demo", "messages": []}
SAYS = [{"role": "user", "content": "a\u2028b\x85c"}, {"role": "assistant", "content": "d"}]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, folder):
    (folder / "config.json").write_bytes(MARK + (folder / "config.json").read_bytes())
    assert ModelConfig.from_folder(folder) == ModelConfig.from_folder(DEMO)
    (tmp_path / "c.json").write_bytes(MARK + json.dumps(CHAT | {"messages": SAYS}).encode())
    assert Conversation.load(tmp_path / "c.json").messages() == SAYS
    (tmp_path / "p.txt").write_bytes(MARK + b"first\r\nsecond\n")
    assert [prompt.text for prompt in from_file(tmp_path / "p.txt")] == ["first", "second"]
    (tmp_path / "o.yaml").write_bytes(MARK + b"iters: 3\n")
    assert read_config(tmp_path / "o.yaml") == {"iters": 3}
    (tmp_path / "t.jsonl").write_bytes(MARK + b'{"text": "a"}\n' + MARK + b'{"text": "b"}\n')
    assert [r for _, r in read_records(tmp_path / "t.jsonl")] == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_byte_order_mark_that_transformers_does_not_know(folder, name):
    (folder / name).write_bytes(MARK + (folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=f"{name} begins with a byte order mark"):
        load_tokenizer(folder)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c"])
def test_unicode_line_separators_end_no_line(tmp_path, separator):
    text = f"a{separator}b"
    (tmp_path / "p.txt").write_text(f"{text}\nc\n", encoding="utf-8")
    assert [prompt.text for prompt in from_file(tmp_path / "p.txt")] == [text, "c"]
    lines = "".join(json.dumps({k: text}, ensure_ascii=False) + "\n" for k in ("prompt", "text"))
    (tmp_path / "p.jsonl").write_text(lines, encoding="utf-8")
    assert [r for _, r in read_records(tmp_path / "p.jsonl")] == [{"prompt": text}, {"text": text}]


@pytest.mark.parametrize("name", [name for name in READERS if name != "digest.jsonl"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "\xff"}', r"is not UTF-8 text: byte 0xff"),
        ('{"text": "a"}'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_no_utf8(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OrthrusError, match=said):
        READERS[name](tmp_path / name)


def test_half_a_character_is_replaced(tmp_path):
    """No encoder takes a lone surrogate, which JSON can write and a text cannot hold."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\\ud83d b \\ud83d\\ude00 \\udead"}\n')
    (prompt,) = from_file(tmp_path / "p.jsonl")
    assert prompt.text == "a\ufffd b \U0001f600 \ufffd"


# Sizes


def test_a_long_value_makes_no_long_error(folder):
    config = json.loads((DEMO / "config.json").read_text())
    config["hidden_act"] = "x" * 5_000_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"hidden_act is .* only 'silu' is known") as caught:
        ModelConfig.from_folder(folder)
    assert len(str(caught.value)) < LONGEST + 10


def test_a_header_of_a_million_tensors(folder):
    size = 60_000_000  # of which only the length is read
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b'{"t0": ')
    os.truncate(folder / "model.safetensors", 8 + size)
    with pytest.raises(CheckpointError, match="a header of"):
        inspect(folder)


def test_only_the_folder_itself_is_searched_for_downloads(tmp_path, monkeypatch):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "x.incomplete").touch()
    with pytest.raises(CheckpointError) as caught:
        describe(tmp_path)
    assert "unfinished" not in str(caught.value)


def test_a_load_leaves_the_random_state_alone():
    drawn = []
    for action in (lambda: None, lambda: load("demo")):
        mx.random.seed(5)
        mx.random.uniform()
        action()
        drawn.append(mx.random.uniform(shape=(4,)).tolist())
    assert drawn[0] == drawn[1]


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["format", "version", "messages", "role", "content", "iters", "text"]),
            inner,
        )
    ),
)
contents = st.binary(max_size=60) | st.builds(
    lambda value, end: json.dumps(value).encode() + end, values, st.sampled_from([b"", b"\n", b"}"])
)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"run.json", "digest.jsonl"}))
@given(content=contents)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with suppress(OrthrusError):
        READERS[name](tmp_path / name)


def test_a_pipe_in_the_place_of_a_kept_cache(tmp_path):
    path = tmp_path / "cache.safetensors"
    os.mkfifo(path)
    session = ChatSession(load("demo")[0], None)
    session.load_cache(path, "key")
    assert session.cached_tokens == 0
    with pytest.raises(GenerationError):
        prompt_cache.load(path)
