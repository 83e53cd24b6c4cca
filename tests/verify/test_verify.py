"""`verify` passes a sound engine, explains near-ties, and catches an engine that is broken."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from orthrus_mlx import OrthrusError, Sampling
from orthrus_mlx.decoding import choosers, sequence
from orthrus_mlx.device import measured
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.model import Attention, Model
from orthrus_mlx.tools import verify as logic
from orthrus_mlx.tools.compare import Answer, decode_answer, first_difference
from orthrus_mlx.tools.reference import decode_with, make_reference
from orthrus_mlx.tools.verify import Report, verify
from tests.lossless import row_kernels

PROMPTS = [[1, 30, 8], [2, 30, 4, 9, 9]]
LENGTH = 16


@pytest.fixture(autouse=True)
def nothing_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))


def verified(model: Any, **options: Any) -> Report:
    found = row_kernels.probed(model)
    return verify(model, PROMPTS, (), found, max_tokens=LENGTH, **options)


def ways(report: Report, *, differing: bool) -> set[tuple[str, str]]:
    return {(r.numerics, r.way) for r in report.rows if bool(r.tally.differing) == differing}


def test_a_sound_engine_passes() -> None:
    seen: list[tuple[int, int]] = []
    report = verified(row_kernels.build(Model), progress=lambda *state: seen.append(state))
    assert report.passed
    assert report.verdict == (
        "LOSSLESS: exact mode wrote the tokens of plain decoding, all 128 of them; fast mode "
        "differs in none of 8 answers."
    )
    assert len(report.rows) == 8
    assert all(r.tally.same_tokens == r.tally.tokens == 2 * LENGTH for r in report.rows)
    assert [done for done, _ in seen] == list(range(1, 25))
    assert {total for _, total in seen} == {24}


def test_near_ties_in_fast_mode_are_no_fault() -> None:
    report = verified(row_kernels.build())
    assert report.passed
    assert ways(report, differing=True) == {("fast", "two-pass"), ("fast", "one-pass")}
    assert "at near-ties only" in report.verdict
    assert report.to_dict()["passed"]


@pytest.mark.parametrize("kind", [row_kernels.UnlikeRows, row_kernels.Restless])
def test_without_an_exact_mode_it_says_so_and_compares_fast(kind: Any) -> None:
    report = verified(row_kernels.build(kind))
    assert not report.passed
    assert report.verdict.startswith("NO EXACT MODE HERE: fast mode")
    assert {row.numerics for row in report.rows} == {"fast"}
    assert "bit-identical" in (report.no_exact or "")


# ---------------------------------------------------------------------------- broken engines


def one_wrong_mask_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every AR row of a pass sees its second row too."""
    attend = Attention.attend

    def broken(self: Any, q: mx.array, k: mx.array, v: mx.array, mask: Any, cache: Any) -> mx.array:
        rows, keys = q.shape[2], k.shape[2]
        if isinstance(mask, str):
            slots = mx.arange(keys)
            own = mx.arange(keys - rows, keys)[:, None]
            mask = (slots <= own) | (slots == keys - rows + 1)
        return attend(self, q, k, v, mask, cache)

    monkeypatch.setattr(Attention, "attend", broken)


def cache_trimmed_one_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cache: list[Any], length: int) -> None:
        for layer in cache:
            layer.trim(max(0, layer.offset - length - 1))

    monkeypatch.setattr(sequence, "trim", broken)


def one_draft_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(drafts: Any, choices: Any) -> int:
        return min(count(drafts, choices) + 1, len(drafts))

    count = sequence.count_accepted
    monkeypatch.setattr(sequence, "count_accepted", broken)


