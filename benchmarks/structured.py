"""Tokens for each forward pass under five JSON Schemas, by what drafts know of the grammar.

Every answer is held against constrained plain decoding, whose ids all must equal. `plain` writes
one token a pass. `blind` drafts as if there were no grammar; `two-pass`, `one-pass` and
`alternating` let it pick the drafts; `forced` verifies only what the grammar forces, with no draft
pass (mode="ar"). `auto` is mode="auto". The last columns are speeds over plain decoding by costs of
passes: those of Metal's kernels as published (see `simulate`), or measured here.

    python benchmarks/structured.py demo [--temp 0.8] [--costs "4-bit 0.32.0"|here]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import COSTS
from orthrus_mlx import DecodeStats, JsonSchema, Sampling, load
from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.decoding.batch import decode
from orthrus_mlx.decoding.choosers import LogitsProcessor
from orthrus_mlx.decoding.cost_model import Costs, plan_cost, within
from orthrus_mlx.decoding.drafters import ForcedDrafter
from orthrus_mlx.decoding.grammar import Matcher, compile_constraint, mask
from orthrus_mlx.decoding.plan import ANY_ROWS, Plan
from orthrus_mlx.decoding.scheduler import Scheduler, make_scheduler
from orthrus_mlx.decoding.sequence import Request
from orthrus_mlx.device.calibrate import device_costs
from orthrus_mlx.device.probe import cached_probe

TEXT = {"type": "string", "maxLength": 16}
PERSON = {
    "type": "object",
    "properties": {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def record(**properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "person": record(
        name=TEXT,
        age={"type": "integer", "minimum": 0, "maximum": 120},
        city=TEXT,
        tags={"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
    ),
    "people": record(people={"type": "array", "items": PERSON, "minItems": 3, "maxItems": 5}),
    "verdict": record(
        language={"enum": ["English", "German", "Chinese"]},
        sentiment={"enum": ["positive", "neutral", "negative"]},
        confidence={"type": "integer", "minimum": 0, "maximum": 100},
        spam={"type": "boolean"},
    ),
    "order": record(
        order_number={"type": "integer", "minimum": 1, "maximum": 99999},
        date={"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"},
        items={
            "type": "array",
            "items": record(product=TEXT, quantity={"type": "integer", "minimum": 1, "maximum": 9}),
            "minItems": 2,
            "maxItems": 4,
        },
        paid={"type": "boolean"},
    ),
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "children": {
                        "type": "array",
                        "items": {"$ref": "#/$defs/node"},
                        "maxItems": 2,
                    },
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
}
QUESTION = "Write a record about Anna, who is 34, lives in Rome and has two friends, as JSON."
FIXED = ("two-pass", "one-pass", "alternating")


class Priced:
    """A scheduler, adding up what its cycles cost."""

    def __init__(self, scheduler: Scheduler, costs: Costs):
        self.inner, self.costs, self.spent = scheduler, costs, 0.0

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        """The scheduler's plan."""
        return self.inner.plan(budget, at_hand)

    def observe(
        self, plan: Plan, n_drafts: int, accepted: int, chances: Sequence[float] = ()
    ) -> None:
        """Add the cycle's cost."""
        self.spent += plan_cost(self.costs, plan, n_drafts)
        self.inner.observe(plan, n_drafts, accepted, chances)


class Bench:
    """One model's answers to one question under one schema."""

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling, max_tokens: int, exact: bool
    ):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.max_tokens = max_tokens
        self.row_counts = cached_probe(model).row_counts if exact else ANY_ROWS
        self.ends = frozenset(tokenizer.eos_token_ids)
        self.prompt = encode_chat(tokenizer, [{"role": "user", "content": QUESTION}], {})[0]

    def matcher(self, schema: JsonSchema) -> Matcher:
        """The schema for this tokenizer."""
        size = self.model.config.vocab_size
        return compile_constraint(schema, self.tokenizer, size, self.ends, self.prompt)

    def blind(self, matcher: Matcher) -> LogitsProcessor:
        """The grammar as a logits processor, of which drafts know nothing."""
        state, seen = matcher.fork(), len(self.prompt)

        def processor(tokens: mx.array, logits: mx.array) -> mx.array:
            nonlocal seen
            ids: Any = tokens.tolist()
            state.advance(ids[seen:])
            seen = len(ids)
            return mask(logits, state.allowed(()))

        return processor

    def run(
        self, scheduler: Scheduler, matcher: Matcher | None, forced: bool, processors: Any = ()
    ) -> tuple[list[int], DecodeStats]:
        """Ids and stats of one answer."""
        request = Request(
            self.prompt,
            self.ends,
            self.max_tokens,
            self.sampling,
            self.model.config.mask_token_id,
            processors,
            self.row_counts,
            grammar=matcher,
        )
        drafters = [ForcedDrafter()] if forced else []
        cache = self.model.make_cache()
        written = list(decode(self.model, request, scheduler, cache, drafters=drafters))
        return [decided.token for decided, _ in written], written[-1][1]


def main() -> None:
    """Print the table; exit with 1 if any ids differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a folder, a Hub id or 'demo'")
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--exact", action="store_true", help="exact numerics, as probed here")
    parser.add_argument("--float32", action="store_true", help="compute in float32")
    parser.add_argument("--schema", choices=tuple(SCHEMAS), help="this one only")
    parser.add_argument("--costs", choices=(*COSTS, "here"), default="4-bit 0.32.0")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    if args.float32:
        model.set_dtype(mx.float32)
    block = model.config.block_size
    costs = device_costs(model, block) if args.costs == "here" else COSTS[args.costs]
    bench = Bench(
        model, tokenizer, Sampling(args.temp, seed=args.seed), args.max_tokens, args.exact
    )
    costs = within(costs, bench.row_counts)
    print(f"{args.model}, temperature {args.temp:g}, costs: {args.costs}\n")
    ways = ("plain", "blind", *FIXED, "forced", "auto")
    names = [*ways, *(f"{way}: speed" for way in (*FIXED, "forced", "auto"))]
    print("| schema | form | tokens | " + " | ".join(names) + " |")
    print("|---|---|" + "---:|" * (1 + len(names)))
    differ = 0
    for name in [args.schema] if args.schema else SCHEMAS:
        for form, separators in (("compact", (",", ":")), ("spaced", (", ", ": "))):
            matcher = bench.matcher(JsonSchema(SCHEMAS[name], separators))
            figures, speeds, plain = [], [], []
            for way in ways:
                mode: Any = {"plain": "ar", "forced": "ar", "auto": "auto"}.get(way, "parallel")
                cycle: Any = way if way in FIXED else "auto"
                scheduler = Priced(make_scheduler(mode, cycle, block, lambda: costs), costs)
                blind = [bench.blind(matcher)] if way == "blind" else []
                grammar = None if blind else matcher
                ids, stats = bench.run(scheduler, grammar, way not in ("plain", "blind"), blind)
                plain = plain or ids
                differ += ids != plain
                figures.append(stats.tokens_per_forward)
                if way not in ("plain", "blind"):
                    speeds.append(len(ids) * costs.of_ar_step() / scheduler.spent)
            row = " | ".join(f"{figure:.2f}" for figure in (*figures, *speeds))
            print(f"| {name} | {form} | {len(plain)} | {row} |", flush=True)
    print(f"\nAnswers that differ from constrained plain decoding: {differ}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
