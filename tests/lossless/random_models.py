"""Small random dual-view models, in MLX and as the torch reference, built in memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from orthrus_mlx import ModelConfig
from orthrus_mlx.model import Model
from tests import helpers
from tests.reference import orthrus_torch

Weights = dict[str, mx.array]

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]


def build(config: dict[str, Any], weights: Weights) -> Any:
    """The model under test."""
    model = Model(ModelConfig.from_dict(config))
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model


def reference(config: dict[str, Any], weights: Weights) -> orthrus_torch.Model:
    """The same in torch."""
    return orthrus_torch.from_tensors(config, {k: np.array(w) for k, w in weights.items()})


def favour_one_token(
    config: dict[str, Any], weights: Weights, bias: float, token: int = 5
) -> Weights:
    """Weights under which both views choose one token more often than not, so that drafts stand.

    The first hidden dimension is kept out of the layers and holds a constant, on which the head
    hangs a bias for that token.
    """
    dim, level = config["hidden_size"], 2.0
    first = mx.arange(dim) == 0
    favoured = mx.arange(config["vocab_size"]) == token
    changed = {}
    for name, w in weights.items():
        if name.endswith("layernorm.weight"):
            w = mx.where(first, 0, 1.5 * w)
        elif ".o_proj" in name or ".down_proj" in name:
            w = mx.where(first[:, None], 0, w)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            w = mx.where(first, level * (1 + favoured[:, None]), w)
        elif name == "model.norm.weight":
            w = mx.where(first, bias / level**2, w)
        changed[name] = w
    return changed


def copy_projections(weights: Weights) -> Weights:
    """Weights as training starts: the diffusion view's projections are the AR view's."""
    return {name: weights[name.replace("_diff", "")] for name in weights}


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, Any], Weights]:
    """Any shape, rope and block size; drafters from useless to good."""
    kv_heads = draw(st.integers(1, 3))
    config = helpers.random_config(
        block_size=draw(st.integers(2, 9)),
        head_dim=draw(st.sampled_from([4, 8, 16])),
        hidden_size=draw(st.sampled_from([16, 24, 32])),
        intermediate_size=draw(st.sampled_from([16, 40])),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        rope_parameters=draw(st.sampled_from(ROPES)),
        tie_word_embeddings=draw(st.booleans()),
        vocab_size=draw(st.integers(17, 70)),
        layer_types=None,
    )
    weights = helpers.random_weights(config, seed=draw(st.integers(0, 1 << 16)))
    if draw(st.booleans()):
        weights = favour_one_token(config, weights, draw(st.sampled_from([5.0, 9.0, 16.0])))
    if draw(st.booleans()):
        weights = copy_projections(weights)
    return config, weights
