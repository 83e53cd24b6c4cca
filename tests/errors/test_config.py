"""A config.json that cannot be used is refused by field, before anything is allocated."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

import orthrus_mlx
from orthrus_mlx import (
    ConfigError,
    IncompleteCheckpointError,
    ModelConfig,
    NotOrthrusError,
    load,
    mlx_generate,
)
from orthrus_mlx.checkpoint.config import LIMITS
from orthrus_mlx.convert import convert
from tests.helpers import random_config

DEMO = Path(orthrus_mlx.__file__).parent / "demo"


def refused(match, error=ConfigError, **fields):
    with pytest.raises(error, match=match):
        ModelConfig.from_dict({**random_config(head_dim=16), **fields})


SIZES = sorted(LIMITS)


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, [8], 10**9, 10**30])
def test_sizes(field, value):
    refused(field, **{field: value})


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "num_hidden_layers"])
def test_missing_size(field):
    refused(field, **{field: None})


WRONG = [
    ("model_type", ["qwen2", "llama", "", None, 7, ["qwen3"]]),
    ("mask_token_id", [-1, 10**6, "3", 1.0, True]),
    ("eos_token_id", [-1, 10**6, "2", [2, -1], [None], {"id": 2}]),
    (
        "rms_norm_eps",
        [10**400, 1e-320, 1e300, 0, -1e-6, "tiny", None, float("nan"), float("inf"), True],
    ),
    ("tie_word_embeddings", ["yes", 1, None]),
    ("hidden_act", ["gelu", None, 1]),
    ("attention_bias", [True, "yes"]),
    ("use_sliding_window", [True]),
    ("num_key_value_heads", [7]),
    ("head_dim", [15]),
    (
        "rope_parameters",
        [[], "default", 3, {"rope_theta": "big"}, {"rope_theta": 10**400}, {"rope_theta": 0}, {}],
    ),
]
WRONG = [(field, value) for field, values in WRONG for value in values]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda v: str(v)[:20])
def test_wrong_values(field, value):
    if field == "rope_parameters" and not value:
        refused("rope_theta", rope_parameters=value)
    else:
        refused(field.split("_")[0], **{field: value})


ROPE = {"rope_theta": 1e4}


@pytest.mark.parametrize("kind", ["dynamic", "mrope", "su", "xpos", "proportional", 7])
def test_unknown_rope_types_by_name(kind):
    refused(re.escape(repr(kind)), rope_parameters={**ROPE, "rope_type": kind})
    refused(re.escape(repr(kind)), rope_theta=1e4, rope_scaling={"type": kind})


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": 1e-320}, "factor"),
        ({"rope_type": "yarn", "factor": 10**400}, "factor"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": 1e300}, "beta_fast"),
        ({"rope_type": "linear", "factor": "4"}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "yarn", "factor": 4, "beta_fast": "32"}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4, "beta_slow": 0}, "beta_slow"),
        ({"rope_type": "yarn", "factor": 4, "attention_factor": 2.0}, "attention_factor"),
        ({"rope_type": "yarn", "factor": 4, "truncate": False}, "truncate"),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1}, "original"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4.0}, "low_freq_factor"),
        ({"rope_type": "llama3", "factor": 8, "high_freq_factor": []}, "high_freq_factor"),
        ({"rope_type": "longrope"}, "short_factor"),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [1.0] * 7,
                "original_max_position_embeddings": 128,
            },
            "long_factor",
        ),
    ],
)
def test_rope_fields(rope, field):
    refused(field, rope_parameters={**ROPE, **rope})


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "mscale": None, "attention_factor": None},
        {"rope_type": "llama3", "factor": 8.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 128,
        },
    ],
)
def test_known_rope_types_build(rope):
    from orthrus_mlx.model import Model

    config = ModelConfig.from_dict({**random_config(head_dim=16), "rope_parameters": ROPE | rope})
    Model(config)


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"bits": 7, "group_size": 64}, "bits"),
        ({"bits": 4, "group_size": 48}, "group_size"),
        ({"bits": 4, "group_size": 64, "mode": "int4"}, "mode"),
        ({"bits": "4", "group_size": 64}, "bits"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ("4bit", "4bit"),
        ([], "quantization"),
    ],
)
@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
def test_quantization_records(field, record, match):
    refused(match, **{field: record})


@pytest.mark.parametrize("field", ["block_size", "mask_token_id"])
def test_plain_language_models_are_told_apart(field):
    refused("plain qwen3 checkpoint", NotOrthrusError, **{field: None})
    refused("plain llama checkpoint", NotOrthrusError, **{field: None, "model_type": "llama"})


def test_the_two_names_of_the_architecture():
    for name in ("qwen3", "orthrus"):
        assert ModelConfig.from_dict({**random_config(), "model_type": name}).model_type == "qwen3"


def test_a_checkpoint_of_the_other_name_loads_and_converts(tmp_path):
    shutil.copytree(DEMO, tmp_path / "orthrus")
    config = json.loads((DEMO / "config.json").read_text())
    (tmp_path / "orthrus" / "config.json").write_text(
        json.dumps(config | {"model_type": "orthrus"})
    )
    model, tokenizer = load(tmp_path / "orthrus")
    ids = tokenizer.encode("Hello")
    named, _ = load("demo")
    same = [list(mlx_generate(m, ids, (), 4, mode="parallel")) for m in (model, named)]
    assert same[0] == same[1]
    out = convert(tmp_path / "orthrus", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3"  # for mlx-lm


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen3_5"},
        {"model_type": "qwen3_5_moe"},
        {"model_type": "qwen3_5_text"},
        {"model_type": "qwen3_next"},
        {"layer_types": ["linear_attention", "full_attention"]},
        {"model_type": "orthrus", "layer_types": ["linear_attention"]},
    ],
)
@pytest.mark.parametrize("with_view", [True, False])
def test_hybrids_are_not_supported_yet(fields, with_view):
    fields = fields if with_view else {**fields, "block_size": None}
    refused(f"{fields.get('model_type', 'qwen3')}'.*not supported yet.*mlx-lm", **fields)


def test_only_a_base_that_can_be_trained_is_sent_to_train():
    refused("orthrus-mlx train", NotOrthrusError, block_size=None)
    with pytest.raises(NotOrthrusError) as caught:
        ModelConfig.from_dict({"model_type": "llama"})
    assert "train" not in str(caught.value)


def test_a_billion_layers_are_refused_at_once():
    start = time.process_time()
    refused("num_hidden_layers", num_hidden_layers=10**9)
    refused("vocab_size", vocab_size=10**12)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"[1, 2]", "should hold a JSON object, not a list"),
        (b'"qwen3"', "should hold a JSON object, not a str"),
        (b"\xff\xfe{}", "is UTF-16 text; save it as UTF-8"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"{}", "model_type"),
        (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read as JSON"),
    ],
    ids=["empty", "cut", "list", "string", "utf16", "digits", "nested", "no-fields", "lfs"],
)
def test_files_that_hold_no_config(tmp_path, content, match):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_no_config_at_all(tmp_path):
    with pytest.raises(IncompleteCheckpointError, match=r"config\.json is missing"):
        ModelConfig.from_folder(tmp_path)


def test_every_error_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**random_config(), "hidden_size": -1}))
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        ModelConfig.from_folder(tmp_path)
