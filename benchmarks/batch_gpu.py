"""Many answers at once at the real models' sizes: ours plain, ours with drafts, and mlx-lm's.

Random weights have no drafts that stand, so here the text and the drafts are scripted: each AR row
says the next id of a made-up text, and the guesses about it go wrong after as many ids as they do
on the bundled demo, whose runs are drawn from. Every pass still computes all that it would; the
scripts cost a little more, which counts against drafting. Plain batches write what the weights say.
mlx-lm runs its own `BatchGenerator` on the same weights. With `--demo` the bundled demo writes with
its real drafts instead.

    python benchmarks/batch_gpu.py [--shape qwen3-8b] [--bits 4] [--counts 1,2,4,8,16]
    python benchmarks/batch_gpu.py --demo

Also printed: with `--exact`, whether answers in exact numerics are the same alone and in batches.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.gpu_jobs import write_json
from benchmarks.scripted import LOUD
from orthrus_mlx import BatchEngine, load, mlx_generate
from orthrus_mlx.device.calibrate_batch import batch_costs
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows
from orthrus_mlx.tools.bench_batch import BatchReport, bench_batch
from orthrus_mlx.tools.bench_shapes import SHAPES, build
from orthrus_mlx.tools.prompts import bundled
from orthrus_mlx.tools.verify import encode

BATCHES = "1,2,4,8,16"


class ScriptedBatch(Model):
    """The real model, whose AR rows say a scripted text and whose guesses about it are scripted."""

    scripts: dict[int, tuple[list[int], list[int]]]  # by cache: the text, and guesses by position

    @classmethod
    def of(cls, model: Model) -> ScriptedBatch:
        """The same model, weights shared."""
        scripted: Any = copy.copy(model)
        scripted.__class__ = type(cls.__name__, (cls, type(model)), {})
        object.__setattr__(scripted, "scripts", {})
        return scripted

    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]:
        """The model's pass, with the script's text and guesses."""
        known = [
            self.scripts.get(id(s.cache[0].script)) if hasattr(s.cache[0], "script") else None
            for s in rows.segments
        ]
        starts = list(rows.starts)
        verified, drafted = super().forward(rows)
        if any(script is None for script in known):
            return verified, drafted
        ar, blocks = list[int](), list[int]()
        for segment, start, script in zip(rows.segments, starts, known, strict=True):
            assert script is not None
            text, guesses = script
            ar += text[start + 1 : start + 1 + segment.n_ar]
            if segment.blocks is not None:
                length = segment.blocks.shape[1]
                for depth in segment.depths:
                    blocks += guesses[start + depth + 1 : start + depth + 1 + length]
        return _say(verified, ar), _say(drafted, blocks)


def _say(logits: mx.array, ids: Sequence[int]) -> mx.array:
    """Logits [rows, vocab_size] raised at the id of each row."""
    if not ids:
        return logits
    loud = mx.full((len(ids), 1), LOUD, logits.dtype)
    return mx.put_along_axis(logits, mx.array(list(ids))[:, None], loud, axis=-1)


def runs_of_the_demo(tokens: int = 96, prompts: int = 10) -> list[int]:
    """How many of the demo's drafts stood, cycle by cycle, on the bundled prompts."""
    model, tokenizer = load("demo")
    found: list[int] = []
    for ids in encode(tokenizer, bundled()[:prompts]):
        stood: list[int] = []
        follow(model, ids, tokenizer.eos_token_ids, tokens, stood)
        found += stood
    return found


def follow(model: Any, ids: Any, ends: Any, tokens: int, stood: list[int]) -> None:
    """Add the accepted drafts of each cycle of one answer."""
    from orthrus_mlx.decoding.options import GenerationOptions
    from orthrus_mlx.generate import decode_tokens

    options = GenerationOptions(max_tokens=tokens, mode="parallel", cycle="two-pass")
    before = [0, 0]
    for _, stats in decode_tokens(model, ids, ends, options):
        if stats.cycles > before[0]:
            stood.append(stats.accepted_tokens - before[1])
            before = [stats.cycles, stats.accepted_tokens]


