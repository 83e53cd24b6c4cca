"""Which row counts are exact in passes over several sequences: of products and of attention, apart.

Products see all rows of a pass, attention those of one sequence. What one sequence alone may use
(`probe`) is the measure: totals whose rows have its bits beside other sequences' rows, and row
counts of one sequence that have them within such a total.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from ..decoding.plan import RowCounts
from .measured import device_key, load, store
from .probe import (
    CONTEXTS,
    ROW_COUNTS,
    STEPS,
    Probe,
    ProbeCase,
    cache_of,
    decode,
    plan_cases,
    same_bits,
)

TOTALS = (2, 4, 8, 15, 16, 24, 32, 48, 64, 96, 128)


def probe_batch(
    model: Any,
    found: Probe,
    *,
    contexts: tuple[int, ...] = CONTEXTS,
    steps: tuple[int, ...] = STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> RowCounts:
    """The row counts of `found`, with those that passes over several sequences may use."""
    own, say = found.row_counts, progress or (lambda done, total: None)
    least, cases = own.verify[0], plan_cases(model, contexts, steps, most_full=1)
    work = len(TOTALS) + len(cases)

    def agrees(case: ProbeCase, cache: Any, expected: Any, rows: int, total: int) -> bool:
        outcomes = [
            decode(case, cache, rows, ragged=ragged, total=total) for ragged in (False, True)
        ]
        return all(
            same_bits(a, b) for outcome in outcomes for a, b in zip(outcome, expected, strict=True)
        )

    # Products know nothing of the context: one will do.
    cache = cache_of(model, cases[0].context)
    expected = decode(cases[0], cache, least, ragged=False)
    totals = []
    for done, total in enumerate(TOTALS):
        say(done, work)
        if total > least and agrees(cases[0], cache, expected, least, total):
            totals.append(total)
    if not totals:
        say(work, work)
        return own
    rows = [n for n in (1, *ROW_COUNTS[1:]) if n < totals[-1] and n <= own.verify[-1]]
    for done, case in enumerate(cases, start=len(TOTALS)):
        say(done, work)
        cache = cache_of(case.model, case.context)
        expected = decode(case, cache, least, ragged=False)
        rows = [n for n in rows if agrees(case, cache, expected, n, totals[-1])]
    say(work, work)
    return replace(own, totals=tuple(totals), rows=tuple(rows)) if rows else own


def batch_row_counts(
    model: Any, found: Probe, progress: Callable[[int, int], None] | None = None
) -> RowCounts:
    """The same, from disk where it was probed before."""
    own = found.row_counts
    if found.all_agree:  # then products and attention do, of any of these counts
        return replace(own, totals=own.verify[1:], rows=own.verify)
    key = [device_key(model), asdict(own)]
    stored = load("probe-batch", key, _read)
    if stored is None:
        stored = probe_batch(model, found, progress=progress)
        store("probe-batch", key, stored, asdict)
    return replace(own, totals=stored.totals, rows=stored.rows)


def _read(raw: Any) -> RowCounts:
    totals, rows = tuple(map(int, raw["totals"])), tuple(map(int, raw["rows"]))
    return RowCounts(totals=totals, rows=rows)
