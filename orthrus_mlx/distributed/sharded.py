"""A rank's part of the model: fewer heads and columns, and one gather behind each sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.config import ModelConfig
from ..checkpoint.contents import Checkpoint
from ..checkpoint.fingerprint import Origin, outline
from ..checkpoint.read import ready
from ..checkpoint.tensors import packing
from ..model import Model, TransformerBlock
from ..rows import Rows
from .cut import HEAD, check_cut, held_by, local_config, part_of


def add_in_rank_order(part: mx.array, group: Any) -> mx.array:
    """The sum of all ranks' parts [1, L, dim]: rank 0's, plus rank 1's, and so on.

    MLX's `all_sum` adds in an order that depends on the size of the array, from 3 ranks on, so that
    a row would have other bits beside other rows. JACCL's adds large arrays in order of arrival.
    """
    parts = mx.distributed.all_gather(part, group=group)  # [ranks, L, dim]
    total = parts[0:1]
    for rank in range(1, parts.shape[0]):
        total = total + parts[rank : rank + 1]
    return total


class ShardedBlock(TransformerBlock):
    """One layer of a rank's part. What both views' rows came to is added up at once."""

    group: Any

    def __call__(self, x: mx.array, rows: Rows, caches: Sequence[Any]) -> mx.array:
        """As `TransformerBlock.__call__`: the same on every rank."""
        attended = self.self_attn(self.input_layernorm(x), rows, caches)
        h = x + add_in_rank_order(attended, self.group)
        return h + add_in_rank_order(self.mlp(self.post_attention_layernorm(h)), self.group)


class ShardedModel(Model):
    """A rank's part of a model.

    Attributes:
        alike: whether all ranks can pad and compile passes in the same way, as on CUDA; else none
            may, or what they add up would have other shapes.
    """

    alike = True

    def __init__(self, config: ModelConfig, group: Any):
        super().__init__(config)
        for layer in self.layers:
            layer.__class__ = ShardedBlock
            layer.group = group


def read_part(model: Any, checkpoint: Checkpoint, rank: int, ranks: int, lazy: bool = False) -> Any:
    """Read a rank's part of a checkpoint into its model: never more than one whole tensor at once.

    Args:
        model: a `ShardedModel` of `local_config`.
        checkpoint: a checked one.
        rank: whose part.
        ranks: how many there are.
        lazy: leave weights on disk until they are first used.
    """
    tensors = {name: info for name, info in checkpoint.tensors.items() if held_by(name, rank)}
    if rank and not checkpoint.config.tie_word_embeddings:
        model.pop(HEAD.rstrip("."))
    inputs = {  # columns of the whole weights, which packing is told by
        "down_proj": checkpoint.config.intermediate_size,
        "o_proj": checkpoint.config.num_attention_heads * checkpoint.config.head_dim,
    }

    def packed(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in tensors:
            return False
        name = path.split(".")[-1].removesuffix("_diff")
        return packing(path, inputs.get(name, module.weight.shape[-1]), tensors)

    nn.quantize(model, class_predicate=packed)
    weights = []
    for file in checkpoint.files:
        content = mx.load(str(file))
        assert isinstance(content, dict)
        for name in list(content):
            whole = content.pop(name)
            if name in tensors:
                part = part_of(name, whole, rank, ranks)
                if not lazy:
                    mx.eval(part)
                weights.append((name, part))
            del whole
    model.eval()
    model.load_weights(weights, strict=True)
    model.origin = Origin(checkpoint.fingerprint, outline(model))
    model.folder = checkpoint.folder
    return ready(model, lazy=lazy)


def config_of(checkpoint: Checkpoint, ranks: int) -> ModelConfig:
    """The shape of a part.

    Raises:
        DistributedError: if the model cannot be cut so often.
    """
    check_cut(checkpoint.config, checkpoint.tensors, ranks)
    return local_config(checkpoint.config, ranks)
