"""The trained checkpoint: both cycles write the ids of plain decoding and of the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from orthrus_mlx import DecodeStats, load, mlx_generate
from tests.amount import few
from tests.helpers import draft, verify, verify_and_draft
from tests.reference import orthrus_torch

from .scenarios import CYCLES

EOS = 2
LIMIT = 128  # above every golden answer
PARTS = few(1, of=4)  # the prompts in several tests each, so that two workers share them
SMALL_GAP = 0.25  # of two bf16 logits that add up in another order

Golden = list[dict[str, Any]]


@pytest.fixture(scope="module")
def loaded(tiny16_dir: Path) -> Callable[[mx.Dtype], Any]:
    """The model in a dtype, loaded once."""
    models: dict[mx.Dtype, Any] = {}

    def get(dtype: mx.Dtype) -> Any:
        if dtype not in models:
            models[dtype] = load(tiny16_dir)[0]
            models[dtype].set_dtype(dtype)
        return models[dtype]

    return get


@pytest.fixture(scope="module")
def reference(tiny16_dir: Path) -> orthrus_torch.Model:
    return orthrus_torch.load(tiny16_dir)


def test_there_are_48_prompts_and_a_few_of_every_kind(
    tiny16_golden: Golden, few_golden: Golden
) -> None:
    assert len(tiny16_golden) == 48
    assert {case["kind"] for case in few_golden} == {case["kind"] for case in tiny16_golden}
    assert len(few_golden) == few(12, of=48)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("mode", "cycle", "least"),
    [("ar", "auto", 1.0), ("parallel", "two-pass", 4.0), ("parallel", "one-pass", 4.0)],
)
def test_float32_ids_are_the_golden_ids(
    loaded: Any, few_golden: Golden, mode: Any, cycle: Any, least: float, part: int
) -> None:
    stats: list[DecodeStats] = []
    for case in few_golden[part::PARTS]:
        ids = mlx_generate(
            loaded(mx.float32),
            case["prompt"],
            EOS,
            LIMIT,
            mode=mode,
            cycle=cycle,
            on_stats=stats.append,
        )
        assert list(ids) == case["tokens"], case["question"]
    # The ids would come out right with any drafts. Most are accepted, as the view was trained
    # for; fewer in prose, of which the default prompts hold more.
    per_forward = sum(s.generation_tokens for s in stats) / sum(s.forward_passes for s in stats)
    assert per_forward >= least


@pytest.mark.parametrize("part", range(PARTS))
def test_bfloat16_ids_are_those_of_plain_decoding(
    loaded: Any,
    reference: orthrus_torch.Model,
    few_golden: Golden,
    part: int,
    record_property: Callable[[str, object], None],
) -> None:
    model = loaded(mx.bfloat16)
    for n, case in enumerate(few_golden[part::PARTS]):
        prompt, golden = case["prompt"], case["tokens"]
        plain = list(mlx_generate(model, prompt, EOS, LIMIT, mode="ar"))
        cycle = CYCLES[n % 2]  # in float32 each decodes all
        ids = list(mlx_generate(model, prompt, EOS, LIMIT, mode="parallel", cycle=cycle))
        assert ids == plain, (cycle, case["question"])
        if plain != golden:  # float32 decided otherwise: only between two near-equals
            place = next(n for n, (a, b) in enumerate(zip(plain, golden, strict=False)) if a != b)
            logits = orthrus_torch.ar_logits(reference, prompt + golden[:place])[-1]
            gap = float(logits[golden[place]] - logits[plain[place]])
            note = f"token {place} is {plain[place]}, in float32 {golden[place]}; gap {gap:.4f}"
            record_property(case["question"], note)
            print(f"{case['question']}: {note}")
            assert 0 <= gap < SMALL_GAP, note


@pytest.mark.parametrize("part", range(PARTS))
def test_sampled_ids_depend_on_the_seed_alone(loaded: Any, few_golden: Golden, part: int) -> None:
    """At temperature 0.8 and one seed, in the checkpoint's own bf16."""

    def ids(case: dict[str, Any], **how: Any) -> list[int]:
        return list(
            mlx_generate(loaded(mx.bfloat16), case["prompt"], EOS, LIMIT, 0.8, seed=7, **how)
        )

    differ = 0
    for n, case in enumerate(few_golden[part::PARTS][:: few(2, of=1)]):
        plain = ids(case, mode="ar")
        differ += plain != case["tokens"]
        cycle = CYCLES[n % 2]
        assert ids(case, mode="parallel", cycle=cycle) == plain, (cycle, case["question"])
    assert differ  # it did sample


def relative_error(ours: mx.array, theirs: torch.Tensor) -> float:
    expected = theirs.numpy()
    return float(np.linalg.norm(np.array(ours) - expected) / np.linalg.norm(expected))


def test_float32_logits_of_the_ar_view_match_torch(
    loaded: Any, reference: orthrus_torch.Model, tiny16_golden: Golden
) -> None:
    """A whole text at once, and in pieces over the cache."""
    model = loaded(mx.float32)
    for case in tiny16_golden[:: few(24, of=12)]:
        ids = case["prompt"] + case["tokens"]
        expected = orthrus_torch.ar_logits(reference, ids)
        assert relative_error(model(mx.array([ids]))[0], expected) < 1e-5
        cache = model.make_cache()
        pieces = [verify(model, mx.array(ids[n : n + 9]), cache) for n in range(0, len(ids), 9)]
        assert relative_error(mx.concatenate(pieces), expected) < 1e-5


@pytest.mark.parametrize("rows", [2, 16])
def test_float32_logits_of_the_diffusion_view_match_torch(
    loaded: Any, reference: orthrus_torch.Model, tiny16_golden: Golden, rows: int
) -> None:
    """At several prefixes; alone, and beside AR rows, which it must not see."""
    model, mask = loaded(mx.float32), reference.mask_id
    for case in tiny16_golden[7::30]:
        ids = case["prompt"] + case["tokens"]
        for n in (0, 1, len(case["prompt"]), len(ids) - 9):
            expected = orthrus_torch.draft_logits(reference, ids[:n], ids[n], rows)[:15]
            cache = model.make_cache()
            if n:
                verify(model, mx.array(ids[:n]), cache)
            block = [ids[n]] + [mask] * (rows - 1)
            assert relative_error(draft(model, mx.array(block), cache), expected[: rows - 1]) < 1e-5
            assert cache[0].offset == n
            for n_ar in (1, 5):
                # One block at the first AR row and one at the last.
                last = ids[n + n_ar - 1]
                both = mx.array([*ids[n : n + n_ar], *block, last, *block[1:]])
                ar, ahead = verify_and_draft(model, both, n_ar, (0, n_ar - 1), cache)
                assert relative_error(ahead[0], expected) < 1e-5
                at_last = orthrus_torch.draft_logits(reference, ids[: n + n_ar - 1], last, rows)
                assert relative_error(ahead[1], at_last[:15]) < 1e-5
                expected_ar = orthrus_torch.ar_logits(reference, ids[: n + n_ar])[n:]
                assert relative_error(ar, expected_ar) < 1e-5
                assert cache[0].offset == n + n_ar
                for layer in cache:
                    layer.trim(n_ar)
