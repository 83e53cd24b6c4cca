"""Simulate what Metal kernels of our own for few rows would gain, at shares of what a chip can do.

No Mac ran them: this says what they are worth if they get that far, not that they do. The scheduler
of mode="auto" plans each cycle on the cost tables of `simulate.py`, in which passes of 2 to 16 rows
cost less, and by that script's model of text or on the drafts of a trained checkpoint:

    python benchmarks/few_rows.py [--answers 12]             # by published acceptance
    python benchmarks/few_rows.py --model demo  # drafts of a checkpoint

Assumptions, besides those of `simulate.py`:

1. Reading all weights takes one AR step. A product of n rows takes as long as the longer of reading
   and multiplying, and multiplying n rows takes n / LIMIT steps at the limit of the chip, so many
   times as long at a share of it. The rest of a pass costs a tenth of a step more than in an AR
   step, as in the tables for bf16.
2. The limit for 4 bits is that of an M4 Max said to multiply 34 TFLOP/s, which reads 546 GB/s: at
   0.56 bytes a weight (groups of 64) 17 rows. **In float32, in which our kernels multiply, tables
   of GPUs give such a chip half as much: 50 % is the most that they can reach there.** Unpacking
   takes about 4 operations a weight, half of what 8 rows take, so that 30 % is likelier. On an M1
   Max (10.4 TFLOP/s in float32, 400 GB/s) with bf16 weights the limit is 26 rows.
3. Where MLX's kernels cost less, they are used: what `orthrus-mlx tune` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import BF16, CYCLE_COST, M4_PRO, MS, SPEED_UPS, Kind, cost_table
from benchmarks.simulate import mean_speed_up as simulated
from orthrus_mlx.decoding.cost_model import Costs

SHARES = (0.3, 0.5, 0.75, 1.0)
LIMITS = {"4-bit 0.32.0": 17, "4-bit M4 Pro": 17, "bf16 0.31.2 (M1, M2)": 26}
STOCK = {
    "4-bit 0.32.0": {rows: ms / MS[1] for rows, ms in MS.items()},
    "4-bit M4 Pro": M4_PRO,
    "bf16 0.31.2 (M1, M2)": BF16,
}
MORE = 0.1  # AR steps that a pass of several rows takes besides its products


def passes(label: str, share: float) -> dict[int, float]:
    """The most rows of a pass and its cost, with our kernels at this share of the limit."""
    stock = STOCK[label]
    table = {rows: cost for rows, cost in stock.items() if rows > 16 or rows == 1}
    for rows in range(2, 17):
        theirs = min((most, cost) for most, cost in stock.items() if rows <= most)[1]
        table[rows] = min(theirs, max(1.0, rows / (LIMITS[label] * share)) + MORE)
    return dict(sorted(table.items()))


def tables() -> dict[tuple[str, str], Costs]:
    """The cost tables by source and share, MLX's own kernels first."""
    found = {}
    for label, stock in STOCK.items():
        found[label, "MLX's kernels"] = cost_table(stock)
        for share in SHARES:
            found[label, f"{share:.0%}"] = cost_table(passes(label, share))
    return found


def by_acceptance(answers: int, tokens: int) -> None:
    """Speed over AR decoding by kind of text, for each table."""
    print("| costs | kernels | 4, 8, 16 rows |", end="")
    cells = [(model, kind) for model in ("1.7B", "8B") for kind in SPEED_UPS[model]]
    print(" | ".join(f" {model} {kind}" for model, kind in cells), "|")
    print("|---|---|---|" + "---:|" * len(cells))
    for (label, name), costs in tables().items():
        rows = ", ".join(f"{costs.of_verify(n):.2f}" for n in (4, 8, 16))
        print(f"| {label} | {name} | {rows} |", end="", flush=True)
        for model, kind in cells:
            text = Kind.of(SPEED_UPS[model][kind] * CYCLE_COST)
            print(f" {simulated(None, costs, text, tokens, answers):.2f} |", end="", flush=True)
        print()


def by_drafts(name: str, answers: int, label: str, golden: Path | None) -> None:
    """Speed over AR decoding on the drafts of a checkpoint, which every table's answers share."""
    from benchmarks.copying import answer
    from orthrus_mlx import load
    from orthrus_mlx.chat.prompt import encode_chat
    from recipes.demo.corpus import evaluation

    model, tokenizer = load(name)
    ends = frozenset(tokenizer.eos_token_ids)
    if golden:
        asked = [(one["kind"], one["prompt"]) for one in json.loads(golden.read_text())]
    else:
        questions = evaluation(1, seed=1)
        asked = [(q.kind, encode_chat(tokenizer, q.prompt)[0]) for q in questions]
    asked = [asked[n * len(asked) // answers] for n in range(min(answers, len(asked)))]
    print(f"| costs | kernels | {name}: {len(asked)} answers | slowest kind |")
    print("|---|---|---:|---:|")
    for (source, kernels), costs in tables().items():
        if source != label:
            continue
        spent: dict[str, list[float]] = {}
        for kind, prompt in asked:
            ids, _, steps = answer(model, prompt, ends, costs, [])
            total = spent.setdefault(kind, [0.0, 0.0])
            total[0] += len(ids)
            total[1] += steps
        worst = min(spent, key=lambda kind: spent[kind][0] / spent[kind][1])
        ids_, steps_ = (sum(total[i] for total in spent.values()) for i in range(2))
        slow = spent[worst][0] / spent[worst][1]
        print(f"| {label} | {kernels} | {ids_ / steps_:.2f} | {slow:.2f} ({worst}) |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=12, help="answers for each cell")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--model", help="a folder, a Hub id or 'demo': replay its drafts")
    parser.add_argument("--costs", choices=[*STOCK], default="4-bit 0.32.0", help="with --model")
    parser.add_argument("--golden", type=Path, help="with --model: prompts as ids, JSON")
    args = parser.parse_args()
    if args.model:
        by_drafts(args.model, args.answers, args.costs, args.golden)
    else:
        by_acceptance(args.answers, args.tokens)


if __name__ == "__main__":
    main()
