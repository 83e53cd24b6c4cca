"""Exact numerics: every AR row goes through row counts of one class, and that makes it exact.

The CPU computes every row count alike, so these tests watch the row counts themselves, or use a
model whose bits depend on them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_logits_processors

from orthrus_mlx import DecodeStats, NumericsError, generate, mlx_generate
from orthrus_mlx.decoding.consensus import Sampling
from orthrus_mlx.decoding.plan import RowCounts
from orthrus_mlx.decoding.prefill import Prefill
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.device.probe import Probe, cached_probe, one_layer, probe
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows
from orthrus_mlx.tools.compare import Tally, decode_answer, first_difference

from . import row_kernels
from .row_kernels import RowKernels
from .scenarios import CYCLES

WAYS: list[tuple[Any, Any]] = [("ar", "auto"), *(("parallel", cycle) for cycle in CYCLES)]
MADE_UP = RowCounts(verify=(4, 12), fused=((8, 8),))
PROMPT = [5, 9, 23, 41, 2, 7]


@pytest.fixture(autouse=True)
def nothing_measured_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))


# ------------------------------------------------------------------------- row counts, watched


class Watched(Model):
    """Notes the rows of every pass after the prompt: (AR rows, diffusion rows)."""

    passes: list[tuple[int, int]]
    reading = False

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        if not self.reading:
            self.passes.append((rows.n_ar, rows.n_diff))
        return super().forward(rows)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model on a device where a made-up class of row counts was found."""
    found = SimpleNamespace(row_counts=MADE_UP)
    monkeypatch.setattr(generate, "cached_probe", lambda *_, **__: found)
    model = row_kernels.build(Watched)
    object.__setattr__(model, "passes", [])
    chunk = Prefill.chunk

    def read(*args: Any) -> None:
        object.__setattr__(model, "reading", True)
        chunk(*args)
        object.__setattr__(model, "reading", False)

    monkeypatch.setattr(Prefill, "chunk", read)
    return model


def run(model: Any, prompt: list[int], n: int, **options: Any) -> tuple[list[int], DecodeStats]:
    stats: list[DecodeStats] = []
    ends = options.pop("ends", ())
    ids = list(mlx_generate(model, prompt, ends, n, on_stats=stats.append, seed=5, **options))
    return ids, stats[0]


def only_the_class(passes: list[tuple[int, int]]) -> bool:
    allowed = {(n, 0) for n in MADE_UP.verify} | set(MADE_UP.fused)
    return {p for p in passes if p[0]} <= allowed  # a draft pass has no AR rows


