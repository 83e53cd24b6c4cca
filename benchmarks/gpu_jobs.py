"""The jobs of `gpu_proof.py`: each measures one model in one packing, and returns plain values."""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from orthrus_mlx.checkpoint.read import resolve
from orthrus_mlx.decoding.consensus import Sampling, common_prefix
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.rows import Rows
from orthrus_mlx.tools.compare import (
    Answer,
    Difference,
    Tally,
    decode_answer,
    first_difference,
)

from .gpu_inputs import build, take_probe
from .scripted import ScriptedDrafts, every_length, usual_lengths

CYCLES = ("two-pass", "one-pass")
SAMPLINGS = {"greedy": 0.0, "T=0.8": 0.8}
WARM_UP = 1  # rounds not timed: the first compiles kernels
Save = Callable[[dict[str, Any]], None]


class Clock:
    """The time budget of a job; it starts once the model is built and probed."""

    def __init__(self, seconds: float):
        self.started = time.monotonic()
        self.seconds = seconds

    def left(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() - self.started < self.seconds


def run(job: dict[str, Any], save: Save) -> None:
    """Do one job, saving its result as it grows."""
    started = time.monotonic()
    result: dict[str, Any] = {"job": job, "rows": []}
    kinds = {"lossless": lossless, "torch": against_torch, "cost": cost}
    kinds[job["kind"]](job, result, save)
    result["seconds"] = round(time.monotonic() - started, 1)
    result["complete"] = True
    save(result)


# ------------------------------------------------------------------------ parallel against AR


def lossless(job: dict[str, Any], result: dict[str, Any], save: Save) -> None:
    """Parallel against AR mode, greedy and sampled, both cycles: exact, then fast.

    Exact mode runs with the class of row counts that it chooses here, then with each other class.
    Each answers at least one prompt, however little time is left.
    """
    model, prompts, ends = build(job)
    found = take_probe(model, job, result)
    save(result)
    clock = Clock(job["budget"])
    scripted = ScriptedDrafts.of(model) if job["model"] == "random" else None

    def compare(kind: str, **label: Any) -> None:
        earlier = result["rows"]
        rows = compare_cycles(job, model, scripted, prompts, ends, kind, found.near_tie)
        for done, tallies in rows:
            result["rows"] = earlier + [{**tally, **label} for tally in tallies]
            if done % 16 == 0:
                save(result)
            if not clock.left():
                break
        save(result)

    counts = result["probe"]["row_counts"]
    if isinstance(counts, dict):
        compare("exact")
        for rows in found.classes:
            if rows[-1] > 1 and rows != counts["verify"]:
                with only_class(model, found, rows):
                    compare("exact", other_class=rows)
    compare("fast")


@contextlib.contextmanager
def only_class(model: Any, found: numerics.Probe, rows: tuple[int, ...]) -> Iterator[None]:
    """Restrict exact mode to one of the classes that were probed."""
    before = os.environ.get("ORTHRUS_MLX_CACHE", "")  # empty counts as unset
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ORTHRUS_MLX_CACHE"] = folder
        try:
            alone = dataclasses.replace(found, classes=(rows,))
            numerics.store_probe(model, alone)
            yield
        finally:
            os.environ["ORTHRUS_MLX_CACHE"] = before


def compare_cycles(
    job: dict[str, Any],
    model: Any,
    scripted: ScriptedDrafts | None,
    prompts: Sequence[list[int]],
    ends: tuple[int, ...],
    kind: str,
    bound: float,
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield (prompts answered, rows of the table) after each prompt."""
    keys = [(s, c) for s in SAMPLINGS for c in CYCLES]
    tallies = {key: Tally() for key in keys}
    reached: dict[tuple[str, str], list[int]] = {key: [] for key in keys}
    plain = {name: Tally() for name in SAMPLINGS}
    for number, prompt in enumerate(prompts):
        for name, temperature in SAMPLINGS.items():
            sampling = Sampling(temperature=temperature, seed=number)
            options: Any = {"numerics": kind}
            expected = decode_answer(
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
                answer = decode_answer(
                    scripted or model,
                    prompt,
                    ends,
                    job["max_tokens"],
                    sampling,
                    mode="parallel",
                    cycle=cycle,
                    **options,
                )
                if kind == "exact" and answer.ids != expected.ids:  # must not happen: keep logits
                    expected = decode_answer(
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
    """Count how often at least 1, 2, ... drafts were accepted."""
    assert answer.stats is not None
    counts = answer.stats.accepted_at
    totals.extend([0] * (len(counts) - len(totals)))
    for place, count in enumerate(counts):
        totals[place] += count


# ------------------------------------------------------------------------------- against torch


def against_torch(job: dict[str, Any], result: dict[str, Any], save: Save) -> None:
    """Greedy ids of the torch reference against AR mode and both cycles."""
    import torch

    from tests.reference import orthrus_torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16}[job["packing"]]
    result["torch"] = {"version": torch.__version__, "device": device}
    model, prompts, ends = build(job)
    reference = orthrus_torch.load(resolve(job["model"]), dtype, device)
    found = take_probe(model, job, result)
    save(result)
    clock = Clock(job["budget"])
    ways: dict[str, tuple[Any, Any]] = {"ar": ("ar", "auto")}
    ways |= {cycle: ("parallel", cycle) for cycle in CYCLES}
    tallies = {way: Tally() for way in [*ways, "torch two-pass"]}
    for number, prompt in enumerate(prompts):
        mine: dict[str, Answer] = {}
        for way, (mode, cycle) in ways.items():
            mine[way] = decode_answer(
                model, prompt, ends, job["max_tokens"], Sampling(), mode=mode, cycle=cycle
            )
        theirs = Answer(orthrus_torch.greedy_ar(reference, prompt, job["max_tokens"], ends))
        two_pass, _ = orthrus_torch.greedy_two_pass(reference, prompt, job["max_tokens"], ends)
        mine["torch two-pass"] = Answer(two_pass)
        for way, answer in mine.items():
            difference = judged(model, number, prompt, theirs.ids, answer.ids, found.near_tie)
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


def judged(
    model: Any,
    number: int,
    prompt: Sequence[int],
    expected: list[int],
    found: list[int],
    bound: float,
) -> Difference | None:
    """The first difference, its gap by this package's AR logits at that position."""
    if expected == found:
        return None
    place = common_prefix(expected, found)
    read = Rows.verify(mx.array([*prompt, *expected[:place]]), model.make_cache())
    row = model.logits(model.backbone(read)[:, -1])[0]  # [vocab_size]
    answer = Answer(expected, [row] * (place + 1))  # only the last row is used
    return first_difference(number, len(prompt), answer, found, Sampling(), bound)


# ----------------------------------------------------------------------------- what exactness costs


def cost(job: dict[str, Any], result: dict[str, Any], save: Save) -> None:
    """Time every mode, exact and fast, in turns: tokens per second over at least two rounds."""
    model, prompts, ends = build(job)
    found = take_probe(model, job, result)
    # Earlier jobs shared the device: time the row counts again, alone, and choose by that.
    counts = tuple(sorted(found.cost_ms))
    costs = numerics.measure_costs(model, counts)
    found = dataclasses.replace(found, cost_ms=costs)
    numerics.store_probe(model, found)
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
        return decode_answer(
            target,
            prompt,
            ends,
            job["max_tokens"],
            Sampling(),
            mode=modes[mode][0],
            cycle=modes[mode][1],
            numerics=kind,
        )

    clock = Clock(job["budget"])
    number = 0
    while number < WARM_UP + 2 or (clock.left() and number < len(prompts)):
        order = ways[number % 6 :] + ways[: number % 6] if number else ways
        answers[number] = turn(number, "exact", "ar")  # the script, and a warm-up
        for kind, mode in order:
            answer = turn(number, kind, mode)
            if number >= WARM_UP:
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
