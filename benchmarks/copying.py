"""Measure what copy drafts gain where an answer repeats its conversation, by kind of text.

Each conversation asks two held-out questions of the demo: the same one twice, which is close to an
edit, or two of the same kind, whose answers share only their form. The second answer is decoded
with and without the copy drafter, and both must be the same. The scheduler is that of mode="auto"
on published costs of Metal's kernels (see `simulate`): the figures are the speed over AR decoding
by those costs, the same on every machine.

    python benchmarks/copying.py demo [--second same|another] [--costs "4-bit 0.32.0"]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import COSTS
from orthrus_mlx import DecodeStats, Sampling, load, mlx_generate
from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.decoding.batch import decode
from orthrus_mlx.decoding.cost_model import Costs, plan_cost, policies
from orthrus_mlx.decoding.drafters import CopyDrafter
from orthrus_mlx.decoding.plan import Plan
from orthrus_mlx.decoding.scheduler import Adaptive
from orthrus_mlx.decoding.sequence import Drafter, Request
from recipes.demo.corpus import evaluation


class Priced(Adaptive):
    """The scheduler of mode="auto", adding up what its cycles cost."""

    spent = 0.0

    def observe(
        self, plan: Plan, n_drafts: int, accepted: int, chances: Sequence[float] = ()
    ) -> None:
        """Add the cycle's cost, then update the scheduler."""
        self.spent += plan_cost(self.costs, plan, n_drafts)
        super().observe(plan, n_drafts, accepted, chances)


def answer(
    model: Any, prompt: list[int], ends: frozenset[int], costs: Costs, drafters: list[Drafter]
) -> tuple[list[int], DecodeStats, float]:
    """Ids, stats and cost (in AR steps) of one greedy answer."""
    request = Request(prompt, ends, 320, Sampling(), model.config.mask_token_id)
    scheduler = Priced(costs, policies(costs, "auto", model.config.block_size))
    written = list(decode(model, request, scheduler, model.make_cache(), drafters=drafters))
    ids, stats = [decided.token for decided, _ in written], written[-1][1]
    return ids, stats, scheduler.spent / costs.of_ar_step()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder, a Hub id or 'demo'")
    parser.add_argument("--per-kind", type=int, default=2, help="questions of each kind")
    parser.add_argument("--second", choices=("same", "another"), default="same")
    parser.add_argument("--costs", choices=[*COSTS], default="4-bit 0.32.0")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    costs, ends = COSTS[args.costs], frozenset(tokenizer.eos_token_ids)
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0] * 5)
    asked = evaluation(2 * args.per_kind, seed=1)
    by_kind = {kind: [q for q in asked if q.kind == kind] for kind in {q.kind for q in asked}}
    pairs = [
        (q, r) for some in by_kind.values() for q, r in zip(some[::2], some[1::2], strict=False)
    ]
    for question, other in pairs:
        prompt = encode_chat(tokenizer, question.prompt)[0]
        first = list(mlx_generate(model, prompt, ends, 320, mode="ar"))
        reply = tokenizer.decode([i for i in first if i not in ends])
        second = question if args.second == "same" else other
        messages = [*question.prompt, {"role": "assistant", "content": reply}, *second.prompt[-1:]]
        ids = encode_chat(tokenizer, messages)[0]
        without, _, slow = answer(model, ids, ends, costs, [])
        copied, stats, fast = answer(model, ids, ends, costs, [CopyDrafter()])
        assert without == copied, "drafts changed the answer"
        accepted, tried = stats.accepted_by.get("copy", 0), stats.drafted_by.get("copy", 0)
        for row in (totals[question.kind], totals["**all**"]):
            for i, value in enumerate((len(copied), slow, fast, accepted, tried)):
                row[i] += value
    print("| kind | tokens | auto without copies | with copies | tokens copied | accepted |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind, (tokens, slow, fast, accepted, tried) in sorted(totals.items()):
        rate = f"{accepted / tried:.0%}" if tried else "-"
        cells = f"{tokens / slow:.2f} | {tokens / fast:.2f} | {accepted / tokens:.0%} | {rate}"
        print(f"| {kind} | {tokens:.0f} | {cells} |")


if __name__ == "__main__":
    main()
