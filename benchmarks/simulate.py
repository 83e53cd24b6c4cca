"""Simulate the scheduler on published costs and acceptance: what would mode="auto" gain on a Mac?

No model runs. The real `Adaptive` and `Fixed` plan each cycle, a model of text says
which guesses are right, and a table of costs says how long the cycle took.

    python benchmarks/simulate.py [--answers 40] [--tokens 256] [--costs "bf16 0.32.1"]

Assumptions, all of them:

1. Costs are in AR steps, by the MLX release that they were published for. The sources below time
   matrix products, or cycles, on M3 and M4 chips.
   - "bf16 0.31.2": a pass over 2 to 16 rows costs 2.1, half of the 3.9 to 4.5 that a two-pass cycle
     of the authors' port took on an M4 Max, which is also what the product of an M3 Ultra says
     (mlx issue 4265: 0.54 ms for 2 to 16 rows against 0.27 for one). 17 to 32 rows cost a tenth
     more: about the least that makes blocks of 16 better than 32 on average, as published. 33 to
     64 rows cost double.
   - "bf16 0.32.1": that release has `gemv_wide` for 2 to 15 rows on M3 and later. Products over 2,
     4 and 8 rows became 1.7 to 1.8 times as fast on an M3 Ultra, 2.1 to 2.3 times on an M4 Pro (mlx
     pull request 3888, a head of 2,048 x 248,320). The least gain is applied, to the 2.0 of the 2.1
     AR steps that are products. For 9 to 15 rows nothing is published: they keep the old cost.
   - "4-bit 0.32.0": with `qmv_wide`, on an M3 Max (pull request 3863): 0.129 ms for 1 and 2 rows,
     0.165 for 4, 0.263 for 6, 0.323 for 8, 0.405 for 9, 0.51 for 10 to 32, 1.00 from 33.
   - "4-bit M4 Pro": the same release, 5120 x 17408, on that chip (mlx issue 3852).
   - "bf16 half": "bf16 0.32.1" with half of its gain, should whole passes gain less than products.
   65 to 96 rows are assumed to cost half as much again as 64.
2. In a one-pass forward, the shared weights cost a pass over all rows. Each view's attention
   weights, a fifth of a model, cost a pass over its own rows (the diffusion view's are 17.0 / 19.0
   / 15.6 % of all parameters).
3. Tokens per cycle of a kind: the published speed-up times 4.2, at blocks of 16. 4-bit drafts
   are accepted as often as bf16 ones (published: at most 2 % less).
4. A guess j positions after its anchor is right with probability q x 0.99^(j-1) if all guesses
   before it in the block are right, and with 0.8 of that otherwise. q is fitted to the
   tokens per cycle. 0.8 and 0.99 are fitted to a prototype, which went from 2.4 tokens per forward
   (two-pass) to 3.3 (one-pass) on stories, here 3.3, and from 6.4 to 6.7-8.7 on worked problems,
   here 6.5-7.
5. A position is equally hard from every anchor (one draw per position), so a one-pass block mostly
   guesses wrong again where its predecessor did.
6. A kind is stationary, so switching within a text gains nothing; with `--bursty`, easy and hard
   stretches of 30 tokens alternate, with the same mean.
7. Short blocks draft worse: models are trained on long ones. The rejection rate in a block of
   n < 16 rows is (16 / n)^0.14 times that in 16, as measured on the bundled demo (for the first
   three drafts 0.21 in 16 rows, 0.23 in 8, 0.26 in 4).
8. With `--sure`, guesses carry probabilities, and positions differ in how doubtful they are: the
   chance that a guess is wrong is v^((1-m)/m), with m its mean by 4 and v drawn for each position,
   a beta distribution of mean m. Its shape is that of a small checkpoint of blocks of 16, whose
   probabilities were below 0.9, 0.99 at 6.2 and 12.7 % of its drafts where it has 6.4 and 12.4 %.
   The view says this chance itself. Without `--sure` the scheduler hears no probabilities.
9. Prefill, sampling and the host cost nothing in any mode; the scheduler knows the true costs.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from orthrus_mlx.decoding.cost_model import Costs, plan_cost, policies
from orthrus_mlx.decoding.plan import DIFFUSION, Plan, Policy, anchor_depths, reusable_block
from orthrus_mlx.decoding.scheduler import Adaptive, Fixed, Scheduler
from orthrus_mlx.device.calibrate import ONE_PASS, SIZES

DECAY, BEHIND_WRONG, SHORT = 0.99, 0.8, 0.14
PRODUCTS = 2.0  # AR steps that a pass spends on matrix products, before `gemv_wide`
OWN = 0.2  # share of a model's weights in the attention projections of one view
CYCLE_COST, BLOCK = 4.2, 16  # of the published speed-ups
LONGEST = 32  # rows of a block
SPEED_UPS = {
    "1.7B": {"JSON": 2.06, "reasoning": 1.38, "code": 0.83, "prose": 0.71},
    "4B": {"JSON": 2.26, "reasoning": 1.59, "code": 0.90, "prose": 0.80},
    "8B": {"JSON": 3.49, "reasoning": 1.20, "code": 1.11, "prose": 0.67},
}


def cost_table(passes: dict[int, float]) -> Costs:
    """Costs by rows; `passes` maps the most rows of a pass to its cost."""

    def price(rows: int) -> float:
        return min((most, cost) for most, cost in passes.items() if rows <= most)[1]

    def fused(n_ar: int, ahead: int) -> float:
        return (1 - OWN) * price(n_ar + ahead) + OWN * (price(n_ar) + price(ahead))

    blocks = [n for n in SIZES if n <= LONGEST]  # as `calibrate` tries them
    shares = [(1, n - 1) for n in blocks if n >= 4]
    shares += ONE_PASS
    return Costs(
        verify={n: price(n) for n in (1, *blocks)},
        draft={n: price(n) for n in blocks},
        fused={share: fused(*share) for share in shares},
    )


BF16 = {1: 1.0, 16: CYCLE_COST / 2, 32: 1.1 * CYCLE_COST / 2, 64: CYCLE_COST, 96: 1.5 * CYCLE_COST}
# `gemv_wide`, and milliseconds with `qmv_wide`; see assumption 1.
WIDE = {8: CYCLE_COST / 2 - PRODUCTS * (1 - 1 / 1.7)}
MS = {1: 0.129, 2: 0.129, 4: 0.165, 6: 0.263, 8: 0.323, 9: 0.405, 32: 0.51, 64: 1.0, 96: 1.5}
M4_PRO = {1: 1.0, 2: 1.0, 3: 1.13, 4: 1.43, 5: 1.75, 8: 2.84, 32: 4.5, 64: 9.0, 96: 13.5}
HALF = {8: CYCLE_COST / 2 - PRODUCTS * (1 - 1 / 1.7) / 2}
COSTS = {
    "bf16 0.31.2": cost_table(BF16),
    "bf16 0.32.1": cost_table(BF16 | WIDE),
    "4-bit 0.32.0": cost_table({rows: ms / MS[1] for rows, ms in MS.items()}),
    "4-bit M4 Pro": cost_table(M4_PRO),
    "bf16 half": cost_table(BF16 | HALF),
}


@dataclass(frozen=True)
class Kind:
    """A kind of text: the probability that a guess next to its anchor is right, by stretch."""

    chances: tuple[float, ...]
    stretch: int = 30

    @classmethod
    def of(cls, tokens_per_cycle: float, bursty: bool = False) -> Kind:
        """The kind on which two-pass cycles at `BLOCK` give this many tokens."""
        q = fitted(tokens_per_cycle)
        if not bursty:
            return cls((q,))
        # Half of all tokens are in easy stretches: the mean is over cycles, not tokens.
        easy = fitted(min(1.6 * tokens_per_cycle, 0.95 * BLOCK))
        rest = 2 / tokens_per_cycle - 1 / two_pass_tokens(easy)
        return cls((easy, fitted(1 / rest)))


def two_pass_tokens(q: float, n_drafts: int = BLOCK - 1) -> float:
    """Tokens per two-pass cycle."""
    tokens, chance = 1.0, 1.0
    for depth in range(n_drafts):
        chance *= min(1.0, q * DECAY**depth)
        tokens += chance
    return tokens


def fitted(tokens_per_cycle: float) -> float:
    """The q that gives this many tokens per cycle; above 1 if near guesses are never wrong."""
    low, high = 0.0, 2.0
    for _ in range(40):
        q = (low + high) / 2
        low, high = (q, high) if two_pass_tokens(q) < tokens_per_cycle else (low, q)
    return high


class Text:
    """One answer: which guesses would be right."""

    def __init__(self, kind: Kind, seed: int):
        self.kind = kind
        self.draw = random.Random(seed)
        self.first = self.draw.randrange(len(kind.chances))
        self.hardness: list[float] = []

    def chances(self, anchor: int, length: int) -> list[float]:
        """How sure the view is of the guesses of a block; empty if it does not say."""
        return []

    def guesses(self, anchor: int, length: int) -> list[bool]:
        """Whether the guess of each row of a block is right, the first for the next place."""
        while len(self.hardness) <= anchor + length:
            self.hardness.append(self.draw.random())
        right: list[bool] = []
        for depth in range(length):
            chance = self.mean(anchor, depth, length) * (1 if all(right) else BEHIND_WRONG)
            right.append(self.hardness[anchor + 1 + depth] < chance)
        return right

    def mean(self, anchor: int, depth: int, length: int) -> float:
        """The chance that a guess is right if all before it are."""
        stretch = self.first + (anchor + 1 + depth) // self.kind.stretch
        chance = self.kind.chances[stretch % len(self.kind.chances)] * DECAY**depth
        return 1 - max(0.0, 1 - chance) * max(1.0, BLOCK / length) ** SHORT


class SureText(Text):
    """One answer whose guesses carry probabilities; see assumption 8."""

    def __init__(self, kind: Kind, seed: int):
        super().__init__(kind, seed)
        self.other = random.Random(seed + 1_000_000)
        self.doubts: list[float] = []

    def guesses(self, anchor: int, length: int) -> list[bool]:
        """As `Text.guesses`."""
        return [right for right, _ in self._block(anchor, length)]

    def chances(self, anchor: int, length: int) -> list[float]:
        """As `Text.chances`."""
        return [chance for _, chance in self._block(anchor, length)]

    def _block(self, anchor: int, length: int) -> list[tuple[bool, float]]:
        while len(self.hardness) <= anchor + length:
            self.hardness.append(self.draw.random())
            self.doubts.append(1 - self.other.random())
        block: list[tuple[bool, float]] = []
        for depth in range(length):
            seen_right = all(right for right, _ in block)
            mean = 1 - self.mean(anchor, depth, length) * (1 if seen_right else BEHIND_WRONG)
            mean = min(0.999, max(1e-6, mean))
            wrong = self.doubts[anchor + 1 + depth] ** ((1 - mean) / mean)
            block.append((self.hardness[anchor + 1 + depth] >= wrong, 1 - wrong))
        return block


class Guesses(Protocol):
    """Which guesses are right at each position of a text."""

    def chances(self, anchor: int, length: int) -> list[float]:
        """How sure the view is of the guesses of a block; empty if it does not say."""

    def guesses(self, anchor: int, length: int) -> list[bool]:
        """Whether the guess of each row of a block is right, the first for the next place."""


def cycles(
    scheduler: Scheduler, text: Guesses, tokens: int, block_size: int = LONGEST
) -> Iterator[tuple[Plan, int, int]]:
    """Write `tokens` tokens as the engine does: (plan, drafts verified, drafts accepted).

    In blocks of `block_size` rows the last row is untrained and guesses nothing.
    """
    anchor, budget = 0, tokens
    pending: list[bool] = []
    while budget > 0:
        plan = scheduler.plan(budget, {DIFFUSION: len(pending)})
        guesses = text.guesses(anchor, plan.draft_rows)[:-1] if plan.draft_rows else pending
        drafts = guesses[: plan.n_drafts]
        accepted = drafts.index(False) if False in drafts else len(drafts)
        yield plan, len(drafts), accepted
        pending, chances = [], list[float]()
        if (use := reusable_block(plan, len(drafts), accepted)) is not None:
            block, overtaken = use
            begun = anchor + anchor_depths(len(drafts), plan.blocks)[block]
            pending = text.guesses(begun, plan.block_rows)[overtaken : block_size - 1]
            chances = text.chances(begun, plan.block_rows)[overtaken : block_size - 1]
        scheduler.observe(plan, len(drafts), accepted, chances)
        anchor += accepted + 1
        budget -= accepted + 1


def speed_up(scheduler: Scheduler, costs: Costs, text: Text, tokens: int) -> float:
    """Speed over AR decoding of one answer."""
    time = sum(plan_cost(costs, plan, n) for plan, n, _ in cycles(scheduler, text, tokens))
    return tokens * costs.of_ar_step() / time


def mean_speed_up(
    policy: Policy | None,
    costs: Costs,
    kind: Kind,
    tokens: int,
    answers: int,
    text: type[Text] = Text,
) -> float:
    """Harmonic mean of the speed-ups of `answers` answers; mode="auto" if `policy` is None."""
    times = 0.0
    found = policies(costs, "auto", LONGEST)
    for seed in range(answers):
        scheduler = Adaptive(costs, found) if policy is None else Fixed(policy)
        times += 1 / speed_up(scheduler, costs, text(kind, seed), tokens)
    return answers / times


FIXED = {
    "two-pass 16": Policy("two-pass", 15),
    "two-pass 32": Policy("two-pass", 31),
    "one-pass 16+16": Policy("one-pass", 15, 16, 1),
    "alternating 1+7": Policy("alternating", 6, 7, 1),
    "alternating 1+15": Policy("alternating", 14, 15, 1),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answers", type=int, default=40, help="answers for each cell")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--costs", choices=[*COSTS, "all"], default="all")
    parser.add_argument("--bursty", action="store_true", help="alternate easy and hard stretches")
    parser.add_argument("--sure", action="store_true", help="guesses carry probabilities")
    args = parser.parse_args()
    names = [*FIXED, "best fixed or AR", "**auto**", "auto / best"]
    print(f"| costs | model | kind | published | {' | '.join(names)} |")
    print("|---|---|---|" + "---:|" * (1 + len(names)))
    for label in COSTS if args.costs == "all" else [args.costs]:
        costs = COSTS[label]
        candidates = policies(costs, "auto", LONGEST)
        for model, kinds in SPEED_UPS.items():
            for name, published in kinds.items():
                kind = Kind.of(published * CYCLE_COST, args.bursty)
                size = (args.tokens, args.answers, SureText if args.sure else Text)
                row = [mean_speed_up(policy, costs, kind, *size) for policy in FIXED.values()]
                best = max(
                    1.0,
                    *(mean_speed_up(p, costs, kind, *size) for p in candidates),
                )
                auto = mean_speed_up(None, costs, kind, *size)
                cells = [*(f"{x:.2f}" for x in row), f"{best:.2f}", f"**{auto:.2f}**"]
                seen = f"{published:.2f}" if label.startswith("bf16") else ""
                print(f"| {label} | {model} | {name} | {seen} | {' | '.join(cells)} |", end="")
                print(f" {auto / best:.3f} |", flush=True)


if __name__ == "__main__":
    main()
