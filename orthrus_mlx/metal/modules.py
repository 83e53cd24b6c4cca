"""Projections and heads whose products of a few rows run the kernels that were proven here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernels import DTYPES, Choice, Product, multiply, product_of


def _for_metal(stock: type, method: str) -> type:
    """A kind of module, with a method that runs the module's kernel where that is used."""
    plain = getattr(stock, method)

    def few_rows(self: Any, x: mx.array) -> Any:
        """[..., dim] -> [..., outputs]."""
        if fits(self, x):
            return multiply(self.choice.variant, self.choice.product, x, _weights(self))
        return plain(self, x)

    return type(f"Metal{stock.__name__}", (stock,), {method: few_rows})


HEADS = (nn.Embedding, nn.QuantizedEmbedding)  # where embeddings are tied
KINDS: dict[type, type] = {
    kind: _for_metal(kind, "__call__") for kind in (nn.Linear, nn.QuantizedLinear)
}
KINDS |= {kind: _for_metal(kind, "as_linear") for kind in HEADS}
STOCK = {ours: theirs for theirs, ours in KINDS.items()}


def fits(module: Any, x: mx.array) -> bool:
    """Whether the module's kernel is used for this product; it has no gradient."""
    product, dtype = module.choice.product, _weights(module)[-1].dtype
    return (
        x.size // product.dim in module.choice.rows
        and x.dtype == DTYPES[product.dtype] == dtype
        and not module.training
    )


def _weights(module: Any) -> tuple[mx.array, ...]:
    packed = "scales" in module
    return (module.weight, module.scales, module.biases) if packed else (module.weight,)


def products(model: Any) -> list[Product]:
    """The kinds of products that a model computes and the kernels can, each once."""
    found = dict[Product, None]()
    for module in model.modules():
        kind = STOCK.get(type(module), type(module))
        used = kind in KINDS and (kind not in HEADS or model.config.tie_word_embeddings)
        if used and (product := product_of(module)):
            found[product] = None
    return list(found)


def swap(model: Any, choices: Mapping[Product, Choice]) -> None:
    """Make every module whose product has a choice the one for Metal, and every other MLX's."""
    for module in model.modules():
        kind = STOCK.get(type(module), type(module))
        product = product_of(module) if choices and kind in KINDS else None
        choice = choices.get(product) if product else None
        module.__class__ = KINDS[kind] if choice else kind
        if choice:
            module.choice = choice


def as_stock(module: Any) -> Any:
    """A module that computes as MLX does, over the same weights."""
    if type(module) in STOCK:
        module = copy.copy(module)
        module.__class__ = STOCK[type(module)]
    return module
