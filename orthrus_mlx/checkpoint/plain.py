"""The AR view as mlx-lm's own Qwen3."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


def plain_qwen3(model: Any) -> Any:
    """An `mlx_lm.models.qwen3.Model` that holds the AR view's modules: no weight is copied.

    Args:
        model: an `orthrus_mlx.model.Model`, quantized or not.
    """
    from mlx_lm.models import qwen3

    from ..metal.modules import as_stock
    from ..model import own_random_state

    config = model.config
    args = qwen3.ModelArgs(
        model_type="qwen3",
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        vocab_size=config.vocab_size,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_word_embeddings,
        rope_scaling=config.rope_scaling,
    )
    with own_random_state():
        plain: Any = qwen3.Model(args)
    ours = dict(model.named_modules())
    leaves: Any = tree_flatten(plain.leaf_modules(), is_leaf=nn.Module.is_module)
    shared = [(name, as_stock(ours[name])) for name, module in leaves if "weight" in module]
    plain.update_modules(tree_unflatten(shared))
    plain.eval()
    return plain
