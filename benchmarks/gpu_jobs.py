"""The jobs of `gpu_proof.py`: each measures one model in one packing, and returns plain values."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from orthrus_mlx import numerics
from orthrus_mlx.checkpoint import resolve
from orthrus_mlx.compare import Answer, Difference, Tally, common_length, first_difference, write
from orthrus_mlx.consensus import Sampling

from .gpu_inputs import build, take_probe
from .scripted import ScriptedDrafts, every_length, usual_lengths

CYCLES = ("two-pass", "one-pass")
SAMPLINGS = {"greedy": 0.0, "T=0.8": 0.8}
Save = Callable[[dict[str, Any]], None]


class Clock:
    """Says when the time of a job is up."""

    def __init__(self, seconds: float):
        self.started = time.monotonic()
        self.seconds = seconds

    def left(self, share: float = 1.0) -> bool:
        """Whether less than this share of the time has passed."""
        return time.monotonic() - self.started < self.seconds * share


def run(job: dict[str, Any], save: Save) -> None:
    """Do one job, saving its result whenever there is more of it."""
    clock = Clock(job["budget"])
    result: dict[str, Any] = {"job": job, "rows": []}
    kinds = {"lossless": lossless, "torch": against_torch, "cost": cost}
    kinds[job["kind"]](job, clock, result, save)
    result["seconds"] = round(time.monotonic() - clock.started, 1)
    result["complete"] = True
    save(result)


# --------------------------------------------------------------------- parallel against plain


def lossless(job: dict[str, Any], clock: Clock, result: dict[str, Any], save: Save) -> None:
    """Parallel against AR mode, exact and then fast, greedy and sampled, both cycles."""
    model, prompts, ends = build(job)
    found = take_probe(model, job, result)
    save(result)
    scripted = ScriptedDrafts.of(model) if job["model"] == "random" else None
    ways = ["exact", "fast"] if isinstance(result["probe"]["row_counts"], dict) else ["fast"]
    for numerics_kind, share in zip(ways, (0.65, 1.0), strict=False):
        rows = compare_cycles(job, model, scripted, prompts, ends, numerics_kind, found.near_tie)
        shown = result["rows"]
        for done, tallies in rows:
            result["rows"] = shown + tallies
            if done % 16 == 0:
                save(result)
            if not clock.left(share):
                break
        save(result)


def compare_cycles(
    job: dict[str, Any],
    model: Any,
    scripted: ScriptedDrafts | None,
    prompts: Sequence[list[int]],
    ends: tuple[int, ...],
    kind: str,
    bound: float,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the rows of the table after each prompt."""
    keys = [(s, c) for s in SAMPLINGS for c in CYCLES]
    tallies = {key: Tally() for key in keys}
    reached: dict[tuple[str, str], list[int]] = {key: [] for key in keys}
    plain = {name: Tally() for name in SAMPLINGS}
    for number, prompt in enumerate(prompts):
        for name, temperature in SAMPLINGS.items():
            sampling = Sampling(temperature=temperature, seed=number)
            options: Any = {"numerics": kind}
            expected = write(
                model,
                prompt,
                ends,
                job["max_tokens"],
                sampling,
                mode="ar",
                keep_logits=kind == "fast",
                **options,
            )
            plain[name].add(expected, expected, None)
            for cycle in CYCLES:
                if scripted is not None:
                    lengths = every_length(model.config.block_size - 1, seed=number)
                    scripted.script(prompt, expected.ids, lengths)
                answer = write(
                    scripted or model,
                    prompt,
                    ends,
                    job["max_tokens"],
                    sampling,
                    mode="parallel",
                    cycle=cycle,
                    **options,
                )
                if kind == "exact" and answer.ids != expected.ids:  # unheard of: look closer
                    expected = write(
                        model,
                        prompt,
                        ends,
                        job["max_tokens"],
                        sampling,
                        mode="ar",
                        keep_logits=True,
                        **options,
                    )
                difference = first_difference(
                    number, len(prompt), expected, answer.ids, sampling, bound
                )
                tallies[name, cycle].add(expected, answer, difference)
                add_reached(reached[name, cycle], answer)
        yield (
            number + 1,
            [
                {
                    "numerics": kind,
                    "sampling": name,
                    "cycle": cycle,
                    "asked": len(prompts),
                    "bound": bound,
                    "accepted_at": reached[name, cycle],
                    "ar_seconds": plain[name].seconds,
                    **tally.to_dict(),
                }
                for (name, cycle), tally in tallies.items()
            ],
        )


def add_reached(totals: list[int], answer: Answer) -> None:
    """Count how often at least 1, 2, ... drafts stood."""
    assert answer.stats is not None
    counts = answer.stats.accepted_at
    totals.extend([0] * (len(counts) - len(totals)))
    for place, count in enumerate(counts):
        totals[place] += count


# ------------------------------------------------------------------------------- against torch


