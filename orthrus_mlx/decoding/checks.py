"""The checks of a request: model, block size, KV cache, ids, room in the context, end tokens.

`checked_X` returns X in the form that decoding takes. What is unusable raises an error that says
what to pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..checkpoint.config import ModelConfig
from ..errors import ContextLengthError, GenerationError, PromptError
from ..rows import Cache
from .cache import KV_BITS, KV_GROUP_SIZES, KVQuantization
from .options import GenerationOptions


def checked_model(model: Any) -> Any:
    """The model, if it can do what decoding asks of one."""
    if not all(hasattr(model, name) for name in ("config", "forward", "make_cache")):
        raise GenerationError(
            f"The model is a {type(model).__module__}.{type(model).__name__}; expected one from "
            "orthrus_mlx.load."
        )
    return model


def checked_block_size(config: ModelConfig, asked: int | None) -> int:
    """Rows of the largest block to draft: as asked, or the checkpoint's."""
    if asked is not None and asked > config.block_size:
        raise GenerationError(
            f"block_size is {asked}; this model was trained to draft blocks of at most "
            f"{config.block_size} rows."
        )
    return config.block_size if asked is None else asked


def check_cache(cache: Cache, own: Cache, n_kv_heads: int, head_dim: int) -> None:
    """Refuse a cache that a model cannot continue, or that cannot be rolled back.

    Args:
        cache: one layer's cache for each of the model's layers.
        own: a fresh one of the model's own.
        n_kv_heads: the model's key and value heads.
        head_dim: values of each.

    Raises:
        GenerationError: naming the layer, and what to pass.
    """
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    advice = "Make one with `model.make_cache()`."
    if not isinstance(cache, list):
        raise GenerationError(
            f"The prompt cache is a {type(cache).__name__}; expected a list. {advice}"
        )
    if len(cache) != len(own):
        raise GenerationError(
            f"The prompt cache has {len(cache)} layers, and this model {len(own)}: it was made for "
            f"another model. {advice}"
        )
    for i, layer in enumerate(cache):
        name = type(layer).__name__
        if type(layer) not in (type(own[0]), KVCache, QuantizedKVCache):
            fault = (
                f"is a {name}; drafts need a KVCache or QuantizedKVCache, which can be rolled back"
            )
        elif type(layer) is not type(cache[0]):
            fault = f"is a {name}, and layer 0 a {type(cache[0]).__name__}"
        elif any(layer is other for other in cache[:i]):
            fault = "is the same object as an earlier layer's"
        elif not isinstance(layer.offset, int) or layer.offset < 0:
            fault = f"has an offset of {layer.offset!r}"
        elif layer.offset != cache[0].offset:
            fault = f"holds {layer.offset} tokens, and layer 0 {cache[0].offset}"
        else:
            fault = _shape_fault(layer, n_kv_heads, head_dim)
        if fault:
            raise GenerationError(f"Layer {i} of the prompt cache {fault}. {advice}")


