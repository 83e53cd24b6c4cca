"""The sections of a report: what each measures, and how it is shown.

A new one is one more `Section` in `SECTIONS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from ..device.calibrate import device_costs
from ..device.probe import cached_probe
from ..errors import NumericsError
from ..metal.verdict import verdict_table
from ..rows import Rows
from . import bench as benchmark
from . import verify as verification
from .markdown import table
from .prompts import Prompt

Progress = Callable[[int, int], None]  # called with (steps done, steps in all)
FIRST_ROWS = 16  # of the first pass
ROUNDS = 2  # of the benchmark
VERIFIED = 2  # answers are compared over so many times fewer tokens than they are timed over


@dataclass(frozen=True)
class Subject:
    """What is measured, and how much of it.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        prompts: to answer.
        max_tokens: most tokens in an answer.
    """

    model: Any
    tokenizer: Any
    prompts: Sequence[Prompt]
    max_tokens: int

    @property
    def ids(self) -> list[list[int]]:
        """The prompts as ids."""
        return verification.encode(self.tokenizer, self.prompts)

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        return frozenset(self.tokenizer.eos_token_ids)


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        name: its key in the JSON file.
        title: its heading, and the name of its progress bar.
        measure: what it finds, as plain JSON values; None where it does not apply.
        show: that as lines of Markdown.
    """

    name: str
    title: str
    measure: Callable[[Subject, Progress], dict[str, Any] | None]
    show: Callable[[dict[str, Any]], list[str]]


# -------------------------------------------------------------------------------- the sections


def measure_first_pass(subject: Subject, progress: Progress) -> dict[str, Any]:
    """The first two passes of this process: kernels are compiled in the first."""
    model, seconds = subject.model, []
    ids = (mx.arange(1, FIRST_ROWS + 1, dtype=mx.int32) * 7919 + 13) % model.config.vocab_size
    for done in range(2):
        progress(done, 2)
        start = time.perf_counter()
        mx.eval(model.forward(Rows.verify(ids, model.make_cache())))
        seconds.append(time.perf_counter() - start)
    progress(2, 2)
    return {"rows": FIRST_ROWS, "first_s": seconds[0], "second_s": seconds[1]}


def show_first_pass(found: dict[str, Any]) -> list[str]:
    """Both in one line."""
    return [f"{found['first_s']:.3g} s, then {found['second_s']:.3g} s over {found['rows']} rows."]


def measure_probe(subject: Subject, progress: Progress) -> dict[str, Any]:
    """Which row counts agree bit for bit, probed anew; see `device.probe`."""
    probe = cached_probe(subject.model, progress=progress, fresh=True)
    try:
        rows = asdict(probe.row_counts)
    except NumericsError:
        rows = None
    return {**asdict(probe), "near_tie": probe.near_tie, "exact": rows}


def show_probe(found: dict[str, Any]) -> list[str]:
    """The classes, and the rows of exact numerics."""
    classes = "; ".join(" ".join(map(str, rows)) for rows in found["classes"])
    lines = [f"Row counts that agree bit for bit: {classes}."]
    if found["disagreement"]:
        lines[0] += f" Others disagree by up to {found['disagreement']:.3g} logits."
    if found["exact"] is None:
        return [*lines, "No exact numerics here."]
    rows = " ".join(map(str, found["exact"]["verify"]))
    pairs = " ".join(f"{ar}+{ahead}" for ar, ahead in found["exact"]["fused"])
    return [*lines, f"Exact numerics: passes of {rows} rows; one-pass {pairs or 'none'}."]


