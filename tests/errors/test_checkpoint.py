"""Checkpoint folders that cannot be loaded: each is refused from headers, by name and reason."""

import json
import re
import struct

import mlx.core as mx
import pytest

from orthrus_mlx import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    IncompleteCheckpointError,
    NotOrthrusError,
    TensorError,
    UnsafeCheckpointError,
    load,
)
from orthrus_mlx.checkpoint.read import inspect
from tests.helpers import (
    random_config,
    random_weights,
    save_tensors,
    write_checkpoint,
    write_index,
)

CONFIG = random_config(3, hidden_size=64, head_dim=16, tie_word_embeddings=False)
INDEX = "model.safetensors.index.json"
Q_DIFF = "model.layers.0.self_attn.q_proj_diff.weight"


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG, dtype=mx.bfloat16)


@pytest.fixture
def folder(tmp_path, weights):
    return write_checkpoint(tmp_path / "checkpoint", CONFIG, weights)


@pytest.fixture
def sharded(tmp_path, weights):
    return write_checkpoint(tmp_path / "checkpoint", CONFIG, weights, shards=3)


def refused(folder, error, match):
    """`inspect`, which reads no weights, refuses it; hence `load` does."""
    with pytest.raises(error, match=match) as caught:
        inspect(folder)
    assert type(caught.value) is error
    with pytest.raises(error):
        load(folder)


def test_sound_checkpoints_pass(folder, sharded):
    assert inspect(folder).tensors.keys() == inspect(sharded).tensors.keys()


# Not Orthrus


def test_plain_qwen3(tmp_path):
    config = {k: v for k, v in CONFIG.items() if k not in ("block_size", "mask_token_id")}
    folder = write_checkpoint(tmp_path / "plain", config, random_weights(CONFIG, diffusion=False))
    groups = "q_proj_diff, k_proj_diff, v_proj_diff, o_proj_diff, q_norm_diff, k_norm_diff"
    refused(folder, NotOrthrusError, f"plain qwen3 checkpoint.*{groups}")


def test_orthrus_config_without_diffusion_weights(tmp_path):
    folder = write_checkpoint(tmp_path / "half", CONFIG, random_weights(CONFIG, diffusion=False))
    refused(folder, NotOrthrusError, "q_proj_diff.*orthrus_diff.safetensors was left behind")


def test_diffusion_weights_with_a_plain_config(tmp_path, weights):
    config = {k: v for k, v in CONFIG.items() if k != "block_size"}
    folder = write_checkpoint(tmp_path / "swapped", config, weights)
    refused(folder, ConfigError, "config.json has been replaced")


def test_another_architecture(tmp_path):
    folder = write_checkpoint(
        tmp_path / "llama", {"model_type": "llama", "hidden_size": 8}, {"x": mx.zeros((2, 2))}
    )
    refused(folder, NotOrthrusError, "plain llama checkpoint")


# Files


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "x\0y", "~nobody-of-this-name/x"])
def test_names_that_no_folder_has(name):
    with pytest.raises(CheckpointNotFoundError):
        load(name)


def test_empty_folder(tmp_path):
    refused(tmp_path, IncompleteCheckpointError, "holds no model")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_shard(sharded, keep):
    file = sharded / "model-00002-of-00003.safetensors"
    content = file.read_bytes()
    end = int(len(content) * keep) if isinstance(keep, float) else keep
    file.write_bytes(content[:end])
    refused(sharded, IncompleteCheckpointError, f"{file.name} is not a whole safetensors file")


def header_of(text, size=None):
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        header_of(b"{not json}"),
        header_of(b"[]"),
        header_of(b"{}", 2**63),
        header_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') + b"\0" * 4,
        header_of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}') + b"\0" * 8,
        header_of(b'{"a":{"dtype":"X99","shape":[1],"data_offsets":[0,4]}}') + b"\0" * 4,
        header_of(
            b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}'
        ),
        b"\x80\x02}q\x00.",
        bytes(range(256)) * 40,
    ],
    ids=["json", "list", "huge", "size", "offsets", "dtype", "overflow", "pickle", "noise"],
)
def test_corrupt_header(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, IncompleteCheckpointError, "not a whole safetensors file")


def test_git_lfs_pointer(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (folder / "model.safetensors").write_bytes(pointer)
    refused(folder, IncompleteCheckpointError, "git lfs pull")


def test_a_folder_where_a_shard_should_be(sharded):
    file = sharded / "model-00001-of-00003.safetensors"
    file.unlink()
    file.mkdir()
    refused(sharded, IncompleteCheckpointError, file.name)


def test_index_names_a_missing_file(sharded):
    (sharded / "model-00003-of-00003.safetensors").unlink()
    refused(sharded, IncompleteCheckpointError, "not there: model-00003-of-00003.safetensors")


def test_shard_missing_without_index(sharded):
    (sharded / INDEX).unlink()
    inspect(sharded)
    (sharded / "model-00001-of-00003.safetensors").unlink()
    refused(sharded, IncompleteCheckpointError, "not there: model-00001-of-00003.safetensors")


def test_unfinished_download(sharded):
    cache = sharded / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (sharded / "model-00002-of-00003.safetensors").rename(cache / "abc.incomplete")
    refused(sharded, IncompleteCheckpointError, "download seems unfinished: abc.incomplete")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        "",
        "pytorch_model.bin",
        "model.py",
    ],
)
def test_index_leaves_the_folder(sharded, name):
    write_index(sharded, {"model.norm.weight": name})
    refused(sharded, UnsafeCheckpointError, re.escape(repr(name)))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_index_without_a_map(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, IncompleteCheckpointError, "no usable weight_map")


