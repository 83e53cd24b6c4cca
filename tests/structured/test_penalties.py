"""Penalties over a whole block are mlx-lm's, one row after the other, bit for bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.sample_utils import make_logits_processors

from orthrus_mlx import mlx_generate
from orthrus_mlx.decoding.penalties import Penalties
from tests.amount import few
from tests.lossless import random_models

some = st.none() | st.sampled_from([0.0, 1.0, 1.3, 0.37])
context = st.sampled_from([1, 2, 5, 20, 100])


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """As `mlx_lm.sample_utils.make_logits_processors` takes them."""
    names = ("repetition", "presence", "frequency")
    return {
        "logit_bias": draw(st.dictionaries(st.integers(0, 16), st.floats(-5, 5, width=16))),
        **{f"{name}_penalty": draw(some) for name in names},
        **{f"{name}_context_size": draw(context) for name in names},
    }


def ours(given: dict[str, Any]) -> Penalties:
    return Penalties(
        given["logit_bias"],
        given["repetition_penalty"],
        given["presence_penalty"],
        given["frequency_penalty"],
        given["repetition_context_size"],
        given["presence_context_size"],
        given["frequency_context_size"],
    )


ids = st.lists(st.integers(0, 16), max_size=30)


@given(options(), ids, st.lists(st.integers(0, 16), min_size=1, max_size=9), st.integers(0, 99))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_rows_of_a_block(
    dtype: mx.Dtype, given: dict[str, Any], text: list[int], before: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = mx.array(rng.standard_normal((len(before), 17), np.float32)).astype(dtype)
    rows = []
    for j in range(len(before)):
        row = logits[j : j + 1]
        for processor in make_logits_processors(**given):
            row = processor(mx.array([*text, *before[: j + 1]]), row)
        rows.append(row.astype(mx.float32))
    expected = mx.concatenate(rows)
    for where in (before, mx.array(before)):  # known here, or to the device alone
        got = ours(given).apply(logits, text, where).astype(mx.float32)
        assert mx.array_equal(got, expected, equal_nan=True)


@settings(max_examples=few(12, of=200))
@given(random_models.models(), options(), ids.filter(bool), st.data())
def test_every_mode_writes_what_processors_make_of_plain_decoding(
    shaped: Any, given: dict[str, Any], prompt: list[int], data: st.DataObject
) -> None:
    lm = random_models.build(*shaped)
    more = {"temperature": data.draw(st.sampled_from([0.0, 0.8])), "seed": 3, "max_tokens": 30}
    processors = make_logits_processors(**given)
    plain = list(mlx_generate(lm, prompt, 2, mode="ar", logits_processors=processors, **more))
    for way in (
        {"mode": "ar"},
        {"mode": "parallel"},
        {"mode": "parallel", "cycle": "one-pass"},
        {"mode": "auto", "calibrate": False},
    ):
        assert list(mlx_generate(lm, prompt, 2, **way, **given, **more)) == plain, way
