"""Random JSON Schemas, and constrained decoding one token at a time, apart from the engine's."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection
from importlib import resources
from pathlib import Path
from typing import Any

import llguidance
import mlx.core as mx
import numpy as np
from hypothesis import strategies as st
from llguidance.hf import from_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper

from orthrus_mlx import JsonSchema
from orthrus_mlx.checkpoint.read import load_tokenizer
from orthrus_mlx.decoding.constraints import described
from tests import helpers
from tests.lossless import random_models

VOCAB_SIZE = 1024  # rows of the head: more than the tokenizer has ids
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
NAMES = ("name", "age", "a", "tags", "ü")


@functools.cache
def demo_tokenizer() -> Any:
    """The bundled tokenizer: 1,020 ids, no tags."""
    with resources.as_file(resources.files("orthrus_mlx") / "demo") as folder:
        return load_tokenizer(Path(folder))


@functools.cache
def thinking_tokenizer() -> Any:
    """The bundled tokenizer, with Qwen3's tags as single ids."""
    with resources.as_file(resources.files("orthrus_mlx") / "demo") as folder:
        inner = load_tokenizer(Path(folder))._tokenizer
    inner.add_tokens(list(TAGS))
    return TokenizerWrapper(inner)


@functools.cache
def vocabulary(tokenizer: Any) -> Any:
    ends = sorted(tokenizer.eos_token_ids)
    return from_tokenizer(tokenizer._tokenizer, n_vocab=VOCAB_SIZE, eos_token=ends)


def matcher(tokenizer: Any, grammar: str) -> Any:
    found = llguidance.LLMatcher(vocabulary(tokenizer), grammar)
    assert not found.is_error(), found.get_error()
    return found


def allowed(matcher: Any) -> np.ndarray:
    """Which ids may come next, [VOCAB_SIZE], by a call that knows no drafts."""
    return np.frombuffer(matcher.compute_logit_bias(), np.uint8)[:VOCAB_SIZE] != 0


def one_by_one(
    tokenizer: Any, grammar: str, n_prompt: int, ends: Collection[int] | None = None
) -> Callable[[mx.array, mx.array], mx.array]:
    """A grammar as a logits processor: what every mode is held against."""
    state, seen = matcher(tokenizer, grammar), n_prompt
    own = sorted(tokenizer.eos_token_ids)
    ends = own if ends is None else sorted(ends)

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal seen
        ids: Any = tokens.tolist()
        if ids[seen:]:
            assert state.consume_tokens(ids[seen:]), state.get_error()
        seen = len(ids)
        may = allowed(state).copy()
        may_end = may[own[0]]
        may[own], may[ends] = False, may_end
        return mx.where(mx.array(may)[None], logits, -mx.inf)

    return processor


def grammar_of(schema: JsonSchema) -> str:
    return described([schema.body()])


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Any schema of the kinds that people write, whose answers are mostly short."""
    simple: list[dict[str, Any]] = [
        {"type": "string", "maxLength": draw(st.integers(0, 6))},
        {"type": "string", "pattern": draw(st.sampled_from(["^[a-z]{1,4}$", "^\\d{2,3}-x$"]))},
        {"type": "string", "format": "date"},
        {"type": "integer", "minimum": draw(st.integers(-20, 5)), "maximum": 300},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": draw(st.lists(st.sampled_from(["red", "green", 7, None, True]), min_size=1))},
        {"const": {"fixed": [1, "two"]}},
        {"type": ["integer", "null"], "minimum": 3, "maximum": 90},
    ]
    if depth == 0:
        return draw(st.sampled_from(simple))
    inner = schemas(depth=depth - 1)
    kind = draw(st.sampled_from(["simple", "object", "object", "object", "array", "anyOf", "ref"]))
    if kind == "simple":
        return draw(st.sampled_from(simple))
    if kind == "array":
        least = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(inner), "minItems": least, "maxItems": least + 2}
    if kind == "anyOf":
        return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}
    if kind == "ref":
        node = {"type": "object", "properties": {"v": draw(inner), "next": {"$ref": "#/$defs/n"}}}
        closed = {**node, "required": ["v"], "additionalProperties": False}
        return {"$defs": {"n": closed}, "$ref": "#/$defs/n"} if depth == 2 else draw(inner)
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: draw(inner) for name in names},
        "required": [name for name in names if draw(st.booleans())],
    }
    return {**found, "additionalProperties": False} if draw(st.integers(0, 4)) else found


@functools.cache
def model(seed: int, block_size: int) -> Any:
    """A random float32 model for this vocabulary, small and quick."""
    draw = random.Random(seed)
    config = helpers.random_config(
        seed,
        block_size=block_size,
        head_dim=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=draw.choice([1, 2]),
        num_key_value_heads=1,
        num_attention_heads=2,
        layer_types=None,
        vocab_size=VOCAB_SIZE,
    )
    weights = helpers.random_weights(config, seed=seed)
    if draw.random() < 0.5:
        weights = random_models.copy_projections(weights)  # drafts that are often right
    return random_models.build(config, weights)
