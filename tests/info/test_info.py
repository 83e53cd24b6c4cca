"""`info` tells sizes, storage and memory from headers alone, and says what is unsound."""

import json
import struct
import time
from dataclasses import replace
from math import prod

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from typer.testing import CliRunner

from orthrus_mlx import NotOrthrusError, TensorError, load
from orthrus_mlx.checkpoint.fingerprint import Origin, fingerprint_of, of_parameters, outline
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import inspect, load_model
from orthrus_mlx.cli.app import app
from orthrus_mlx.convert import convert
from orthrus_mlx.device import measured
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.model import Model
from tests.helpers import random_config, random_weights, tensor_shapes, write_checkpoint

# The public checkpoints: config fields, parameters, share of the diffusion view, bytes on disk.
PUBLIC = {
    "1.7B": (
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "tie_word_embeddings": True,
        },
        0.170,
        4.15e9,
        478,
    ),
    "4B": (
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": True,
        },
        0.190,
        9.93e9,
        614,
    ),
    "8B": (
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        0.156,
        19.4e9,
        615,
    ),
}


def public_config(size):
    return random_config(
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        mask_token_id=151669,
        eos_token_id=151645,
        block_size=32,
        max_position_embeddings=40960,
        rope_parameters={"rope_theta": 1000000, "rope_type": "default"},
        **PUBLIC[size][0],
    )