def against_torch(job: dict[str, Any], clock: Clock, result: dict[str, Any], save: Save) -> None:
    """Greedy ids of the torch reference against AR mode and both cycles."""
    import torch

    from tests.reference import orthrus_torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[job["packing"]]
    result["torch"] = {"version": torch.__version__, "device": device}
    model, prompts, ends = build(job)
    reference = orthrus_torch.load(resolve(job["model"]), dtype, device)
    found = take_probe(model, job, result)
    ways: dict[str, tuple[Any, Any]] = {"ar": ("ar", "auto")}
    ways |= {cycle: ("parallel", cycle) for cycle in CYCLES}
    tallies = {way: Tally() for way in [*ways, "torch two-pass"]}
    for number, prompt in enumerate(prompts):
        mine: dict[str, Answer] = {}
        for way, (mode, cycle) in ways.items():
            mine[way] = write(
                model,
                prompt,
                ends,
                job["max_tokens"],
                Sampling(),
                mode=mode,
                cycle=cycle,
                keep_logits=way == "ar",
            )
        theirs = Answer(orthrus_torch.greedy_ar(reference, prompt, job["max_tokens"], ends))
        two_pass, _ = orthrus_torch.greedy_two_pass(reference, prompt, job["max_tokens"], ends)
        mine["torch two-pass"] = Answer(two_pass)
        for way, answer in mine.items():
            # The gap is read off this package's AR logits, as far as the AR answers agree.
            logits = mine["ar"].logits[: common_length(theirs.ids, mine["ar"].ids) + 1]
            place = common_length(theirs.ids, answer.ids)
            judge = Answer(theirs.ids, logits if place < len(logits) else [])
            difference = difference_of(number, prompt, judge, answer, found.near_tie)
            tallies[way].add(theirs, answer, difference)
        result["rows"] = [
            {
                "against": "torch AR",
                "cycle": way,
                "asked": len(prompts),
                "bound": found.near_tie,
                **tally.to_dict(),
            }
            for way, tally in tallies.items()
        ]
        if number % 16 == 15:
            save(result)
        if not clock.left():
            break
    save(result)


def difference_of(
    number: int, prompt: Sequence[int], expected: Answer, found: Answer, bound: float
) -> Difference | None:
    """The first difference; where no logits tell the gap, it counts as infinite."""
    if expected.logits or expected.ids == found.ids:
        return first_difference(number, len(prompt), expected, found.ids, Sampling(), bound)
    place = common_length(expected.ids, found.ids)
    want, have = [*expected.ids, None][place], [*found.ids, None][place]
    return Difference(number, place, want, have, float("inf"), 0, False)


# ----------------------------------------------------------------------------- what exactness costs


def cost(job: dict[str, Any], clock: Clock, result: dict[str, Any], save: Save) -> None:
    """Tokens per second of every mode, exact and fast, taking turns."""
    model, prompts, ends = build(job)
    found = take_probe(model, job, result)
    # The other jobs shared the device: time the row counts again, alone, and choose by that.
    counts = tuple(sorted(found.cost_ms))
    costs = numerics.measure_costs(model, counts)
    found = dataclasses.replace(found, cost_ms=costs)
    numerics._store(numerics._probe_file(model), found)
    result["probe"]["cost_ms"] = costs
    result["probe"]["row_counts"] = dataclasses.asdict(found.row_counts)
    target = ScriptedDrafts.of(model) if job["model"] == "random" else model
    modes: dict[str, tuple[Any, Any]] = {"ar": ("ar", "auto")}
    modes |= {cycle: ("parallel", cycle) for cycle in CYCLES}
    ways = [(kind, mode) for kind in ("exact", "fast") for mode in modes]
    speeds: dict[tuple[str, str], list[tuple[int, float, int]]] = {way: [] for way in ways}
    answers: dict[int, Answer] = {}

    def turn(number: int, kind: str, mode: str) -> Answer:
        prompt = prompts[number % len(prompts)]
        if isinstance(target, ScriptedDrafts) and mode != "ar":
            target.script(prompt, answers[number].ids, usual_lengths(number))
        return write(
            target,
            prompt,
            ends,
            job["max_tokens"],
            Sampling(),
            mode=modes[mode][0],
            cycle=modes[mode][1],
            numerics=kind,
        )

    number = 0
    while number == 0 or (clock.left() and number < len(prompts)):
        order = ways[number % 6 :] + ways[: number % 6] if number else ways
        answers[number] = turn(number, "exact", "ar")  # the script, and a warm-up
        for kind, mode in order:
            answer = turn(number, kind, mode)
            if number:  # the first round compiles kernels
                assert answer.stats is not None
                record = (len(answer.ids), answer.seconds, answer.stats.forward_passes)
                speeds[kind, mode].append(record)
        number += 1
        result["rows"] = [
            {
                "numerics": kind,
                "mode": mode,
                "answers": len(records),
                "tokens": sum(n for n, _, _ in records),
                "tokens_per_second": sum(n for n, _, _ in records) / sum(s for _, s, _ in records),
                "tokens_per_forward": sum(n for n, _, _ in records) / sum(f for _, _, f in records),
            }
            for (kind, mode), records in speeds.items()
            if records
        ]
        save(result)


def main() -> None:
    """Do the job given as JSON, writing its result to a file."""
    job, file = json.loads(sys.argv[1]), Path(sys.argv[2])
    run(job, lambda result: write_json(file, result))


def write_json(file: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    main()
