"""Measure a demo checkpoint on held-out questions: right answers, drafting, parallel == AR."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import orthrus_mlx
from orthrus_mlx.checkpoint.read import ready
from orthrus_mlx.device.probe import cached_probe

from .corpus import Question, evaluation, judge

PRECISIONS = ("float32", "bfloat16", "8-bit", "4-bit")
# Reported apart: free text has no right answer and is harder to draft.
FREE = ("stories", "letters")


@dataclass
class Score:
    """Totals of some questions."""

    questions: int = 0
    judged: int = 0
    exact: int = 0
    tokens: int = 0
    cycles: int = 0
    passes: int = 0
    differ: int = 0

    def __add__(self, other: "Score") -> "Score":
        mine, its = asdict(self), asdict(other)
        return Score(**{name: mine[name] + its[name] for name in mine})

    @property
    def row(self) -> str:
        """The score as cells of a Markdown table."""
        exact = f"{self.exact / self.judged:.1%} of {self.judged}" if self.judged else "-"
        cycle = self.tokens / max(1, self.cycles)
        forward = self.tokens / max(1, self.passes)
        return (
            f"{self.questions} | {exact} | {self.tokens / max(1, self.questions):.0f} | "
            f"{cycle:.1f} | {forward:.2f} | {self.differ}"
        )


@dataclass
class Report:
    """Scores by kind for one precision, and the failures."""

    precision: str
    numerics: str
    scores: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    def total(self, *, free: bool | None = None) -> Score:
        """All kinds together, or only free text, or only the rest."""
        kinds = [k for k in self.scores if free is None or (k in FREE) == free]
        return sum((self.scores[kind] for kind in kinds), Score())

    def table(self) -> str:
        """The report as a Markdown table."""
        lines = [
            f"{self.precision}, greedy, two-pass, {self.numerics} numerics",
            "",
            "| kind | questions | exact | tokens an answer | tokens per cycle | tokens per forward "
            "| parallel ≠ AR |",
            "|---|---|---|---|---|---|---|",
            *(f"| {kind} | {score.row} |" for kind, score in sorted(self.scores.items())),
            f"| **stories and letters** | {self.total(free=True).row} |",
            f"| **all others** | {self.total(free=False).row} |",
            f"| **all** | {self.total().row} |",
        ]
        return "\n".join(lines)


def in_precision(path: str, precision: str) -> tuple[Any, Any]:
    """Load a checkpoint and cast or quantize it in memory."""
    model, tokenizer = orthrus_mlx.load(path)
    if precision == "float32":
        model.set_dtype(mx.float32)
    elif precision.endswith("-bit"):
        nn.quantize(model, group_size=64, bits=int(precision.removesuffix("-bit")))
    return ready(model), tokenizer


def best_numerics(model: Any) -> str:
    """Exact, or fast where no two passes of several rows agree bit for bit."""
    try:
        _ = cached_probe(model).row_counts
    except orthrus_mlx.NumericsError:
        return "fast"
    return "exact"


def measure(
    path: str, questions: Sequence[Question], precision: str, *, limit: int, numerics: str
) -> Report:
    """Answer every question in parallel mode and one token at a time."""
    model, tokenizer = in_precision(path, precision)
    if numerics == "auto":
        # On CUDA a float32 class may be of two rows, which leaves one draft per cycle.
        numerics = "fast" if precision == "float32" else best_numerics(model)
    report = Report(precision, numerics)

    def answer(ids: list[int], mode: str) -> tuple[list[int], Any]:
        stats: list[Any] = []
        tokens = orthrus_mlx.mlx_generate(
            model,
            ids,
            tokenizer.eos_token_id,
            max_tokens=limit,
            mode=mode,
            cycle="two-pass",
            numerics=numerics,
            on_stats=stats.append,
        )
        return list(tokens), stats

    for question in questions:
        ids = tokenizer.apply_chat_template(question.prompt, add_generation_prompt=True)
        tokens, (stats,) = answer(ids, "parallel")
        plain, _ = answer(ids, "ar")
        reply = tokenizer.decode([token for token in tokens if token != tokenizer.eos_token_id])
        right = question.answer is not None and judge(reply, question.answer)
        report.scores[question.kind] += Score(
            questions=1,
            judged=question.answer is not None,
            exact=right,
            tokens=stats.generation_tokens,
            cycles=stats.cycles,
            passes=stats.forward_passes,
            differ=tokens != plain,
        )
        if question.answer is not None and not right:
            report.wrong.append((question.prompt[-1]["content"], reply, question.answer.value))
    return report


def main() -> None:
    """Command line: a checkpoint in, tables out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help='a folder, or "demo"')
    parser.add_argument("--per-kind", type=int, default=15, help="questions of each kind")
    parser.add_argument(
        "--seed", type=int, default=1, help="other than the corpus's: new questions"
    )
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument(
        "--numerics",
        choices=("auto", "exact", "fast"),
        default="auto",
        help="auto: exact, but fast in float32 and where no class of several rows exists",
    )
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--show-wrong", type=int, default=20)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()

    questions = evaluation(args.per_kind, seed=args.seed)
    kinds = {question.kind for question in questions}
    print(f"{len(questions)} held-out questions of {len(kinds)} kinds\n", flush=True)
    text = []
    for precision in args.precision or PRECISIONS:
        start = time.perf_counter()
        report = measure(
            args.model, questions, precision, limit=args.max_tokens, numerics=args.numerics
        )
        text.append(report.table())
        print(f"{text[-1]}\n\n{time.perf_counter() - start:.0f} s", flush=True)
        for asked, got, want in report.wrong[: args.show_wrong]:
            print(json.dumps({"asked": asked, "got": got, "want": want}, ensure_ascii=False))
        print(flush=True)
    if args.out:
        args.out.write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
