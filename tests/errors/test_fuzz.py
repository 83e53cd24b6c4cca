"""Whatever stands in a checkpoint's files, it loads or ends in an `OrthrusError`."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthrus_mlx import ConfigError, ModelConfig, NotOrthrusError, OrthrusError
from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.model import Model
from tests.helpers import random_config, random_weights, tensor_shapes, write_checkpoint

CONFIG = random_config(0, hidden_size=32, num_hidden_layers=1, head_dim=8)
CONFIG |= {"num_attention_heads": 2, "num_key_value_heads": 1}
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0] * 4,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=4),
    st.sampled_from(["default", "linear", "yarn", "llama3", "longrope", "dynamic", 1e-300, 1e300]),
    st.sampled_from([10**400, -(10**400), 2**63, 1e-320, 1e-38, 1e38]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner)
)


@given(st.dictionaries(st.sampled_from(sorted({*CONFIG, "quantization"})), values, max_size=3))
def test_config_fields(fields):
    try:
        config = ModelConfig.from_dict({**CONFIG, **fields})
    except (ConfigError, NotOrthrusError):
        return
    Model(config)  # laid out, not allocated


@given(
    st.sampled_from(["linear", "yarn", "llama3", "longrope"]),
    st.dictionaries(st.sampled_from(sorted(ROPE)), values, max_size=2),
)
def test_rope_fields(kind, fields):
    try:
        rope = {**ROPE, "rope_type": kind, **fields}
        config = ModelConfig.from_dict({**CONFIG, "rope_parameters": rope})
    except ConfigError:
        return
    Model(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("fuzz") / "x", CONFIG, random_weights(CONFIG))


@given(st.data())
def test_bytes_of_the_weights(folder, data):
    """A few bytes changed, mostly in the header."""
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    (header,) = struct.unpack("<Q", sound[:8])
    broken = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, 8 + header))] = data.draw(st.integers(0, 255))
    try:
        file.write_bytes(broken[: data.draw(st.sampled_from([len(broken), 8 + header, 40]))])
        inspect(folder)
    except OrthrusError:
        pass
    finally:
        file.write_bytes(sound)


headers = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "BF16", "U32", "U8", "I64", "F64", "BOOL", "F8_E4M3", "?"]
        ),
        "shape": st.lists(st.integers(0, 64), max_size=3),
    }
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"{path}.{part}"
                for path in (
                    "model.embed_tokens",
                    "model.norm",
                    "model.layers.0.self_attn.q_proj_diff",
                    "model.layers.0.mlp.up_proj",
                    "lm_head",
                    "model.layers.7.mlp.up_proj",
                )
                for part in ("weight", "scales", "biases")
            ]
        ),
        headers,
        min_size=1,
        max_size=4,
    )
)
def test_headers_of_the_weights(folder, changes):
    """Other types and shapes for some tensors, laid out soundly."""
    sizes = {"F32": 4, "BF16": 2, "U32": 4, "U8": 1, "I64": 8, "F64": 8, "BOOL": 1, "F8_E4M3": 1}
    entries = {name: {"dtype": "F32", "shape": s} for name, s in tensor_shapes(CONFIG).items()}
    entries |= changes
    end = 0
    for entry in entries.values():
        size = sizes.get(entry["dtype"], 1)
        for axis in entry["shape"]:
            size *= axis
        entry["data_offsets"] = [end, end + size]
        end += size
    text = json.dumps(entries).encode()
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    try:
        with file.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
        inspect(folder)
    except OrthrusError:
        pass
    finally:
        file.write_bytes(sound)
