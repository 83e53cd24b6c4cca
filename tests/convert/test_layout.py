"""What `convert` writes: plain Qwen3 to stock mlx-lm, both views to us, nothing lost on the way."""

import json
from dataclasses import replace

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import qwen3
from mlx_lm.utils import quantize_model

from orthrus_mlx import ConversionError, TensorError, load, mlx_generate
from orthrus_mlx.checkpoint import write
from orthrus_mlx.checkpoint.info import describe
from orthrus_mlx.checkpoint.read import inspect, load_model
from orthrus_mlx.convert import convert
from orthrus_mlx.model import is_diffusion
from tests.helpers import random_config, random_weights, write_checkpoint

# name: (options, how every matrix is packed)
QUANTIZATIONS = {
    "4-bit": ({}, (64, 4, "affine")),
    "4-bit-32": ({"q_group_size": 32}, (32, 4, "affine")),
    "8-bit": ({"q_bits": 8}, (64, 8, "affine")),
    "mxfp4": ({"q_mode": "mxfp4"}, (32, 4, "mxfp4")),
    "mxfp8": ({"q_mode": "mxfp8"}, (32, 8, "mxfp8")),
    "nvfp4": ({"q_mode": "nvfp4"}, (16, 4, "nvfp4")),
}


def tensors(folder):
    content = {}
    for file in folder.glob("*.safetensors"):
        content |= mx.load(str(file))
    return content


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bool(mx.all(a == b))


def model_of(folder):
    return load_model(inspect(folder))


@pytest.fixture(scope="module")
def converted(tiny16_dir, tmp_path_factory):
    """tiny16 in bfloat16, and in every quantization; made once."""
    made = {}

    def make(name):
        if name not in made:
            options = {"quantize": True, **QUANTIZATIONS[name][0]} if name != "bf16" else {}
            made[name] = convert(tiny16_dir, tmp_path_factory.mktemp("mlx") / name, **options)
        return made[name]

    return make


# Must show: loads in stock mlx-lm and gives greedily our ids; parallel == AR on it


@pytest.mark.parametrize("name", ["bf16", *QUANTIZATIONS])
def test_stock_mlx_lm_gives_the_same_ids(converted, tiny16_golden, name):
    folder = converted(name)
    stock, _ = mlx_lm.load(str(folder))
    assert type(stock) is qwen3.Model
    ours, _ = load(folder)
    prompt, count = tiny16_golden[44]["prompt"], 10
    if name not in ("bf16", "4-bit"):  # less of it: MLX's packed products are slow on a CPU
        prompt, count, ours.config = prompt[:4], 6, replace(ours.config, block_size=3)
    steps = generate_step(mx.array(prompt), stock, max_tokens=count)
    expected = [int(token) for token, _ in steps]  # which knows no end tokens; neither shall we
    ar = list(mlx_generate(ours, prompt, [], max_tokens=count, mode="ar"))
    parallel = list(mlx_generate(ours, prompt, [], max_tokens=count, mode="parallel"))
    assert ar == expected
    assert parallel == ar


def test_unquantized_gives_the_golden_ids(tiny16_dir, tiny16_golden, tmp_path):
    model, _ = load(convert(tiny16_dir, tmp_path / "f32", dtype="float32"))
    case = tiny16_golden[44]
    expected = case["tokens"]
    assert list(mlx_generate(model, case["prompt"], [], max_tokens=len(expected))) == expected


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_packs_what_mlx_lm_packs_bit_for_bit(converted, tiny16_dir, name):
    """mlx-lm's own quantization of the same AR weights, tensor by tensor, and its record."""
    config = json.loads((tiny16_dir / "config.json").read_text())
    group_size, bits, mode = QUANTIZATIONS[name][1]
    plain = {k: v for k, v in tensors(tiny16_dir).items() if not is_diffusion(k)}
    stock = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    stock.load_weights(list(plain.items()))
    stock, stock_config = quantize_model(stock, config, group_size, bits, mode=mode)
    expected = dict(tree_flatten(stock.parameters()))

    written = {k: v for k, v in tensors(converted(name)).items() if not is_diffusion(k)}
    assert written.keys() == expected.keys()
    assert [k for k in expected if not same(written[k], expected[k])] == []
    record = json.loads((converted(name) / "config.json").read_text())
    assert record["quantization"] == stock_config["quantization"]
    assert record["quantization_config"] == stock_config["quantization_config"]


# Files


def test_the_diffusion_view_lies_apart(converted):
    for name in ("bf16", "4-bit"):
        folder = converted(name)
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        ar = mx.load(str(folder / "model.safetensors"))
        diffusion = mx.load(str(folder / "orthrus_diff.safetensors"))
        assert index["weight_map"] == dict.fromkeys(sorted(ar), "model.safetensors")
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in ar.values())
        assert index["metadata"]["total_parameters"] == 4_632_576
        assert not any(map(is_diffusion, ar))
        assert all(map(is_diffusion, diffusion))


