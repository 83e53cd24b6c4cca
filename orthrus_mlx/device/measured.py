"""What a pass costs on this device: measured once, kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..decoding.cost_model import Costs
from ..decoding.plan import RowCounts
from .calibrate import ALTERNATING, ROWS, SIZES, calibrate
from .probe import cache_folder, device_key

METHOD = 4  # to be raised with any change in how prices come about: those on disk are void then

# Used with `calibrate=False`: ratios to a plain step as published for Apple M-series chips.
NOMINAL = Costs(
    verify={1: 1.0, 2: 1.2, 4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    draft={4: 1.3, 8: 1.5, 15: 1.8, 16: 1.95, 32: 2.0, 64: 3.5},
    fused={
        **{(1, 7): 1.6, (1, 15): 2.05, (1, 31): 2.2},
        **{(5, 10): 2.2, (8, 16): 2.4, (10, 22): 2.5, (16, 32): 3.6, (22, 42): 4.3, (32, 64): 6.5},
    },
)


def device_costs(model: Any, block_size: int) -> Costs:
    """The costs for this model on this device, from disk where they were measured before."""
    sizes = [block_size, SIZES, ROWS, ALTERNATING]
    key = json.dumps([device_key(model), METHOD, sizes], sort_keys=True).encode()
    file = cache_folder() / f"costs-{hashlib.sha256(key).hexdigest()[:24]}.json"
    found = _read(file)
    if found is None:
        found = calibrate(model, block_size)
        _write(file, found)
    return found


@functools.lru_cache(maxsize=32)
def within(costs: Costs, row_counts: RowCounts) -> Costs:
    """The costs that are left where exact numerics pad every pass to `row_counts`."""
    if not row_counts.verify:
        return costs
    least = row_counts.verify[0]
    # What is larger than anything measured could not pay: measuring stops there.
    rows = [n for n in row_counts.verify if n == least or n <= max(costs.verify)]
    pairs = [
        (n, ahead)
        for n, ahead in row_counts.fused
        if any(a >= n and d >= ahead for a, d in costs.fused)
    ]
    return Costs(
        verify={n: costs.of_verify(n) for n in rows},
        draft={n: cost for n, cost in costs.draft.items() if n <= rows[-1]},
        fused={pair: costs.of_fused(*pair) for pair in pairs},
        plain=costs.of_ar_step() + max(0.0, costs.of_verify(least) - costs.of_verify(1)),
    )


# By file, and when it was written: what schedules look up again and again is kept with them.
_known: dict[Path, tuple[int, Costs]] = {}


def _read(file: Path) -> Costs | None:
    try:
        written = file.stat().st_mtime_ns
        if file in _known and _known[file][0] == written:
            return _known[file][1]
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = Costs(
            verify={int(n): float(c) for n, c in raw["verify"].items()},
            draft={int(n): float(c) for n, c in raw["draft"].items()},
            fused={(int(a), int(d)): float(c) for a, d, c in raw["fused"]},
            plain=None if raw["plain"] is None else float(raw["plain"]),
        )
        _known[file] = written, found
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent, or written by another version: measure again


def _write(file: Path, costs: Costs) -> None:
    """Keep the result; a folder that cannot be written to only costs a new measurement."""
    raw = {
        "verify": costs.verify,
        "draft": costs.draft,
        "fused": [(a, d, c) for (a, d), c in costs.fused.items()],
        "plain": costs.plain,
    }
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(raw), encoding="utf-8")
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
