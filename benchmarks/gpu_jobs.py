"""The jobs of `gpu_proof.py`: each measures one model in one packing, and returns plain values."""

import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from orthrus_mlx import numerics
from orthrus_mlx.checkpoint import inspect, load_model, load_tokenizer, resolve
from orthrus_mlx.compare import Answer, Difference, Tally, common_length, first_difference, write
from orthrus_mlx.config import ModelConfig
from orthrus_mlx.consensus import Sampling
from orthrus_mlx.errors import NumericsError
from orthrus_mlx.model import Model
from tests import helpers

from .scripted import ScriptedDrafts, every_length, usual_lengths

BITS = {"8bit": 8, "4bit": 4}
CYCLES = ("two-pass", "one-pass")
SAMPLINGS = {"greedy": 0.0, "T=0.8": 0.8}
SHAPES = {  # Qwen3-1.7B
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "mask_token_id": 151669,
    "max_position_embeddings": 40960,
    "block_size": 32,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "layer_types": None,
}
SMALL_SHAPES = {
    **SHAPES,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "mask_token_id": 255,
    "max_position_embeddings": 2048,
    "block_size": 16,
}
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


# ------------------------------------------------------------------------------------ preparation


def build(job: dict[str, Any]) -> tuple[Any, list[list[int]], tuple[int, ...]]:
    """The model of a job, its prompts, and its end tokens."""
    if job["model"] == "random":
        shapes = SMALL_SHAPES if job["smoke"] else SHAPES
        config = helpers.random_config(**shapes)
        weights = helpers.random_weights(config, seed=1, dtype=mx.bfloat16)
        model: Any = Model(ModelConfig.from_dict(config))
        model.load_weights(list(weights.items()), strict=True)
        model.eval()
        prompts, ends = random_prompts(job["count"], config["vocab_size"]), ()
    else:
        checkpoint = inspect(resolve(job["model"]))
        model = load_model(checkpoint)
        prompts = read_prompts(job["prompts"], checkpoint.folder, job["count"])
        ends = checkpoint.config.eos_token_ids
    if job["packing"] == "float32":
        model.set_dtype(mx.float32)
    elif bits := BITS.get(job["packing"]):
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return model, prompts, ends


def random_prompts(count: int, vocab_size: int) -> list[list[int]]:
    """Prompts of 20 to 60 random ids."""
    draw = random.Random(7)
    return [[draw.randrange(vocab_size) for _ in range(draw.randint(20, 60))] for _ in range(count)]


def read_prompts(file: str, folder: Path, count: int) -> list[list[int]]:
    """`count` prompts from a file, varied where it holds fewer.

    A JSON list of {"prompt": ids or text, "tokens": ids}, or text with one question a line. More
    prompts are made by taking the conversation on: the answer's start, or the answer and the next
    question.
    """
    path = Path(file)
    cases: list[Any]
    if path.suffix == ".json":
        cases = json.loads(path.read_text(encoding="utf-8"))
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        cases = [line for line in lines if line.strip()]
    cases = [case if isinstance(case, dict) else {"prompt": case} for case in cases]
    if any(isinstance(case["prompt"], str) for case in cases):
        tokenizer = load_tokenizer(folder)
        for case in cases:
            if isinstance(case["prompt"], str):
                case["prompt"] = encode(tokenizer, case["prompt"])
    prompts = [case["prompt"] for case in cases][:count]
    for case in cases:  # half-way through the answer
        if len(prompts) < count and len(case.get("tokens", [])) > 8:
            prompts.append(case["prompt"] + case["tokens"][: len(case["tokens"]) // 3])
    for case, follow in zip(cases, [*cases[1:], cases[0]], strict=True):
        if len(prompts) < count:  # a second question
            prompts.append(case["prompt"] + case.get("tokens", []) + follow["prompt"])
    return prompts


def encode(tokenizer: Any, question: str) -> list[int]:
    """A question as the chat template puts it, where there is one."""
    if tokenizer.has_chat_template:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(question))


def take_probe(model: Any, job: dict[str, Any], result: dict[str, Any]) -> numerics.Probe:
    """The probe's result, from disk where another job has run it."""
    started = time.monotonic()
    if job["smoke"]:
        found = numerics.stored_probe(model) or numerics.probe(model, contexts=(24,))
        numerics._store(numerics._probe_file(model), found)
    else:
        found = numerics.cached_probe(model)
    try:
        counts: Any = dataclasses.asdict(found.row_counts)
    except NumericsError as e:
        counts = str(e)
    result["probe"] = {
        "seconds": round(time.monotonic() - started, 1),
        "near_tie": found.near_tie,
        "row_counts": counts,
        **dataclasses.asdict(found),
    }
    return found


# --------------------------------------------------------------------- parallel against plain


def lossless(job: dict[str, Any], clock: Clock, result: dict[str, Any], save: Save) -> None:
    """Parallel against AR mode, exact and then fast, greedy and sampled, both cycles."""
    model, prompts, ends = build(job)
    found = take_probe(model, job, result)
    save(result)
    scripted = ScriptedDrafts(model) if job["model"] == "random" else None
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
    costs = numerics.measure_costs(model, counts, context=100)
    found = dataclasses.replace(found, cost_ms=costs)
    numerics._store(numerics._probe_file(model), found)
    result["probe"]["cost_ms"] = costs
    result["probe"]["row_counts"] = dataclasses.asdict(found.row_counts)
    target = ScriptedDrafts(model) if job["model"] == "random" else model
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