def write_hollow(folder, config, shards):
    """Headers of full size, and no data: files with holes that take no room on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes, weight_map = list(tensor_shapes(config).items()), {}
    for i in range(shards):
        part = shapes[i * len(shapes) // shards : (i + 1) * len(shapes) // shards]
        name, header, end = f"model-{i + 1:05d}-of-{shards:05d}.safetensors", {}, 0
        for tensor, shape in part:
            start, end = end, end + 2 * prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("size", PUBLIC)
def test_public_sizes(tmp_path, size):
    """Figures that the public checkpoints are known by come out of their shapes."""
    _, share, disk, tensors = PUBLIC[size]
    config = public_config(size)
    folder = write_hollow(tmp_path / size, config, shards=4)
    start = time.process_time()
    info = describe(folder)
    assert time.process_time() - start < 2
    assert sum(view.tensors for view in info.views.values()) == tensors
    assert info.diffusion.parameters / info.parameters == pytest.approx(share, abs=6e-4)
    assert info.weight_bytes == pytest.approx(disk, rel=0.01)
    assert info.ar.parameters == info.diffusion.parameters
    assert info.kv_bytes_per_token == 2 * config["num_hidden_layers"] * 8 * 128 * 2
    assert info.kv_bytes_at_limit == info.kv_bytes_per_token * 40960
    assert (info.has_tokenizer, info.has_chat_template) == (False, False)


def test_tiny16(tiny16_dir):
    info = describe(tiny16_dir)
    assert info.layout == "public"
    assert info.parameters == 5_812_992
    assert info.weight_bytes == 2 * info.parameters
    assert {name: view.stored_as for name, view in info.views.items()} == {
        "shared": {"bfloat16": 3_452_160},
        "ar": {"bfloat16": 1_180_416},
        "diffusion": {"bfloat16": 1_180_416},
    }
    assert (info.has_tokenizer, info.has_chat_template) == (True, True)


@pytest.mark.parametrize("options", [{"quantize": True}, {"diffusion_q_bits": 8}])
def test_sizes_are_those_of_the_loaded_model(tiny16_dir, tmp_path, options):
    folder = convert(tiny16_dir, tmp_path / "out", **options)
    info = describe(folder)
    model, _ = load(folder)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    assert info.weight_bytes == sum(array.nbytes for array in arrays)
    assert info.layout == "mlx"
    assert info.parameters == 5_812_992


def test_cache_size_is_that_of_the_cache(tiny16_dir):
    model, _ = load(tiny16_dir)
    cache = model.make_cache()
    mx.eval(model(mx.array([[1] * 256]), cache=cache))
    assert describe(tiny16_dir).kv_bytes_per_token * 256 == sum(layer.nbytes for layer in cache)


def test_json_values(tiny16_dir):
    content = json.loads(json.dumps(describe(tiny16_dir).to_dict()))
    assert content["config"]["block_size"] == 16
    assert content["memory"]["total_at_context_limit"] == 11_625_984 + 4096 * 3072
    assert content["views"]["diffusion"]["stored_as"] == {"bfloat16": 1_180_416}
    assert content["tokenizer"] == {"present": True, "chat_template": True}


def test_template_inside_the_tokenizer_config(tmp_path, tiny16_dir):
    config = random_config(0)
    folder = write_checkpoint(tmp_path / "x", config, random_weights(config))
    (folder / "tokenizer.json").write_bytes((tiny16_dir / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    info = describe(folder)
    assert (info.has_tokenizer, info.has_chat_template) == (True, True)


def test_unsound_checkpoints(tmp_path):
    config = random_config(0)
    plain = random_weights(config, diffusion=False)
    with pytest.raises(NotOrthrusError):
        describe(write_checkpoint(tmp_path / "plain", config, plain))
    weights = random_weights(config) | {"x": mx.zeros((2,))}
    with pytest.raises(TensorError, match="unexpected"):
        describe(write_checkpoint(tmp_path / "extra", config, weights))


# ------------------------------------------------------------------- what is known of this device

FOUND = numerics.Probe(
    classes=((1,), (2, 4), (16, 24)),
    fused=((16, 16),),
    disagreement=0.125,
    cost_ms={1: 1.0, 2: 9.0, 4: 9.0, 8: 9.0, 16: 1.5, 24: 1.5},
)
NO_CLASS = replace(FOUND, classes=((1,),), fused=())


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "_known", {})


@pytest.fixture
def checkpoint(tmp_path, own_cache):
    config = random_config(3, hidden_size=64, intermediate_size=64, num_hidden_layers=2)
    weights = random_weights(config, dtype=mx.bfloat16)
    return write_checkpoint(tmp_path / "checkpoint", config, weights, shards=2)


def store(model, found):
    numerics.store_probe(model, found)
    measured._known.clear()  # what `info` shows is on disk


def load_weights(folder, lazy=False):
    return load_model(inspect(folder), lazy=lazy)


@pytest.mark.parametrize("packing", [None, {}, {"quantize": True}, {"diffusion_q_bits": 8}])
def test_what_was_probed_with_the_model_is_found_by_its_headers(checkpoint, tmp_path, packing):
    """Also the guard of `load_model`: what it makes of the weights changes no key."""
    folder = checkpoint
    if packing is not None:
        folder = convert(checkpoint, tmp_path / "out", **packing)
    assert describe(folder).probe is None
    store(load_weights(folder), FOUND)
    assert describe(folder).probe == FOUND
    assert describe(folder).probe.cost_ms == FOUND.cost_ms
    lazy = load_weights(folder, lazy=True)
    assert numerics.stored_probe(lazy) == FOUND


def test_other_weights_have_a_probe_of_their_own(checkpoint, tmp_path):
    store(load_weights(checkpoint), FOUND)
    quantized = convert(checkpoint, tmp_path / "out", quantize=True)
    assert describe(quantized).probe is None
    # Changed after loading, a model is no longer what the checkpoint says.
    cast, packed = load_weights(checkpoint), load_weights(checkpoint)
    cast.set_dtype(mx.float32)
    nn.quantize(packed, group_size=32, bits=4)
    assert numerics.stored_probe(cast) is numerics.stored_probe(packed) is None
    assert numerics.stored_probe(load_weights(checkpoint)) == FOUND


def test_a_model_made_otherwise_has_the_key_of_a_checkpoint_with_its_weights(checkpoint):
    loaded = load_weights(checkpoint)
    assert fingerprint_of(loaded) == of_parameters(loaded)
    made = Model(inspect(checkpoint).config)
    made.load_weights(tree_flatten(loaded.parameters()))
    assert measured.device_key(made) == measured.device_key(inspect(checkpoint))


def test_how_loading_arranges_the_weights_does_not_matter(checkpoint):
    """As a loader does that packs q, k and v into one matrix."""
    stored, model = inspect(checkpoint), load_weights(checkpoint)
    for layer in model.layers:
        attention = layer.self_attn
        parts = [attention.pop(name).weight for name in ("q_proj", "k_proj", "v_proj")]
        attention.packed = mx.concatenate(parts)
    assert fingerprint_of(model) != stored.fingerprint  # packed behind the loader's back
    model.origin = Origin(stored.fingerprint, outline(model))
    assert fingerprint_of(model) == stored.fingerprint
    assert not any("origin" in name for name, _ in tree_flatten(model.parameters()))


@pytest.mark.parametrize(
    ("found", "exact", "rows"),
    [
        (None, None, None),
        (NO_CLASS, False, None),
        (FOUND, True, {"verify": [16, 24], "fused": [[16, 16]]}),
    ],
)
def test_json_of_the_probe(checkpoint, found, exact, rows):
    if found is not None:
        store(inspect(checkpoint), found)
    content = json.loads(json.dumps(describe(checkpoint).to_dict()))["numerics"]
    assert content["exact"] is exact
    assert content["exact_rows"] == rows
    assert content["device"] and content["mlx"]
    if found is None:
        assert content["probe"] is None
    else:
        assert content["probe"]["classes"] == [list(rows) for rows in found.classes]
        assert content["probe"]["near_tie"] == 0.5


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (None, ["unknown: not probed yet; `orthrus-mlx verify {folder}` does it"]),
        (
            FOUND,
            [
                "available, in passes of 16 24 rows, one-pass 16+16",
                "bit for bit: 2 4; 16 24. Others disagree by up to 0.125 logits",
                "choices closer than 0.5 are near-ties",
            ],
        ),
        (NO_CLASS, ["not to be had here: use --numerics fast", "bit for bit: none. Others"]),
        (replace(FOUND, classes=((1, 2, 4, 8, 16, 24),)), ["All row counts agree bit for bit: 1"]),
    ],
)
def test_the_command_says_what_is_known(checkpoint, monkeypatch, found, lines):
    if found is not None:
        store(inspect(checkpoint), found)
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, ["info", str(checkpoint)])
    assert result.exit_code == 0, result.output
    for line in lines:
        assert line.format(folder=checkpoint) in result.stdout