def script(model: ScriptedBatch, lengths: Sequence[int], tokens: int) -> Any:
    """What gives each batch its texts; `lengths` are how many guesses in a row are right."""

    def begin(caches: Sequence[Any], prompts: Sequence[Sequence[int]]) -> None:
        model.scripts.clear()
        vocab = model.config.mask_token_id
        for n, (cache, prompt) in enumerate(zip(caches, prompts, strict=True)):
            draw = random.Random(n)
            text = [*prompt, *(draw.randrange(vocab) for _ in range(tokens + 300))]
            guesses, at = list(text), len(prompt)
            while at < len(text):
                at += draw.choice(list(lengths))
                if at < len(text):
                    guesses[at] = (guesses[at] + 1) % vocab
                at += 1
            mark = object()
            cache[0].script = mark
            model.scripts[id(mark)] = text, guesses

    return begin


def exact_in_batches(model: Any, prompts: Sequence[list[int]], tokens: int) -> dict[str, int]:
    """Answers in exact numerics that are the same alone and beside the others."""
    _, tokenizer = load("demo")
    same, shared = 0, 0
    for mode in ("ar", "parallel"):
        options: dict[str, Any] = {"mode": mode, "numerics": "exact", "max_tokens": tokens}
        alone = [list(mlx_generate(model, prompt, (), **options)) for prompt in prompts]
        with BatchEngine(model, tokenizer, prefix_memory=0) as engine:
            got = {engine.add(p, eos_token_ids=(), **options): list[int]() for p in prompts}
            while engine.running:
                for number, response, error in engine.step():
                    if error is not None or response is None:
                        raise RuntimeError(str(error))
                    got[number].append(response.token)
        same += sum(a == b for a, b in zip(alone, got.values(), strict=True))
        shared += len(prompts)
    return {"answers": shared, "same": same}


def show(report: BatchReport) -> None:
    """One row for each way of the number of answers that was measured last."""
    new = report.speeds[-len({row.way for row in report.speeds}) :]
    if len(new) == len(report.speeds):
        print("| at once | way | tok/s | quartiles | over the first way | tokens a cycle |")
        print("|---:|---|---:|---:|---:|---:|")
    for row in new:
        low, high = row.speed.low, row.speed.high
        cycle = f"{row.tokens_per_pass:.2f}" if row.tokens_per_pass else ""
        print(
            f"| {row.count} | {row.way} | {row.speed.median:.1f} | {low:.1f} to {high:.1f} "
            f"| {row.ratio.median:.2f} | {cycle} |",
            flush=True,
        )


def main() -> None:
    """Measure; print the rows of each count, and write JSON, as soon as they are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-8b")
    parser.add_argument("--bits", type=int, default=None, help="quantize to so many; none: bf16")
    parser.add_argument("--demo", action="store_true", help="the demo, with its real drafts")
    parser.add_argument("--counts", default=BATCHES, help="answers at once")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--context", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exact", action="store_true", help="compare exact answers too")
    parser.add_argument("--json", type=Path, default=None, help="where everything goes as JSON")
    args = parser.parse_args()
    counts = [int(n) for n in args.counts.split(",")]
    begin, facts = None, dict[str, Any]()
    if args.demo:
        loaded, tokenizer = load("demo")
        prompts = encode(tokenizer, bundled()[: max(counts)])
        ends: Any = tokenizer.eos_token_ids
    else:
        lengths = runs_of_the_demo()
        facts["accepted a cycle"] = sum(lengths) / len(lengths)
        loaded, ends = build(args.shape, args.bits), ()
        vocab, draw = loaded.config.mask_token_id, random.Random(1)
        prompts = [[draw.randrange(vocab) for _ in range(args.context)] for _ in range(max(counts))]
        if args.exact:
            facts["exact"] = exact_in_batches(loaded, prompts[:4], 48)
        loaded = ScriptedBatch.of(loaded)
        begin = script(loaded, lengths, args.tokens)
    print(
        json.dumps({"device": str(mx.device_info()), **vars(args), **facts}, default=str),
        flush=True,
    )

    def keep(report: BatchReport) -> None:
        """Write everything as JSON, as far as it got."""
        if args.json is not None:
            write_json(args.json, {**facts, **report.to_dict()})

    def measured(report: BatchReport) -> None:
        show(report)
        keep(report)

    report = bench_batch(
        loaded,
        prompts,
        ends,
        counts,
        lambda: batch_costs(loaded, loaded.config.block_size),
        max_tokens=args.tokens,
        rounds=args.rounds,
        against=True,
        begin=begin,
        measured=measured,
    )
    keep(report)
    if report.interrupted:
        sys.exit(130)


if __name__ == "__main__":
    main()
