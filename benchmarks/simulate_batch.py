"""Simulate batches on published costs: what would drafting add to plain batching on a Mac?

No model runs. The real `RowBudget` plans each pass over some streams, each of which writes one
answer after another; texts and costs are those of `simulate.py`, with its assumptions. Besides:

1. A pass costs what its rows cost, whoever they belong to, by the table's own steps; the scheduler
   knows only the sizes that calibration measures, and takes the next one.
2. Each stream beyond the first adds `EACH` AR steps to a pass: its own small kernels in each layer.
3. Prompts cost nothing, and a stream's next answer begins at once.
4. The host costs nothing, so that a pass with drafts has no least but a plain step. As calibration
   would find it on these costs, the least is up to 0.06 AR steps more. Tried with 3 answers, that
   changes 0.01 at most; with two streams on "bf16 0.32.1" it gains up to 0.1.

    python benchmarks/simulate_batch.py [--answers 8] [--tokens 256] [--costs "bf16 0.32.1"]

Printed: tokens a second over plain batching of the same streams, for each kind and for mixes, and
the longest wait of any stream for its next token while it was given no drafts, in plain batch
passes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import (
    BF16,
    COSTS,
    CYCLE_COST,
    LONGEST,
    MS,
    OWN,
    SPEED_UPS,
    WIDE,
    Kind,
    Text,
)
from orthrus_mlx.decoding.cost_model import Costs, policies
from orthrus_mlx.decoding.plan import ANY_ROWS, DIFFUSION
from orthrus_mlx.decoding.row_budget import RowBudget
from orthrus_mlx.decoding.scheduler import Adaptive
from orthrus_mlx.decoding.sequence import Asked, Outcome

EACH = 0.02
MANY_ROWS = (24, 48, 64, 96, 128)  # as `calibrate_batch` measures them
BATCHES = (1, 2, 4, 8, 16)
PASSES = {
    "bf16 0.31.2": BF16,
    "bf16 0.32.1": BF16 | WIDE,
    "4-bit 0.32.0": {rows: ms / MS[1] for rows, ms in MS.items()},
}
MODEL = "1.7B"  # whose kinds of text are used
MIXES = {
    "JSON + prose": ("JSON", "prose"),
    "all kinds": ("JSON", "reasoning", "code", "prose"),
}


def true_cost(passes: dict[int, float]) -> Callable[[int, int, int], float]:
    """Cost of a pass over AR and diffusion rows of some streams, by the table's own steps."""

    def price(rows: int) -> float:
        fitting = [(most, cost) for most, cost in passes.items() if rows <= most]
        if fitting:
            return min(fitting)[1]
        return max(passes.values()) * rows / max(passes)

    def cost(n_ar: int, n_diff: int, streams: int) -> float:
        shared = price(n_ar + n_diff)
        own = price(n_ar) + price(n_diff) if n_diff else shared
        return (1 - OWN) * shared + OWN * own + EACH * (streams - 1)

    return cost


class Stream:
    """Writes one answer after another; as much of a sequence as a planner reads."""

    def __init__(self, costs: Costs, kind: Kind, tokens: int, seed: int):
        self.costs, self.kind, self.tokens, self.seed = costs, kind, tokens, seed
        self.request = SimpleNamespace(row_counts=ANY_ROWS)
        self.written = 0
        self.begin()

    def begin(self) -> None:
        """The next answer."""
        self.seed += 1000
        self.text = Text(self.kind, self.seed)
        self.scheduler = Adaptive(self.costs, policies(self.costs, "auto", LONGEST))
        self.anchor, self.left = 0, self.tokens
        self.pending: list[bool] = []

    def resolve(self, plan: Any) -> tuple[int, int]:
        """Drafts verified and accepted in a pass that did `plan`."""
        drafts = (
            self.text.guesses(self.anchor, plan.draft_rows)[:-1]
            if plan.draft_rows
            else self.pending
        )[: plan.n_drafts]
        accepted = drafts.index(False) if False in drafts else len(drafts)
        accepted = min(accepted, self.left - 1)
        block = self.text.guesses(self.anchor, plan.block_rows) if plan.block_rows else []
        alone = plan.block_rows and not drafts  # beside one AR row
        self.pending = block[1 : LONGEST - 1] if alone else []
        self.anchor += 1 + accepted
        self.left -= 1 + accepted
        self.written += 1 + accepted
        return len(drafts), accepted


def simulate(label: str, kinds: Sequence[Kind], tokens: int, answers: int) -> tuple[float, float]:
    """Speed over plain batching, and the longest wait of a stream without drafts.

    Alone, a stream's own scheduler plans, which may also draft in passes of their own.
    """
    cost = true_cost(PASSES[label])
    table, count = COSTS[label], len(kinds)
    costs = Costs(
        {n: cost(n, 0, 1) for n in {*table.verify, *MANY_ROWS}},
        table.draft,
        table.fused,
        plain=cost(1, 0, 1),
        batch={n: cost(n, 0, n) for n in BATCHES[1:]},
        each=EACH,
    )
    budget, plain = RowBudget(lambda: costs), cost(count, 0, count)
    streams: list[Any] = [Stream(costs, kind, tokens, n) for n, kind in enumerate(kinds)]
    spent, wait = 0.0, 0.0
    while sum(stream.written for stream in streams) < count * tokens * answers:
        asked = [
            Asked(s, s.left, {DIFFUSION: len(s.pending)} if s.pending else {}) for s in streams
        ]
        plans = budget.plan(asked)
        drafted = [plan.draft_rows for plan in plans if plan.draft_rows]
        results = [stream.resolve(plan) for stream, plan in zip(streams, plans, strict=True)]
        took = cost(0, sum(drafted), count) if drafted else 0.0
        took += cost(
            sum(1 + n for n, _ in results), sum(p.block_rows * p.blocks for p in plans), count
        )
        if any(plan.is_ar for plan in plans):
            wait = max(wait, took / plain)
        spent += took
        budget.observe(
            [Outcome(s, p, n, a) for s, p, (n, a) in zip(streams, plans, results, strict=True)]
        )
        for stream in streams:
            if not stream.left:
                stream.begin()
    return sum(stream.written for stream in streams) / spent * plain / count, wait


def streams_of(names: Sequence[str], count: int) -> list[Kind]:
    """So many streams of these kinds in turn."""
    return [Kind.of(SPEED_UPS[MODEL][names[n % len(names)]] * CYCLE_COST) for n in range(count)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=8, help="answers of each stream")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--costs", choices=[*PASSES, "all"], default="all")
    args = parser.parse_args()
    print(f"| costs | streams of | {' | '.join(str(n) for n in BATCHES)} |")
    print("|---|---|" + "---:|" * len(BATCHES))
    kinds = {kind: (kind,) for kind in SPEED_UPS[MODEL]} | MIXES
    for label in PASSES if args.costs == "all" else [args.costs]:
        for name, names in kinds.items():
            cells = []
            for count in BATCHES:
                if count == 1 and len(names) > 1:
                    cells.append("")
                    continue
                found = simulate(label, streams_of(names, count), args.tokens, args.answers)
                cells.append(f"{found[0]:.2f} ({found[1]:.2f})")
            print(f"| {label} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