def test_index_not_json(sharded):
    (sharded / INDEX).write_text("{")
    refused(sharded, ConfigError, "cannot be read as JSON")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_weights(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, UnsafeCheckpointError, f"pickle weights .{re.escape(name)}")


def test_code_in_the_folder_is_not_run(folder, tmp_path, tiny16_dir):
    (folder / "modeling_orthrus.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny16_dir / name).read_bytes())
    load(folder)
    assert not (tmp_path / "ran").exists()


def test_no_tokenizer(folder):
    with pytest.raises(IncompleteCheckpointError, match=r"no tokenizer\.json"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "Unknown"}}'])
def test_broken_tokenizer(folder, tiny16_dir, content):
    (folder / "tokenizer_config.json").write_bytes(
        (tiny16_dir / "tokenizer_config.json").read_bytes()
    )
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError):
        load(folder)


# Tensors


def rewritten(folder, weights, **changes):
    save_tensors(folder / "model.safetensors", {**weights, **changes})
    return folder


def test_wrong_shape(folder, weights):
    rewritten(folder, weights, **{Q_DIFF: mx.zeros((8, 8))})
    refused(folder, TensorError, rf"{Q_DIFF} in model.safetensors has shape \[8, 8\]")


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8, mx.uint32, mx.int64])
def test_wrong_dtype(folder, weights, dtype):
    rewritten(folder, weights, **{Q_DIFF: weights[Q_DIFF].astype(dtype)})
    refused(folder, TensorError, f"{Q_DIFF} in model.safetensors is of type")


def test_missing_tensor(folder, weights):
    del (kept := dict(weights))[Q_DIFF]
    save_tensors(folder / "model.safetensors", kept)
    refused(folder, TensorError, f"1 tensor.s. missing: {Q_DIFF}")


def test_unexpected_tensor(folder, weights):
    rewritten(folder, weights, **{"model.layers.99.mlp.up_proj.weight": mx.zeros((2, 2))})
    refused(folder, TensorError, r"unexpected tensor.s.: model.layers.99.mlp.up_proj.weight")


def test_tensor_in_two_files(folder):
    save_tensors(folder / "orthrus_diff.safetensors", {"model.norm.weight": mx.zeros((64,))})
    refused(folder, TensorError, r"model.norm.weight is in both .* Remove the file")


def test_tensor_twice_in_one_file(folder):
    entry = b'"model.norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    text = b"{" + entry % (0, 4) + b"," + entry % (4, 8) + b"}"
    (folder / "model.safetensors").write_bytes(header_of(text) + b"\0" * 8)
    with pytest.raises(CheckpointError):
        inspect(folder)


def test_what_no_model_needs_is_passed_over(tmp_path, weights):
    config = {**CONFIG, "tie_word_embeddings": True}
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros((8,))}
    folder = write_checkpoint(tmp_path / "tied", config, {**weights, **extra})
    assert "lm_head.weight" not in inspect(folder).tensors


@pytest.mark.parametrize(
    "shapes",
    [((128, 8), (128, 5)), ((128, 8), (128, 64)), ((128, 1), (128, 2)), ((128, 8), (128,))],
)
def test_unknown_packing(folder, weights, shapes):
    weight, scales = shapes
    path = Q_DIFF.removesuffix(".weight")
    changes = {
        Q_DIFF: mx.zeros(weight, mx.uint32),
        f"{path}.scales": mx.zeros(scales, mx.bfloat16),
        f"{path}.biases": mx.zeros(scales, mx.bfloat16),
    }
    rewritten(folder, weights, **changes)
    refused(folder, TensorError, q_or_shape(path))


def q_or_shape(path):
    return f"{path}.* (packed in a way|has shape)"


def test_scales_for_a_norm(folder, weights):
    rewritten(folder, weights, **{"model.norm.scales": mx.zeros((1,), mx.bfloat16)})
    refused(folder, TensorError, r"unexpected tensor.s.: model.norm.scales")


def test_packed_without_biases(folder, weights):
    path = Q_DIFF.removesuffix(".weight")
    packed, scales, _ = mx.quantize(weights[Q_DIFF], group_size=64, bits=4)
    rewritten(folder, weights, **{Q_DIFF: packed, f"{path}.scales": scales})
    refused(folder, TensorError, f"missing: {path}.biases")
