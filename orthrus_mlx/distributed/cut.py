"""Which part of every tensor a rank holds, and whether a model can be cut so often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx

from ..checkpoint.config import ModelConfig
from ..checkpoint.tensors import TensorInfo, packing
from ..errors import DistributedError

# Cut by output rows (heads, MLP columns), and by input columns, whose products are added up.
BY_ROWS = (
    *("q_proj", "k_proj", "v_proj", "q_proj_diff", "k_proj_diff", "v_proj_diff"),
    *("gate_proj", "up_proj"),
)
BY_COLUMNS = ("o_proj", "o_proj_diff", "down_proj")
HEAD = "lm_head."  # rank 0 alone makes logits


class Share(NamedTuple):
    """What the ranks of a group hold.

    Attributes:
        ranks: how many there are.
        weights: bytes of the weights of rank 0, which holds the most.
        others: bytes of those of any other rank.
    """

    ranks: int
    weights: int
    others: int


def axis_of(name: str) -> int | None:
    """The axis along which a tensor is cut; None for one that every rank holds whole."""
    module = name.split(".")[-2] if "." in name else name
    return 0 if module in BY_ROWS else -1 if module in BY_COLUMNS else None


def check_cut(config: ModelConfig, tensors: Mapping[str, TensorInfo], ranks: int) -> None:
    """Refuse a number of ranks that a model cannot be cut into.

    Raises:
        DistributedError: saying what does not come out even, and which numbers would.
    """
    if fault := _fault(config, tensors, ranks):
        possible = [n for n in range(2, 33) if not _fault(config, tensors, n)]
        advice = f"It can be cut into {_listed(possible)}." if possible else "It cannot be cut."
        raise DistributedError(f"This model cannot be cut into {ranks}: {fault}. {advice}")


def _fault(config: ModelConfig, tensors: Mapping[str, TensorInfo], ranks: int) -> str:
    for count, what in (
        (config.num_key_value_heads, "heads for keys and values"),
        (config.num_attention_heads, "heads"),
        (config.intermediate_size, "columns of the MLP"),
    ):
        if count % ranks:
            return f"it has {count} {what}"
    columns = {
        "down_proj": config.intermediate_size,
        "o_proj": config.num_attention_heads * config.head_dim,
    }
    for name in tensors:
        path = name.removesuffix(".scales")
        if path == name or axis_of(name) != -1:
            continue
        inputs = columns[path.split(".")[-1].removesuffix("_diff")]
        group: int = packing(path, inputs, dict(tensors))["group_size"]
        if inputs // ranks % group:
            return f"{path} has {inputs} columns in groups of {group}"
    return ""


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def local_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The shape of one rank's part, which is a smaller model of as many layers."""
    return replace(
        config,
        num_attention_heads=config.num_attention_heads // ranks,
        num_key_value_heads=config.num_key_value_heads // ranks,
        intermediate_size=config.intermediate_size // ranks,
    )


def part_of(name: str, whole: mx.array, rank: int, ranks: int) -> mx.array:
    """A rank's part of a tensor, which takes no memory before it is evaluated."""
    axis = axis_of(name)
    if axis is None:
        return whole
    size = whole.shape[axis] // ranks
    own = slice(rank * size, (rank + 1) * size)
    return mx.contiguous(whole[own] if axis == 0 else whole[..., own])


def held_by(name: str, rank: int) -> bool:
    """Whether a rank holds any of a tensor."""
    return rank == 0 or not name.startswith(HEAD)


def share(tensors: Mapping[str, TensorInfo], ranks: int) -> Share:
    """What each rank would hold."""

    def held(rank: int) -> int:
        return sum(
            info.nbytes // (1 if axis_of(name) is None else ranks)
            for name, info in tensors.items()
            if held_by(name, rank)
        )

    return Share(ranks, held(0), held(1))


def possible_shares(
    config: ModelConfig, tensors: Mapping[str, TensorInfo], numbers: tuple[int, ...] = (2, 3, 4, 8)
) -> dict[int, Share | str]:
    """By number of ranks, what each would hold, or why the model cannot be cut so often."""
    found: dict[int, Share | str] = {}
    for ranks in numbers:
        fault: Any = _fault(config, tensors, ranks)
        found[ranks] = fault or share(tensors, ranks)
    return found