@pytest.mark.parametrize(
    ("rows", "length", "blocks", "fitted"),
    [
        (3, 4, 2, (8, 4)),
        (3, 9, 2, (8, 12)),  # the most that is allowed, since less was found
        (8, 16, 3, (8, 8)),
        (3, 4, 12, (8, 2)),
        (3, 4, 24, (4, 0)),  # of a block of one nothing would be left to verify
        (9, 4, 2, (12, 0)),
        (3, 0, 2, (4, 0)),
    ],
)
def test_a_one_pass_forward_takes_a_pair_that_holds_its_rows_and_drafts_something(
    rows: int, length: int, blocks: int, fitted: tuple[int, int]
) -> None:
    found = RowCounts(verify=(4, 12), fused=((8, 8), (8, 24)))
    assert found.fit_fused(rows, length, blocks) == fitted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("n", [1, 3, 12, 40], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize(("mode", "cycle"), [*WAYS, ("auto", "auto")])
def test_every_ar_forward_has_a_row_count_of_the_class(
    watched: Any, mode: Any, cycle: Any, n: int, temperature: float
) -> None:
    options = {"temperature": temperature, "mode": mode, "cycle": cycle}
    ids, stats = run(watched, PROMPT, n, numerics="exact", calibrate=False, **options)
    assert only_the_class(watched.passes)
    assert len(watched.passes) >= stats.forward_passes
    # And what is written does not change: on the CPU, row counts make no difference.
    assert ids == run(watched, PROMPT, n, mode="ar", temperature=temperature)[0]


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_the_class_holds_with_processors_ends_and_a_cache_that_is_continued(
    watched: Any, mode: Any, cycle: Any
) -> None:
    plain, _ = run(watched, PROMPT, 40, mode="ar")
    end = plain[17]
    first = plain[: plain.index(end) + 1]
    watched.passes.clear()
    options: dict[str, Any] = {"mode": mode, "cycle": cycle, "numerics": "exact"}

    cache = watched.make_cache()
    assert run(watched, PROMPT, 40, ends=(end,), prompt_cache=cache, **options)[0] == first
    follow = [first[-1], 3, 1, 4]
    ids, stats = run(watched, follow, 20, prompt_cache=cache, **options)
    assert stats.cached_tokens == len(PROMPT) + len(first) - 1

    penalty = make_logits_processors(repetition_penalty=1.3)
    penalized, _ = run(watched, PROMPT, 25, logits_processors=penalty, **options)
    assert only_the_class(watched.passes)

    whole = [*PROMPT, *first, *follow[1:]]
    assert ids == run(watched, whole, 20, mode="ar")[0]
    assert penalized == run(watched, PROMPT, 25, logits_processors=penalty, mode="ar")[0]


def test_all_row_counts_of_the_class_come_to_use(watched: Any) -> None:
    """Otherwise the tests above would show little."""
    for cycle in CYCLES:
        run(watched, PROMPT, 30, mode="parallel", cycle=cycle, numerics="exact")
    assert {(4, 0), (12, 0), (8, 8)} <= set(watched.passes)


# ------------------------------------------------------------- bits that depend on row counts


def test_the_probe_finds_the_classes() -> None:
    found = row_kernels.probed(row_kernels.build())
    assert found.classes == ((1,), (2, 4), (8, 15), (16, 24, 32))
    assert found.fused == ((16, 16), (16, 32), (32, 32))  # 8 rows of 24 or 32 run as 16 do
    assert 0.5 * row_kernels.NOISE < found.disagreement <= 2 * row_kernels.NOISE
    assert found.row_counts.verify in found.classes[1:]


@pytest.mark.parametrize("change", [512, 513])
def test_a_kernel_that_changes_with_the_number_of_keys_is_no_class(change: int) -> None:
    """Rows of one answer lie on both sides of the change, in one mode earlier than in another."""
    model = row_kernels.build()

    def kernel(rows: int, keys: int) -> int:
        return row_kernels.by_rows(rows, keys) + (10 if rows < 16 and keys >= change else 0)

    object.__setattr__(model, "kernel", kernel)
    assert probe(model, contexts=(24,), steps=(128,)).classes[2] == (8, 15)
    found = probe(model, contexts=(24,), steps=(512,))
    assert [rows for rows in found.classes if rows[-1] > 1] == [(16, 24, 32)]


def test_the_run_up_takes_every_row_count_across_a_step_in_two_ways() -> None:
    def ends_above(rows: int, ragged: bool, step: int) -> list[bool]:
        at, above = 1024 - numerics.RUN_UP, []
        for keep in numerics._kept_rows(rows, numerics.STEP_POSITIONS, ragged):
            above += [at + rows >= step] * keep
            at += keep
        return above

    for rows in [n for n in numerics.ROW_COUNTS if n > 1]:
        for step in (1024, 1025):  # kernels may change at the number or behind it
            assert ends_above(rows, False, step) != ends_above(rows, True, step)


@pytest.mark.parametrize("kind", [row_kernels.UnlikeRows, row_kernels.Restless])
def test_where_no_class_exists_exact_numerics_are_refused(kind: Any) -> None:
    model = row_kernels.build(kind)
    found = row_kernels.probed(model)
    assert max(max(rows) for rows in found.classes or [(1,)]) == 1
    with pytest.raises(NumericsError, match=r"numerics='fast'.*`orthrus-mlx verify MODEL`"):
        mlx_generate(model, PROMPT, (), 8, numerics="exact")
    assert len(list(mlx_generate(model, PROMPT, (), 8, mode="parallel"))) == 8


def compared(model: Any, numerics: str, prompts: int = 2, n: int = 32) -> list[Tally]:
    """Parallel answers against AR answers, greedy and sampled, one tally for each cycle."""
    bound = row_kernels.probed(model).near_tie
    tallies = {cycle: Tally() for cycle in CYCLES}
    for number, temperature in itertools.product(range(prompts), (0.0, 0.8)):
        sampling = Sampling(temperature, seed=number)
        prompt = [number + 1, 30, 2 * number]
        request: Any = (model, prompt, (), n, sampling)
        plain = decode_answer(*request, mode="ar", numerics=numerics, keep_logits=True)
        for cycle, tally in tallies.items():
            found = decode_answer(*request, mode="parallel", cycle=cycle, numerics=numerics)
            args = (number, len(prompt), plain, found.ids, sampling, bound)
            tally.add(plain, found, first_difference(*args))
    return list(tallies.values())


@pytest.mark.parametrize("rows", [(2, 4), (8, 15), (16, 24, 32)], ids=str)
def test_exact_numerics_are_exact_though_bits_depend_on_row_counts(
    rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(model: Any, row_counts: tuple[int, ...]) -> dict[int, float]:
        return {n: 1.0 if n in rows else 100.0 for n in row_counts}  # the class to choose

    monkeypatch.setattr(numerics, "measure_costs", costs)
    model = row_kernels.build()
    two_pass, one_pass, alternating = compared(model, "exact")
    assert cached_probe(model).row_counts.verify == rows
    assert (two_pass.prompts, two_pass.differing) == (4, 0)
    assert (one_pass.prompts, one_pass.differing) == (4, 0)
    assert (alternating.prompts, alternating.differing) == (4, 0)
    assert two_pass.cycles < two_pass.tokens  # and drafts were accepted
    assert (one_pass.cycles < one_pass.tokens) == (rows[0] == 16)  # its class has one-pass pairs


def test_fast_numerics_differ_at_near_ties_alone_and_count_them() -> None:
    model = row_kernels.build()
    tallies = compared(model, "fast")
    assert all(tally.differing for tally in tallies)
    assert not any(tally.unexplained for tally in tallies)
    for difference in [d for tally in tallies for d in tally.differences]:
        assert 0 <= difference.gap <= 2 * 2 * row_kernels.NOISE
        assert difference.rank == 2 or difference.gap > 0
    _, stats = run(model, PROMPT, 60, mode="parallel")
    assert stats.near_ties
    _, stats = run(model, PROMPT, 60, mode="parallel", numerics="exact")
    assert stats.near_ties is None


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_one_wrong_row_count_is_enough_to_differ(rows: int) -> None:
    """The model is a test of row counts indeed: leave the class, and tokens change."""
    model = row_kernels.build()
    found = Probe(((rows, 32),), (), 0.1, {rows: 1.0, 32: 1.0})

    def some_ids(**options: Any) -> list[list[int]]:
        return [run(model, [n, 1], 40, mode="ar", temperature=0.8, **options)[0] for n in range(3)]

    right = some_ids()  # one row a pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "cached_probe", lambda *_, **__: found)
        assert some_ids(numerics="exact") != right


def test_the_first_exact_call_reports_the_progress_of_the_probe() -> None:
    model, steps = row_kernels.build(max_position_embeddings=64), []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    options: Any = {"numerics": "exact", "calibrate": False, "probe_progress_callback": note}
    first = mlx_generate(model, PROMPT, (), 4, **options)
    total = len(steps)
    assert steps == [(n, total) for n in range(1, total + 1)]
    again = mlx_generate(model, PROMPT, (), 4, **options)
    assert (list(first), len(steps)) == (list(again), total)
    fresh = row_kernels.build(max_position_embeddings=70)
    assert list(mlx_generate(fresh, PROMPT, (), 4, mode="ar", probe_progress_callback=note))
    assert len(steps) == total  # fast numerics probe nothing


def test_one_layer_is_the_model_cut_short() -> None:
    model = row_kernels.build()
    cut = one_layer(model)
    assert (len(cut.layers), len(model.layers)) == (1, 2)
    assert isinstance(cut, RowKernels)
    assert len(cut.make_cache()) == 1
    assert cut.model.layers[0] is model.model.layers[0]
