"""Exact numerics in batches: an answer has its bits whoever shares its passes.

A CPU computes every row count alike, so the model here adds noise by the kernel that a GPU would
take: one by all rows of a pass, as products do, and one by the rows of a sequence, as attention.
"""

from __future__ import annotations

import itertools
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import BatchEngine, mlx_generate
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.device.probe_batch import batch_row_counts, probe_batch
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows
from tests.api.texts import byte_tokenizer

from . import row_kernels


def product_kernel(rows: int) -> int:
    return 1 if rows == 1 else 2 if rows <= 9 else 3 if rows <= 40 else 4


def attention_kernel(rows: int) -> int:
    return 11 if rows <= 8 else 12


class PackedKernels(Model):
    """Bits by all AR rows of a pass, and by those of a row's own sequence."""

    passes: list[tuple[int, ...]]

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        logits, blocks = super().forward(rows)
        counts = tuple(segment.n_ar for segment in rows.segments)
        self.passes.append(counts)
        width = self.config.vocab_size
        added = [
            noise(product_kernel(rows.n_ar), width) + noise(attention_kernel(n), width)
            for n in counts
            for _ in range(n)
        ]
        return logits + mx.stack(added) if added else logits, blocks


@lru_cache
def noise(kernel: int, width: int) -> mx.array:
    return row_kernels.NOISE * mx.random.uniform(-1, 1, (width,), key=mx.random.key(kernel))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))
    model = row_kernels.build(PackedKernels)
    object.__setattr__(model, "passes", [])
    costs = {n: 1.0 if n < 15 else 9.0 for n in (1, 2, 4, 8, 15, 16, 24, 32)}
    found = numerics.Probe(((1,), (2, 4, 8), (15, 16, 24, 32)), (), 0.1, costs)
    numerics.store_probe(model, found)
    quick = partial(probe_batch, contexts=(24,), steps=())
    monkeypatch.setattr("orthrus_mlx.device.probe_batch.probe_batch", quick)
    return model


def test_products_and_attention_are_probed_apart(model: Any) -> None:
    found = numerics.stored_probe(model)
    assert found is not None
    counts = probe_batch(model, found, contexts=(24,), steps=())
    assert counts.verify == (2, 4, 8)
    assert counts.totals == (4, 8)  # 9 rows at most
    assert counts.rows == (1, 2, 4)  # of one sequence, beside others: a single row too
    assert [counts.fit_shared(n) for n in (1, 3, 5)] == [1, 4, None]


def test_a_device_whose_rows_depend_on_others_has_no_shared_passes(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = numerics.stored_probe(model)
    assert found is not None
    kernels = itertools.count()
    monkeypatch.setattr(f"{__name__}.product_kernel", lambda rows: next(kernels))
    counts = probe_batch(model, found, contexts=(24,), steps=())
    assert counts == found.row_counts and counts.fit_shared(1) is None


@pytest.mark.parametrize("mode", ["ar", "parallel"])
def test_exact_answers_do_not_depend_on_who_shares_their_passes(
    model: Any, mode: Any, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    found = numerics.stored_probe(model)
    assert found is not None
    options: dict[str, Any] = {
        "mode": mode,
        "numerics": "exact",
        "calibrate": False,
        "block_size": 4,
        "prefill_step_size": 16,
    }
    start = [7, 3, 5] * 15
    prompts = [[*start[:n], n % 60, 3] for n in (0, 5, 40, 44, 45)]
    model.passes.clear()
    alone = [list(mlx_generate(model, p, (), 24, **options)) for p in prompts]
    assert max(map(len, model.passes)) == 1
    fast = [list(mlx_generate(model, p, (), 24, mode="ar")) for p in prompts]
    assert alone != fast  # the bits decide
    with BatchEngine(model, tokenizer, prefix_memory=1 << 20) as engine:
        for _ in range(2):  # the second time their prefixes are held
            got: dict[int, list[int]] = {
                engine.add(p, 24, eos_token_ids=(), **options): [] for p in prompts
            }
            model.passes.clear()
            while engine.running:
                for number, response, error in engine.step():
                    assert error is None and response is not None
                    got[number].append(response.token)
            assert list(got.values()) == alone
            shared = [counts for counts in model.passes if len(counts) > 1]
            assert len(shared) > 10
            assert {sum(counts) for counts in shared if sum(counts)} <= {4, 8}
    again = batch_row_counts(model, found)
    assert again.totals == (4, 8)