def test_config_is_plain_qwen3_and_still_ours(converted, tiny16_dir):
    source = json.loads((tiny16_dir / "config.json").read_text())
    config = json.loads((converted("bf16") / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "auto_map" not in config
    assert "quantization" not in config
    assert config["rope_theta"] == source["rope_parameters"]["rope_theta"]
    kept = source.keys() - {"auto_map", "architectures"}
    assert {k: config[k] for k in kept} == {k: source[k] for k in kept}


def test_tokenizer_and_generation_config_come_along(converted, tiny16_dir):
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (converted("4-bit") / file).read_bytes() == (tiny16_dir / file).read_bytes()
    assert (converted("4-bit") / "generation_config.json").exists()


def test_nothing_else_comes_along(tiny16_dir, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny16_dir.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    for name in ("modeling_orthrus.py", "pytorch_model.bin", "training_args.bin", ".env"):
        (source / name).write_text("x")
    (source / "__pycache__").mkdir()
    folder = convert(source, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "orthrus_diff.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_model_card(tiny16_dir, tmp_path):
    from huggingface_hub import ModelCard

    card = ModelCard.load(convert(tiny16_dir, tmp_path / "mine", quantize=True) / "README.md")
    assert card.data.library_name == "mlx"
    assert {"mlx", "orthrus", "4-bit"} <= set(card.data.tags)
    assert "orthrus-mlx chat --model mine" in card.text
    assert "from mlx_lm import generate, load" in card.text
    assert str(tmp_path) not in card.content  # nothing of this machine


def test_card_snippets_run(converted, capsys, monkeypatch):
    """What the card tells people to do works, in orthrus-mlx and in stock mlx-lm."""
    folder = converted("bf16")
    text = (folder / "README.md").read_text()
    monkeypatch.chdir(folder.parent)
    snippets = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(snippets) == 2
    printed = []
    for snippet in snippets:
        exec(
            snippet.replace("max_tokens=256", "max_tokens=12").replace(
                "prompt=prompt)", "prompt=prompt, max_tokens=12)"
            ),
            {},
        )
        printed.append(capsys.readouterr().out.strip())
    assert printed[0]
    assert printed[0] == printed[1]


# Numbers


@pytest.mark.parametrize("seed", range(6))
def test_every_value_arrives(tmp_path, seed):
    """Random shapes, tied or not, in one to three shards; output shards small enough to be many."""
    config = random_config(seed)
    weights = random_weights(config, seed, [mx.float32, mx.bfloat16, mx.float16][seed % 3])
    source = write_checkpoint(tmp_path / "source", config, weights, shards=1 + seed % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "MAX_SHARD_GB", 0)  # a file for each tensor
        folder = convert(source, tmp_path / "out")
    files = sorted(path.name for path in folder.glob("model-*"))
    assert files == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert len(files) > 1
    written = tensors(folder)
    assert written.keys() == weights.keys()
    assert all(same(written[name], weights[name]) for name in weights)
    assert inspect(folder).config == inspect(source).config


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("quantize", [False, True])
def test_dtype(tmp_path, dtype, quantize):
    config = random_config(0, hidden_size=64)
    weights = random_weights(config)
    source = write_checkpoint(tmp_path / "source", config, weights)
    folder = convert(source, tmp_path / "out", dtype=dtype, quantize=quantize)
    types = {str(a.dtype) for a in tensors(folder).values()}
    assert types == {f"mlx.core.{dtype}"} | ({"mlx.core.uint32"} if quantize else set())
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    norm = tensors(folder)["model.norm.weight"]
    assert same(norm, weights["model.norm.weight"].astype(getattr(mx, dtype)))


def test_float16_overflow_is_refused_by_name(tmp_path):
    config = random_config(0, hidden_size=64)
    weights = random_weights(config)
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    source = write_checkpoint(tmp_path / "source", config, weights)
    with pytest.raises(ConversionError, match=r"model\.norm\.weight holds values beyond float16"):
        convert(source, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def view_types(folder):
    """What the matrices of each view are stored as."""
    return {name: next(iter(view.stored_as)) for name, view in describe(folder).views.items()}


@pytest.mark.parametrize(
    ("options", "ar", "diffusion"),
    [
        ({"quantize": True}, "affine, 4 bits, groups of 64", "affine, 4 bits, groups of 64"),
        ({"quantize": True, "diffusion_q_bits": 0}, "affine, 4 bits, groups of 64", "bfloat16"),
        (
            {"quantize": True, "q_bits": 8, "q_group_size": 32, "diffusion_q_bits": 4},
            "affine, 8 bits, groups of 32",
            "affine, 4 bits, groups of 32",
        ),
        ({"diffusion_q_bits": 4}, "bfloat16", "affine, 4 bits, groups of 64"),
        ({"diffusion_q_bits": 8, "q_group_size": 32}, "bfloat16", "affine, 8 bits, groups of 32"),
        (
            {"quantize": True, "q_mode": "mxfp4", "diffusion_q_bits": 8},
            "mxfp4, 4 bits, groups of 32",
            "affine, 8 bits, groups of 64",
        ),
        (
            {"quantize": True, "q_mode": "mxfp8", "diffusion_q_bits": 8},
            "mxfp8, 8 bits, groups of 32",
            "mxfp8, 8 bits, groups of 32",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_diffusion_view_has_bits_of_its_own(tiny16_dir, tmp_path, options, ar, diffusion):
    folder = convert(tiny16_dir, tmp_path / "out", **options)
    assert view_types(folder) == {"shared": ar, "ar": ar, "diffusion": diffusion}
    assert ("quantization" in json.loads((folder / "config.json").read_text())) == bool(
        options.get("quantize")
    )
    model, ids = model_of(folder), [5, 9]
    model.config = replace(model.config, block_size=2)
    ar_ids, parallel_ids = (
        list(mlx_generate(model, ids, [], max_tokens=3, mode=mode)) for mode in ("ar", "parallel")
    )
    assert ar_ids == parallel_ids
    stock, _ = mlx_lm.utils.load_model(folder)
    assert bool(mx.all(stock(mx.array([ids])) == model(mx.array([ids]))))


def test_matrices_that_do_not_divide_into_groups_stay_whole(tmp_path):
    """As mlx-lm does it: of hidden size 96, groups of 64 fit the MLP's 128 inputs alone."""
    config = random_config(0, hidden_size=96, intermediate_size=128, head_dim=8)
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    weights = random_weights(config, dtype=mx.bfloat16)
    del config["auto_map"]
    folder = convert(
        write_checkpoint(tmp_path / "source", config, weights),
        tmp_path / "out",
        quantize=True,
        diffusion_q_bits=0,
    )
    packed = {name for name in tensors(folder) if name.endswith(".scales")}
    assert packed == {
        f"model.layers.{i}.mlp.down_proj.scales" for i in range(config["num_hidden_layers"])
    }
    stock, _ = mlx_lm.utils.load_model(folder)
    ids = mx.array([[1, 5, 9]])
    assert bool(mx.all(stock(ids) == model_of(folder)(ids)))


def test_yarn_reaches_stock_mlx_lm_as_we_read_it(tmp_path):
    """Hugging Face lets YaRN's original length default to the context; mlx-lm would take 4,096."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    config = random_config(2, rope_parameters=rope)
    source = write_checkpoint(tmp_path / "source", config, random_weights(config))
    folder = convert(source, tmp_path / "out")
    stock, _ = mlx_lm.utils.load_model(folder)
    ids = mx.array([[1, 5, 9, 3]])
    assert bool(mx.all(stock(ids) == model_of(folder)(ids)))
    assert bool(mx.all(model_of(source)(ids) == model_of(folder)(ids)))


def test_our_own_layout_converts_too(converted, tmp_path):
    again = convert(converted("bf16"), tmp_path / "again", quantize=True)
    first, second = tensors(converted("4-bit")), tensors(again)
    assert first.keys() == second.keys()
    assert all(same(first[name], second[name]) for name in first)


# Refusals


@pytest.mark.parametrize("options", [{}, {"quantize": True}, {"dtype": "float16"}])
def test_packed_sources_are_refused(converted, tmp_path, options):
    with pytest.raises(ConversionError, match="quantized already"):
        convert(converted("4-bit"), tmp_path / "out", **options)


def test_nothing_to_quantize(tmp_path):
    config = random_config(0, hidden_size=48, intermediate_size=48, head_dim=8)
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    source = write_checkpoint(tmp_path / "source", config, random_weights(config))
    with pytest.raises(ConversionError, match="smaller q_group_size"):
        convert(source, tmp_path / "out", quantize=True)


def test_unsound_sources_are_refused_before_any_work(tiny16_dir, tmp_path):
    config = random_config(0)
    weights = random_weights(config)
    weights.pop("model.norm.weight")
    source = write_checkpoint(tmp_path / "source", config, weights)
    with pytest.raises(TensorError, match=r"missing: model\.norm\.weight"):
        convert(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"q_bits": 4}, "no effect without"),
        ({"q_group_size": 32}, "no effect without"),
        ({"q_mode": "mxfp4"}, "no effect without"),
        ({"quantize": True, "q_bits": 7}, r"^q_bits is 7; .*\(2, 3"),
        ({"quantize": True, "q_bits": 0}, r"^q_bits is 0; .*\(2, 3"),
        ({"quantize": True, "q_group_size": 16}, "q_group_size is 16"),
        ({"quantize": True, "q_mode": "int4"}, "q_mode is 'int4'"),
        ({"quantize": True, "q_mode": "mxfp4", "q_bits": 8}, "mxfp4 has 4 bits"),
        ({"quantize": True, "q_mode": "nvfp4", "q_group_size": 32}, "nvfp4 has 4 bits"),
        ({"quantize": True, "diffusion_q_bits": 7}, "diffusion_q_bits is 7"),
        ({"diffusion_q_bits": -1}, r"diffusion_q_bits is -1; .*\(0, 2"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"upload_repo": "no owner"}, "upload_repo is 'no owner'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, match):
    """Refused before the source is even looked for."""
    with pytest.raises(ConversionError, match=match):
        convert("nobody/nothing", tmp_path / "out", **options)