def noise_of_another_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled alone; greedy decoding has no noise."""

    def broken(logits: mx.array, position: int, sampling: Sampling) -> mx.array:
        return scores(logits, position + (logits.shape[0] > 4), sampling)

    scores = choosers.scores
    monkeypatch.setattr(choosers, "scores", broken)


BROKEN = {
    one_wrong_mask_column: (0.0, 0.8),
    cache_trimmed_one_short: (0.0, 0.8),
    one_draft_too_many: (0.0, 0.8),
    noise_of_another_position: (0.8,),
}


@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_a_broken_engine_is_caught(breaking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_kernels.build(Model)
    found = row_kernels.probed(model)
    breaking(monkeypatch)
    report = verify(model, PROMPTS, (), found, max_tokens=LENGTH)
    assert not report.passed
    assert report.verdict.startswith("NOT LOSSLESS: exact mode differs")
    assert {r.temperature for r in report.rows if r.faults} == set(BROKEN[breaking])
    assert any(row.faults for row in report.rows if row.numerics == "fast")


def test_a_broken_engine_is_caught_among_near_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_kernels.build()
    found = row_kernels.probed(model)
    cache_trimmed_one_short(monkeypatch)
    report = verify(model, PROMPTS, (), found, max_tokens=LENGTH)
    assert report.verdict.startswith("NOT LOSSLESS: exact mode differs")
    assert any(row.faults for row in report.rows if row.numerics == "fast")


# ----------------------------------------------------------------------- other implementations


@pytest.mark.parametrize(
    "dtype", [mx.float32, pytest.param(mx.bfloat16, marks=pytest.mark.full)], ids=str
)
def test_other_implementations_agree(dtype: mx.Dtype) -> None:
    model = row_kernels.build(Model)
    model.set_dtype(dtype)
    report = verified(model, against=["mlx-lm", "torch"])
    assert report.faults == 0
    others = [row.tally for row in report.rows if row.way in ("mlx-lm", "torch")]
    assert len(others) == 4
    if dtype == mx.float32:
        assert not any(tally.differing for tally in others)


def test_mlx_lm_shares_the_weights_and_runs_them_quantized() -> None:
    model = row_kernels.build(Model, vocab_size=128)
    nn.quantize(model, group_size=32, bits=4)
    other: Any = make_reference("mlx-lm", model)
    assert other.model.model.layers[0].mlp.up_proj is model.model.layers[0].mlp.up_proj
    request: Any = (PROMPTS[0], (), LENGTH, Sampling(0.8, seed=1))
    assert decode_with(other, *request).ids == decode_answer(model, *request, mode="ar").ids
    with pytest.raises(OrthrusError, match="quantized"):
        make_reference("torch", model)


@pytest.mark.parametrize("name", ["mlx-lm", "torch"])
def test_an_ar_view_that_is_not_qwen3_is_caught(name: str) -> None:
    model = row_kernels.build(Model)
    model.model.layers[1].self_attn.rope = nn.RoPE(16, base=500.0)  # another base than the config's
    report = verified(model, against=[name])
    assert ways(report, differing=True) == {("fast", name)}
    assert not report.passed
    assert f"{name} differs in " in report.verdict
    assert report.verdict.startswith("NOT LOSSLESS")


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OrthrusError, match="pip install torch"):
        verified(row_kernels.build(Model), against=["torch"])


# ------------------------------------------------------------------------- stopping, reporting


def test_ctrl_c_keeps_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(*args: Any, **options: Any) -> Answer:
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return decode_answer(*args, **options)

    monkeypatch.setattr(logic, "decode_answer", interrupted)
    report = verified(row_kernels.build(Model))
    assert report.interrupted
    assert not report.passed
    assert report.verdict.startswith("LOSSLESS SO FAR")
    assert [row.tally.prompts for row in report.rows] == [2, 1, 1, 1, 1, 1, 1, 1]


def test_a_difference_tells_gap_and_rank() -> None:
    rows = [mx.array([0.0, 3.0, 2.5, -1.0]), mx.array([0.0, 1.0, 0.0, 4.0])]
    expected = Answer([1, 3], rows)
    assert first_difference(7, 5, expected, [1, 3], Sampling(), 1.0) is None
    found = first_difference(7, 5, expected, [2, 3], Sampling(), 1.0)
    assert found == (7, 0, 1, 2, 0.5, 2, True)
    found = first_difference(7, 5, expected, [1, 0], Sampling(), 1.0)
    assert found == (7, 1, 3, 0, 4.0, 3, False)
    found = first_difference(7, 5, expected, [1], Sampling(), 1.0)
    assert found == (7, 1, 3, None, float("inf"), 0, False)


# --------------------------------------------------------------------------- the stored probe


def test_the_probe_is_kept_and_a_corrupt_file_is_replaced(tmp_path: Path) -> None:
    model = row_kernels.build(max_position_embeddings=64)
    found = row_kernels.probed(model)
    (file,) = tmp_path.glob("probe-*.json")
    assert numerics.cached_probe(model, progress=pytest.fail) == found
    whole = file.read_text()
    measured._known.clear()
    for content in ("", whole[:-20], "[]", "{}", whole.replace("classes", "x"), "null"):
        file.write_text(content)
        assert numerics.stored_probe(model) is None
    file.write_bytes(b"\xff\xfe\x00")
    assert numerics.stored_probe(model) is None
    again = numerics.cached_probe(model)
    assert again.classes == found.classes
    measured._known.clear()
    assert numerics.stored_probe(model) == again


def test_a_fresh_probe_runs_again() -> None:
    model = row_kernels.build(max_position_embeddings=64)
    row_kernels.probed(model)
    steps: list[int] = []
    numerics.cached_probe(model, fresh=True, progress=lambda done, total: steps.append(done))
    assert steps


def test_what_decides_kernels_decides_the_key() -> None:
    keys = []
    for changes in ({}, {"vocab_size": 128}, {"num_hidden_layers": 1}, {"block_size": 16}):
        keys.append(measured.device_key(row_kernels.build(Model, **changes)))
    half = row_kernels.build(Model)
    half.set_dtype(mx.bfloat16)
    keys.append(measured.device_key(half))
    for bits in (4, 8):
        model = row_kernels.build(Model)
        nn.quantize(model, group_size=32, bits=bits)
        keys.append(measured.device_key(model))
    assert len({str(key) for key in keys}) == len(keys)
    assert measured.device_key(row_kernels.build(Model)) == keys[0]


def test_where_nothing_can_be_written_the_probe_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path / "file" / "folder"))
    model = row_kernels.build()
    found = row_kernels.probed(model)
    assert numerics.stored_probe(model) is found
