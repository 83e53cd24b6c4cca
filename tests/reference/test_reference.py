"""The torch reference against trained golden ids, against Hugging Face, and against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference import hf_qwen3, orthrus_torch

EOS = 2  # tiny16's end token
LIMIT = 128  # above every golden answer

TINY_CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
    "block_size": 4,
    "mask_token_id": 63,
}
# 100 tokens: beyond the original context window of every YaRN config below.
LONG_TEXT = torch.randint(0, 60, (100,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture(scope="module")
def tiny16(tiny16_dir: Path) -> orthrus_torch.Model:
    return orthrus_torch.load(tiny16_dir)


@pytest.fixture(scope="module")
def hf_tiny16(tiny16_dir: Path) -> Any:
    return hf_qwen3.load(tiny16_dir)


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Weights of both views; matrices keep the scale of what they multiply, norms vary about 1."""
    rng = torch.Generator().manual_seed(seed)
    hidden, inner, D = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * D, config["num_key_value_heads"] * D
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (config["vocab_size"], hidden),
        "model.norm": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{n}_layernorm": (hidden,) for n in ("input", "post_attention")}
        shapes |= {f"{layer}.mlp.{n}_proj": (inner, hidden) for n in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj"] = (hidden, inner)
        for view in ("", "_diff"):
            shapes[f"{layer}.self_attn.q_proj{view}"] = (q, hidden)
            shapes[f"{layer}.self_attn.k_proj{view}"] = (kv, hidden)
            shapes[f"{layer}.self_attn.v_proj{view}"] = (kv, hidden)
            shapes[f"{layer}.self_attn.o_proj{view}"] = (hidden, q)
            shapes[f"{layer}.self_attn.q_norm{view}"] = (D,)
            shapes[f"{layer}.self_attn.k_norm{view}"] = (D,)
    return {
        f"{name}.weight": torch.randn(shape, generator=rng) * shape[-1] ** -0.5
        if len(shape) == 2
        else 1 + 0.2 * torch.randn(shape, generator=rng)
        for name, shape in shapes.items()
    }


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# ------------------------------------------------------------------------------ the golden answers


def test_greedy_ar_gives_the_golden_ids(
    tiny16: orthrus_torch.Model, tiny16_golden: list[dict[str, Any]]
) -> None:
    """Each token is the choice after all that precede it; step by step for some of them."""
    for n, case in enumerate(tiny16_golden):
        prompt, golden = case["prompt"], case["tokens"]
        choices = orthrus_torch.ar_logits(tiny16, prompt + golden)[len(prompt) - 1 : -1].argmax(-1)
        assert choices.tolist() == golden, case["question"]
        if n % 6 == 0:
            assert orthrus_torch.greedy_ar(tiny16, prompt, LIMIT, EOS) == golden, case["question"]


def test_greedy_two_pass_gives_the_golden_ids_and_most_drafts_stand(
    tiny16: orthrus_torch.Model, tiny16_golden: list[dict[str, Any]]
) -> None:
    accepted: list[int] = []
    for case in tiny16_golden:
        ids, agreed = orthrus_torch.greedy_two_pass(tiny16, case["prompt"], LIMIT, [EOS])
        assert ids == case["tokens"], case["question"]
        accepted += agreed
    # The ids would come out right with any drafts. 11.3 of 15 stand, as the view was trained for.
    assert tiny16.block_size == 16
    assert sum(accepted) / len(accepted) > 10


def test_hugging_face_agrees_with_every_golden_token(
    hf_tiny16: Any, tiny16_golden: list[dict[str, Any]]
) -> None:
    """One forward over prompt and answer: each token is the choice after all that precede it."""
    for case in tiny16_golden:
        logits = hf_qwen3.ar_logits(hf_tiny16, case["prompt"] + case["tokens"])
        choices = logits[len(case["prompt"]) - 1 : -1].argmax(-1)
        assert choices.tolist() == case["tokens"], case["question"]


def test_hugging_face_generates_the_golden_ids(
    hf_tiny16: Any, tiny16_golden: list[dict[str, Any]]
) -> None:
    for case in tiny16_golden[::6]:  # one of each kind
        ids = hf_qwen3.greedy_ar(hf_tiny16, case["prompt"], LIMIT, [EOS])
        assert ids == case["tokens"], case["question"]


# ------------------------------------------------------------------------- logits of both views


def test_ar_logits_match_hugging_face_on_the_trained_model(
    tiny16: orthrus_torch.Model, hf_tiny16: Any, tiny16_golden: list[dict[str, Any]]
) -> None:
    for case in tiny16_golden[::6]:
        ids = case["prompt"] + case["tokens"]
        ours, theirs = orthrus_torch.ar_logits(tiny16, ids), hf_qwen3.ar_logits(hf_tiny16, ids)
        assert relative_error(ours, theirs) < 1e-5


def test_draft_logits_match_hugging_face_on_the_trained_model(
    tiny16: orthrus_torch.Model,
    hf_tiny16: Any,
    tiny16_dir: Path,
    tiny16_golden: list[dict[str, Any]],
) -> None:
    config, tensors = orthrus_torch.read_checkpoint(tiny16_dir)
    diffusion = hf_qwen3.from_tensors(config, hf_qwen3.wear_diffusion(tensors))
    for case in tiny16_golden[::6]:
        prefix, anchor = case["prompt"], case["tokens"][0]
        block = [anchor] + [config["mask_token_id"]] * 15
        ours = orthrus_torch.draft_logits(tiny16, prefix, anchor, 16)
        theirs = hf_qwen3.draft_logits(hf_tiny16, diffusion, prefix, block)
        assert relative_error(ours, theirs) < 1e-5


# Every way to write rope down that the reference reads: older fields, then rope_parameters.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
ROPES: dict[str, dict[str, Any]] = {
    "theta alone": {"rope_theta": 1e6},
    "old linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "old yarn": {"rope_theta": 1e4, "rope_scaling": YARN},
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "yarn": {"rope_parameters": YARN | {"rope_theta": 1e4}},
    "yarn, window unnamed": {
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    },
    "yarn, betas": {
        "rope_parameters": YARN | {"rope_theta": 1e4, "beta_fast": 4, "beta_slow": 0.25}
    },
    "yarn, one limit": {
        "rope_parameters": YARN
        | {"rope_theta": 1e4, "beta_fast": 2, "beta_slow": 2, "truncate": False}
    },
    "yarn, limits not rounded": {"rope_parameters": YARN | {"rope_theta": 1e4, "truncate": False}},
    "yarn, scale given": {"rope_parameters": YARN | {"rope_theta": 1e4, "attention_factor": 1.5}},
    "yarn, scale in two parts": {
        "rope_parameters": YARN | {"rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.5}
    },
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_logits_match_hugging_face_with_each_kind_of_rope(rope: dict[str, Any]) -> None:
    config = {k: v for k, v in TINY_CONFIG.items() if k != "rope_parameters"} | rope
    tensors = random_tensors(config)
    ours = orthrus_torch.ar_logits(orthrus_torch.from_tensors(config, tensors), LONG_TEXT)
    theirs = hf_qwen3.ar_logits(hf_qwen3.from_tensors(config, tensors), LONG_TEXT)
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_both_views_match_hugging_face_with_an_untied_head(kv_heads: int) -> None:
    config = TINY_CONFIG | {"num_key_value_heads": kv_heads, "tie_word_embeddings": False}
    tensors = random_tensors(config, seed=kv_heads)
    ours = orthrus_torch.from_tensors(config, tensors)
    hf_ar = hf_qwen3.from_tensors(config, tensors)
    hf_diffusion = hf_qwen3.from_tensors(config, hf_qwen3.wear_diffusion(tensors))
    prefix, anchor = LONG_TEXT[:20], LONG_TEXT[20]

    expected = hf_qwen3.ar_logits(hf_ar, prefix)
    assert relative_error(orthrus_torch.ar_logits(ours, prefix), expected) < 1e-5
    expected = hf_qwen3.draft_logits(hf_ar, hf_diffusion, prefix, [anchor, 63, 63, 63])
    assert relative_error(orthrus_torch.draft_logits(ours, prefix, anchor), expected) < 1e-5


@pytest.mark.parametrize("prefix", [[], [5], LONG_TEXT[:9]], ids=len)
def test_a_block_of_one_with_copied_projections_is_the_ar_view(prefix: list[int]) -> None:
    """As training starts: alone in its block, the anchor sees what a causal row would."""
    tensors = random_tensors(TINY_CONFIG)
    copied = {k: tensors[k.replace("_diff", "")] for k in tensors}
    model = orthrus_torch.from_tensors(TINY_CONFIG, copied)
    draft = orthrus_torch.draft_logits(model, prefix, 11, block_size=1)
    assert relative_error(draft, orthrus_torch.ar_logits(model, [*prefix, 11])[-1:]) < 1e-5


# --------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("block_size", [1, 2, 7, 24])
def test_block_size_never_changes_the_ids(
    tiny16: orthrus_torch.Model, tiny16_golden: list[dict[str, Any]], block_size: int
) -> None:
    for case in tiny16_golden[5::14]:
        ids, accepted = orthrus_torch.greedy_two_pass(
            tiny16, case["prompt"], LIMIT, EOS, block_size
        )
        assert ids == case["tokens"], case["question"]
        assert all(0 <= a < block_size for a in accepted)
        # The first token comes from the prompt pass; the last cycle may reach beyond the end.
        kept = 1 + sum(a + 1 for a in accepted)
        assert kept - accepted[-1] <= len(ids) <= kept


@pytest.mark.parametrize("max_tokens", [0, 1, 2, 19])
def test_max_tokens_cuts_both_ways_of_decoding_alike(
    tiny16: orthrus_torch.Model, tiny16_golden: list[dict[str, Any]], max_tokens: int
) -> None:
    case = tiny16_golden[0]
    expected = case["tokens"][:max_tokens]
    assert orthrus_torch.greedy_ar(tiny16, case["prompt"], max_tokens, EOS) == expected
    ids, _ = orthrus_torch.greedy_two_pass(tiny16, case["prompt"], max_tokens, EOS)
    assert ids == expected


def test_decoding_stops_at_any_of_several_end_tokens(
    tiny16: orthrus_torch.Model, tiny16_golden: list[dict[str, Any]]
) -> None:
    case = tiny16_golden[0]
    early = case["tokens"][12]
    expected = case["tokens"][: case["tokens"].index(early) + 1]
    ends = [EOS, early]
    assert orthrus_torch.greedy_ar(tiny16, case["prompt"], LIMIT, ends) == expected
    assert orthrus_torch.greedy_two_pass(tiny16, case["prompt"], LIMIT, ends)[0] == expected


def test_untrained_drafts_rarely_stand_and_change_nothing() -> None:
    model = orthrus_torch.from_tensors(TINY_CONFIG, random_tensors(TINY_CONFIG))
    ids, accepted = orthrus_torch.greedy_two_pass(model, [1, 2, 3], 30, ())
    assert ids == orthrus_torch.greedy_ar(model, [1, 2, 3], 30, ())
    assert sum(accepted) < len(accepted)


# ---------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("layout", ["one file", "sharded", "diffusion tensors beside"])
def test_every_checkpoint_layout_holds_the_same_model(layout: str, tmp_path: Path) -> None:
    tensors = random_tensors(TINY_CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    if layout == "one file":
        save_file(tensors, tmp_path / "model.safetensors")
    elif layout == "sharded":
        shard_of = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(tensors)}
        for shard in set(shard_of.values()):
            save_file({k: t for k, t in tensors.items() if shard_of[k] == shard}, tmp_path / shard)
        index = {"metadata": {}, "weight_map": shard_of}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        diff = {k: t for k, t in tensors.items() if "_diff" in k}
        save_file(diff, tmp_path / "orthrus_diff.safetensors")
        rest = {k: t for k, t in tensors.items() if k not in diff}
        save_file(rest, tmp_path / "model.safetensors")

    loaded = orthrus_torch.load(tmp_path)
    assert loaded.weights.keys() == tensors.keys()
    assert all(torch.equal(loaded.weights[k], t) for k, t in tensors.items())
    theirs = hf_qwen3.ar_logits(hf_qwen3.load(tmp_path), LONG_TEXT)
    assert relative_error(orthrus_torch.ar_logits(loaded, LONG_TEXT), theirs) < 1e-5


def test_weights_may_be_numpy_arrays() -> None:
    tensors = random_tensors(TINY_CONFIG)
    arrays: dict[str, np.ndarray] = {k: t.numpy() for k, t in tensors.items()}
    for module in (orthrus_torch, hf_qwen3):
        from_torch = module.from_tensors(TINY_CONFIG, tensors)
        from_numpy = module.from_tensors(TINY_CONFIG, arrays)
        assert torch.equal(
            module.ar_logits(from_torch, LONG_TEXT), module.ar_logits(from_numpy, LONG_TEXT)
        )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-5), (torch.float16, 0.01), (torch.bfloat16, 0.05)],
    ids=str,
)
def test_other_dtypes_stay_near_float32(dtype: torch.dtype, tolerance: float) -> None:
    tensors = random_tensors(TINY_CONFIG)
    expected = orthrus_torch.from_tensors(TINY_CONFIG, tensors)
    model = orthrus_torch.from_tensors(TINY_CONFIG, tensors, dtype)
    ar = orthrus_torch.ar_logits(model, LONG_TEXT)
    assert ar.dtype == dtype
    assert relative_error(ar.double(), orthrus_torch.ar_logits(expected, LONG_TEXT)) < tolerance
    draft = orthrus_torch.draft_logits(model, LONG_TEXT, 7).double()
    assert relative_error(draft, orthrus_torch.draft_logits(expected, LONG_TEXT, 7)) < tolerance


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}},
        {"use_sliding_window": True},
        {"quantization": {"bits": 4, "group_size": 64}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_computed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="here"):
        orthrus_torch.from_tensors(TINY_CONFIG | change, random_tensors(TINY_CONFIG))