def _shape_fault(layer: Any, n_kv_heads: int, head_dim: int) -> str:
    """What is wrong with a layer's arrays; empty if nothing is."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    if not isinstance(layer, KVCache | QuantizedKVCache):
        return ""
    if isinstance(layer, QuantizedKVCache) and (
        layer.bits not in KV_BITS
        or layer.group_size not in KV_GROUP_SIZES
        or head_dim % layer.group_size
    ):
        return f"has {layer.bits!r} bits and groups of {layer.group_size!r}, which cannot be used"
    for which in ("keys", "values"):
        held: Any = getattr(layer, which)
        if held is None and not layer.offset:
            continue
        if held is None:
            return f"has no {which}"
        widths = [head_dim]
        if isinstance(layer, QuantizedKVCache):
            groups = head_dim // layer.group_size
            widths = [head_dim * layer.bits // 32, groups, groups]
        parts = [held] if isinstance(layer, KVCache) else held
        if not isinstance(parts, list | tuple) or len(parts) != len(widths):
            return f"has {which} of another kind"
        for part, width in zip(parts, widths, strict=True):
            if not isinstance(part, mx.array):
                return f"has no {which}"
            if width == head_dim and not mx.issubdtype(part.dtype, mx.floating):
                return f"has {which} of {part.dtype}"
            wanted = (1, n_kv_heads, "N", width)
            fits = part.ndim == 4 and part.shape[2] >= layer.offset
            if not fits or part.shape[:2] != wanted[:2] or part.shape[3] != width:
                return (
                    f"has {which} of shape {part.shape}, and this model {wanted} with N of "
                    f"{layer.offset} or more"
                )
    return ""


def checked_quantization(
    options: GenerationOptions, cache: Cache, head_dim: int
) -> KVQuantization | None:
    """How the KV cache is to be quantized; None where it is not, or is as it stands."""
    held_bits = getattr(cache[0], "bits", None)
    if held_bits is not None and options.numerics == "exact":
        raise GenerationError(
            'The prompt cache is quantized, and numerics="exact" promises nothing over such a '
            "cache: the probe compares passes over one that is not."
        )
    if held_bits is not None and options.kv_bits not in (None, held_bits):
        raise GenerationError(
            f"The prompt cache is quantized to {held_bits} bits already, and kv_bits is "
            f"{options.kv_bits}. Leave kv_bits out, or read the prompt again."
        )
    if options.kv_bits is None:
        return None
    _check_quantization(options.kv_bits, options.kv_group_size, head_dim)
    return KVQuantization(options.kv_bits, options.kv_group_size, options.quantized_kv_start)


def _check_quantization(bits: int, group_size: int, head_dim: int) -> None:
    """Refuse a quantized KV cache that this device cannot attend over, as MLX's CUDA backend.

    Raises:
        GenerationError: naming the bits.
    """
    if head_dim % group_size:
        raise GenerationError(
            f"kv_group_size is {group_size}, which does not divide this model's head_dim of "
            f"{head_dim}."
        )
    row = mx.ones((1, 1, 1, head_dim))
    try:
        held = mx.quantize(mx.ones((1, 1, 8, head_dim)), group_size, bits)
        mx.eval(mx.quantized_matmul(row, *held, group_size=group_size, bits=bits))
    except RuntimeError as error:
        raise GenerationError(
            f"MLX cannot attend over a KV cache of {bits} bits on {mx.default_device()}: leave "
            f"kv_bits out. ({error})"
        ) from error


def checked_ids(
    prompt_tokens: Sequence[int] | mx.array, vocab_size: int, name: str = "prompt_tokens"
) -> list[int]:
    """Ids of this vocabulary, at least one, as a list; `name` is what errors call them."""
    if isinstance(prompt_tokens, mx.array) and prompt_tokens.ndim != 1:
        raise PromptError(
            f"{name} has shape {prompt_tokens.shape}; expected one dimension (one prompt)."
        )
    ids: Any = prompt_tokens
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise PromptError(
            f"{name} is {ids!r}; expected a list of token ids. Encode text with the "
            "tokenizer, or give it to stream_generate."
        )
    ids = ids.tolist() if isinstance(ids, mx.array) else list(ids)
    if not ids:
        raise PromptError("The prompt is empty; give at least one token.")
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise PromptError(f"{name}[{place}] is {token!r}; expected token ids.")
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"{name}[{place}] is {token}; this model's ids go from 0 to "
                f"{vocab_size - 1}. Was the prompt encoded with another tokenizer?"
            )
    return [int(token) for token in ids]


def room_to_answer(config: ModelConfig, cached: int, prompt: int) -> int:
    """Tokens that the context holds after `cached` ones and a prompt of so many; at least one."""
    room = config.max_position_embeddings - cached - prompt
    if room < 1:
        after = f" after {cached} cached ones" if cached else ""
        raise ContextLengthError(
            f"The prompt has {prompt} tokens{after}, and this model's context holds "
            f"{config.max_position_embeddings} with at least one to answer in. Shorten the "
            "prompt, or start a new conversation.",
            tokens=cached + prompt,
            limit=config.max_position_embeddings - 1,
        )
    return room


def split_written(
    text: Sequence[int], written: Sequence[int], vocab_size: int
) -> tuple[list[int], list[int]]:
    """The ids before the answer, and those of the answer that earlier calls wrote."""
    ids = checked_ids(written, vocab_size, "written") if written else []
    start = len(text) - len(ids)
    if list(text[start:]) != ids:
        raise PromptError("The prompt does not end with the ids of written=.")
    return list(text[:start]), ids


def checked_ends(name: str, ends: Any) -> frozenset[int]:
    """The ids that end an answer: one, several or none."""
    ids = as_list(ends)
    if not all(hasattr(token, "__index__") and not isinstance(token, bool) for token in ids):
        raise GenerationError(f"{name} is {ends!r}; expected a token id, or a list of ids.")
    return frozenset(int(token) for token in ids)


def as_list(values: Any) -> list[Any]:
    """A list of values; of one, where one was given."""
    one = isinstance(values, str | Mapping) or not isinstance(values, Iterable)
    return [values] if one else list(values)
