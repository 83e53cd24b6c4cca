"""Write docs/results.md from the reports in results/. Run by `make docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthrus_mlx.tools.markdown import table
from orthrus_mlx.tools.prompts import KINDS
from orthrus_mlx.tools.report import FORMAT

FILE = Path(__file__).with_name("results.md")
FOLDER = FILE.parents[1] / "results"
SIZES = (2, 4, 8, 15, 32)  # rows of a pass
WORDS = ("NOT LOSSLESS", "NO EXACT MODE HERE", "LOSSLESS")  # how a verdict begins

HEAD = """# Results by machine

Written by `make docs` from the files in `results/`. One command writes such a file:

```
orthrus-mlx report MODEL --json results/my-machine.json
```

To add your machine, add the file, run `make docs` and open a pull request, or post what the command
prints as an issue. The file names no user and no folder.
"""
NO_MAC = """
**No Mac is among them yet**: see [Limits](../README.md#limits).
"""
SPEEDS = """
## Speed

Tokens a second of AR mode, then how many times as fast `mode="auto"` is by kind of text, and on all
texts; below 1 is a loss. "Always" is `mode="parallel"` on all texts. Medians over few answers.
"""
COSTS = """
## What passes cost

A verify pass over so many rows, in AR steps. Sizes that cannot pay on a machine are not measured.
"""


class BadResultError(Exception):
    """A file in results/ that cannot become a row."""


def read(file: Path) -> dict[str, Any]:
    """A report that is complete and of the present format."""
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if raw.get("format") != FORMAT:
        raise BadResultError(f"{file.name} has format {raw.get('format')}; {FORMAT} is expected.")
    missing = {"verify", "costs", "bench"} - raw["sections"].keys()
    if raw["interrupted"] or missing:
        raise BadResultError(f"{file.name} is not complete: measure without an interrupt.")
    return raw


def text(folder: Path = FOLDER) -> str:
    """The whole page."""
    reports = [read(file) for file in sorted(folder.glob("*.json"))]
    has_mac = any(raw["device"]["backend"] == "Metal" for raw in reports)
    what = ("Machine", "Backend", "MLX", "Model", "Weights", "Verified", "Date")
    speed = ("Machine", "Model", "AR tok/s", *KINDS, "all", "always", "Peak MB")
    cost = ("Machine", "Model", "AR step, ms", *(f"{n} rows" for n in SIZES))
    return "\n".join(
        [
            HEAD + ("" if has_mac else NO_MAC),
            *table(what, map(of_machine, reports), "l" * len(what)),
            SPEEDS,
            *table(speed, map(of_speed, reports), "ll" + "r" * (len(speed) - 2)),
            COSTS,
            *table(cost, map(of_costs, reports), "ll" + "r" * (len(cost) - 2)),
            "",
        ]
    )


def of_machine(raw: dict[str, Any]) -> Iterator[str]:
    """What was measured where, and whether it is lossless."""
    yield raw["device"]["name"]
    yield raw["device"]["backend"]
    yield raw["versions"]["mlx"]
    yield raw["model"]["name"]
    yield raw["model"]["stored_as"]
    verdict = raw["sections"]["verify"]["verdict"]
    yield next((words for words in WORDS if verdict.startswith(words)), verdict)
    yield raw["date"]


def of_speed(raw: dict[str, Any]) -> Iterator[str]:
    """How fast each mode is."""
    summaries = raw["sections"]["bench"]["summaries"]
    by = {(summary["kind"], summary["way"]): summary for summary in summaries}

    def median(kind: str, way: str, key: str) -> str:
        spread = by.get((kind, way), {}).get(key)
        return f"{spread['median']:.3g}" if spread else ""

    yield raw["device"]["name"]
    yield raw["model"]["name"]
    yield median("all", "ar", "speed")
    yield from (median(kind, "auto", "speed_up") for kind in (*KINDS, "all"))
    yield median("all", "parallel", "speed_up")
    yield f"{max(summary['peak_memory'] for summary in summaries) / 1e6:.0f}"


def of_costs(raw: dict[str, Any]) -> Iterator[str]:
    """What passes over more rows cost."""
    costs = raw["sections"]["costs"]
    verify = dict(map(tuple, costs["verify"]))
    yield raw["device"]["name"]
    yield raw["model"]["name"]
    yield f"{costs['ar_step_ms']:.3g}"
    yield from (f"{verify[n]:.2f}" if n in verify else "" for n in SIZES)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