def measure_verify(subject: Subject, progress: Progress) -> dict[str, Any]:
    """Whether every mode writes the tokens of AR mode; see `tools.verify`."""
    found = verification.verify(
        subject.model,
        subject.ids,
        subject.ends,
        cached_probe(subject.model),
        max_tokens=max(1, subject.max_tokens // VERIFIED),
        progress=progress,
    ).to_dict()
    kept = ("passed", "verdict", "interrupted", "no_exact", "prompts")
    rows = [
        {key: row[key] for key in VERIFY_FIELDS} | {"differences": row["differences"][:3]}
        for row in found["rows"]
    ]
    return {key: found[key] for key in kept} | {"rows": rows}


VERIFY_FIELDS = (
    "numerics",
    "temperature",
    "way",
    "faults",
    "prompts",
    "same_prompts",
    "tokens",
    "same_tokens",
)


def show_verify(found: dict[str, Any]) -> list[str]:
    """A row for each mode."""
    rows = [
        (
            row["numerics"],
            f"T={row['temperature']:g}" if row["temperature"] else "greedy",
            row["way"],
            f"{row['same_prompts']} of {row['prompts']}",
            f"{row['same_tokens']:,} of {row['tokens']:,}",
            row["faults"],
        )
        for row in found["rows"]
    ]
    names = ("Numerics", "Choice", "AR against", "Same answers", "Same tokens", "Faults")
    lines = table(names, rows, "lllrrr")
    return [*lines, "", found["no_exact"]] if found["no_exact"] else lines


def measure_costs(subject: Subject, progress: Progress) -> dict[str, Any]:
    """What passes cost, in AR steps, measured anew; see `device.calibrate`."""
    model = subject.model
    costs = device_costs(model, model.config.block_size, progress, fresh=True)
    step = costs.of_ar_step()
    return {
        "ar_step_ms": step * 1e3,
        "verify": [[rows, cost / step] for rows, cost in sorted(costs.verify.items())],
        "draft": [[rows, cost / step] for rows, cost in sorted(costs.draft.items())],
        "fused": [[*rows, cost / step] for rows, cost in sorted(costs.fused.items())],
    }


def show_costs(found: dict[str, Any]) -> list[str]:
    """By rows, then by the rows of both views.

    What is timed is whole cycles: a draft pass alone is a difference, which noise can make zero.
    """
    drafts = dict(map(tuple, found["draft"]))
    rows = [
        (n, f"{cost:.2f}", f"{cost + drafts[n]:.2f}" if n in drafts else "")
        for n, cost in found["verify"]
    ]
    fused = [(f"{ar} + {ahead}", f"{cost:.2f}") for ar, ahead, cost in found["fused"]]
    return [
        f"One AR step takes {found['ar_step_ms']:.3g} ms; all else is in AR steps. Sizes that "
        "cannot pay are not measured.",
        "",
        *table(("Rows", "Verify pass", "Two-pass cycle"), rows, "rrr"),
        "",
        *table(("AR + block rows in one pass", "Cost"), fused, "rr"),
    ]


def measure_tune(subject: Subject, progress: Progress) -> dict[str, Any] | None:
    """What `orthrus-mlx tune` found before, if it did; nothing is tried here."""
    found = verdict_table(subject.model)
    return found if found.get("products") else None


def show_tune(found: dict[str, Any]) -> list[str]:
    """Our kernel's time over MLX's, of each shape, by rows."""
    rows, shown = [], (1, 2, 4, 8, 16)
    for product in found["products"]:
        for kernel, ms in product["ms"].items():
            ratio = {n: f"{ours / theirs:.2f}" for n, theirs, ours in ms}
            used = product["used"] and product["used"]["kernel"] == kernel
            packed = f"{product['bits']} bits" if product["group"] > 1 else product["dtype"]
            name = (f"{product['outputs']} x {product['dim']}", packed, kernel)
            said = " ".join(map(str, product["used"]["rows"])) if used else "no"
            rows.append((*name, *(ratio.get(n, "") for n in shown), said))
    columns = ("Shape", "Weights", "Kernel", *map(str, shown), "Used for rows")
    faults = [f"{kernel} is not used: {why}" for kernel, why in found["faults"].items()]
    return [*table(columns, rows, "lll" + "r" * len(shown) + "l"), *faults]


def measure_bench(subject: Subject, progress: Progress) -> dict[str, Any]:
    """Speed by kind of text and mode; see `tools.bench`."""
    prompts = list(zip((p.kind for p in subject.prompts), subject.ids, strict=True))
    options = benchmark.Options(max_tokens=max(2, subject.max_tokens), rounds=ROUNDS)
    found = benchmark.bench(subject.model, prompts, subject.ends, options, progress=progress)
    return {
        "max_tokens": options.max_tokens,
        "rounds": options.rounds,
        "interrupted": found.interrupted,
        "summaries": [asdict(summary) for summary in found.summaries],
    }


def show_bench(found: dict[str, Any]) -> list[str]:
    """A row for each kind of text; speeds over AR mode of the same prompt in the same round."""
    ways: dict[str, dict[str, dict[str, Any]]] = {}
    for summary in found["summaries"]:
        ways.setdefault(summary["kind"], {})[summary["way"]] = summary

    def of(summary: dict[str, Any] | None, key: str, digits: int = 2) -> str:
        value = (summary or {}).get(key)
        if isinstance(value, dict):
            value = value["median"]
        return "" if value is None else f"{value:.{digits}f}"

    rows = [
        (
            kind,
            of(by.get("ar"), "speed", 1),
            of(by.get("auto"), "speed_up"),
            of(by.get("parallel"), "speed_up"),
            of(by.get("parallel"), "tokens_per_forward"),
            of(by.get("parallel"), "tokens_per_cycle"),
            of(by.get("ar"), "first_token"),
        )
        for kind, by in ways.items()
    ]
    names = (
        "Text",
        "AR tokens/s",
        "auto over AR",
        "always drafting over AR",
        "tokens a forward",
        "tokens a cycle",
        "first token, s",
    )
    return [
        *table(names, rows),
        "",
        f"Medians of {found['rounds']} rounds, answers of at most {found['max_tokens']} tokens. "
        "Tokens a forward and a cycle are those of always drafting.",
        "",
        *table(("Peak memory", "MB"), _peaks(found["summaries"])),
    ]


def _peaks(summaries: list[dict[str, Any]]) -> list[tuple[str, str]]:
    peaks: dict[str, int] = {}
    for summary in summaries:
        peaks[summary["way"]] = max(peaks.get(summary["way"], 0), summary["peak_memory"])
    return [(way, f"{peak / 1e6:.0f}") for way, peak in peaks.items()]


SECTIONS = (
    Section(
        "first_pass",
        "First pass, which reads the weights and compiles kernels",
        measure_first_pass,
        show_first_pass,
    ),
    Section("probe", "Row counts that agree bit for bit", measure_probe, show_probe),
    Section("verify", "Answers compared with AR mode", measure_verify, show_verify),
    Section("costs", "What passes cost", measure_costs, show_costs),
    Section("tune", "Our Metal kernels over MLX's, as tuned before", measure_tune, show_tune),
    Section("bench", "Speed by kind of text", measure_bench, show_bench),
)
