"""Logits that no token can be chosen from end the answer with an error that says where from."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orthrus_mlx import GenerationError, LogitsError, Sampling, mlx_generate
from orthrus_mlx.decoding.choosers import KeyedChooser

from . import row_kernels
from .fake_model import FakeModel, plain_decoding
from .scenarios import WAYS

PROMPT = [1, 2, 3]


@pytest.mark.parametrize("value", [mx.nan, -mx.inf])
@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_a_broken_weight_is_named(mode: Any, cycle: Any, value: float) -> None:
    model = row_kernels.build(row_kernels.Model)
    weight = model.layers[1].mlp.down_proj.weight
    model.layers[1].mlp.down_proj.weight = mx.where(mx.ones_like(weight) > 0, value, weight)
    options: Any = {"mode": mode, "cycle": cycle, "calibrate": False}
    with pytest.raises(LogitsError, match=r"token 1 .*layers\.1\.mlp\.down_proj\.weight"):
        list(mlx_generate(model, PROMPT, (), 8, **options))


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_a_processor_that_leaves_no_token_is_named(mode: Any, cycle: Any, at: int) -> None:
    model = row_kernels.build(row_kernels.Model)
    written: list[int] = []

    def bans_all(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits * mx.nan if tokens.size - len(PROMPT) == at - 1 else logits

    def keeps(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits

    options: Any = {"mode": mode, "cycle": cycle, "calibrate": False}
    run = mlx_generate(model, PROMPT, (), 8, logits_processors=[keeps, bans_all], **options)
    with pytest.raises(LogitsError, match=r"logits_processors\[1\] \(bans_all\).*-inf\.$"):
        for token in run:
            written.append(token)
    assert written == list(mlx_generate(model, PROMPT, (), 8, mode="ar"))[: at - 1]


class EndsInNaN(FakeModel):
    """Its logits are NaN behind so many ids."""

    def _row(self, layers: Any) -> np.ndarray:
        row = super()._row(layers)
        return row if len(layers[0]) < 9 else row * np.nan


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_accepted_drafts_before_the_fault_are_handed_out(mode: Any, cycle: Any) -> None:
    model, written = EndsInNaN(block_size=6), list[int]()
    expected = plain_decoding(model, PROMPT, 6)
    model.script(PROMPT + expected, [True])
    run = mlx_generate(model, PROMPT, (), 20, mode=mode, cycle=cycle, calibrate=False)
    with pytest.raises(LogitsError, match="token 7 of the answer"):
        for token in run:
            written.append(token)
    assert written == expected


@pytest.mark.parametrize("result", [None, "numpy", "flat", "narrow"])
def test_what_a_processor_returns_is_checked(result: Any) -> None:
    def odd(tokens: mx.array, logits: mx.array) -> Any:
        kinds = {"numpy": np.array(logits), "flat": logits[0], "narrow": logits[:, :5]}
        return kinds.get(result)

    model = row_kernels.build(row_kernels.Model)
    with pytest.raises(GenerationError, match=r"logits_processors\[0\] \(odd\) returned"):
        list(mlx_generate(model, PROMPT, (), 8, logits_processors=[odd], calibrate=False))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=2, seed=1)])
def test_a_mask_of_all_but_one_token_is_fine(sampling: Sampling) -> None:
    logits = mx.full((1, 9), -mx.inf)
    logits[0, 4] = 1.0
    assert KeyedChooser(sampling).choose(logits, 3, ()).tokens.tolist() == [4]
