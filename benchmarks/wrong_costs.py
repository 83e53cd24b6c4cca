"""Measure how long costs that are wrong make mode="auto" slow: the first answer, and the next one.

For each way to be wrong, the costs of a folder of its own are scrambled, and prompts are answered
in new processes, two answers in each: the first contradicts what is stored, the second waits for
it to be measured again. Speeds are of decoding alone, over AR mode's on the same prompt just before
and after. The ids of all answers must be those of AR mode.

    python benchmarks/wrong_costs.py demo [--prompts 3] [--only "drafts cost half"]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from orthrus_mlx import load, mlx_generate
from orthrus_mlx.decoding.cost_model import Costs
from orthrus_mlx.device import calibrate, measured
from orthrus_mlx.tools.prompts import bundled
from orthrus_mlx.tools.verify import encode

TOKENS = 128


def slow_ar_step(good: Costs) -> Costs:
    """AR steps were timed at a third of their speed; no pass that writes seems cheaper."""
    step = 3 * good.of_ar_step()
    return replace(good, plain=step, verify={n: max(step, c) for n, c in good.verify.items()})


def seen(good: Costs) -> Costs:
    """As once found: an AR step of 24.6 ms for 8, one draft pass for nothing."""
    wrong = slow_ar_step(good)
    return replace(wrong, draft={n: 0.0 if n == 4 else 0.7 * c for n, c in good.draft.items()})


def cheap_drafts(good: Costs) -> Costs:
    """Draft passes seem to cost half, and one of them nothing."""
    return replace(good, draft={n: 0.0 if n == 4 else c / 2 for n, c in good.draft.items()})


WRONG: dict[str, Callable[[Costs], Costs]] = {
    "none": lambda good: good,
    "AR steps cost three times": slow_ar_step,
    "that, and drafts nothing": seen,
    "drafts cost half": cheap_drafts,
}


def answer(model: Any, ids: list[int], ends: list[int], mode: Any) -> tuple[list[int], float]:
    """An answer, and its tokens a second from the first one on."""
    written, first = list[int](), 0.0
    for token in mlx_generate(model, ids, ends, TOKENS, mode=mode):
        first = first or time.perf_counter()
        written.append(token)
    return written, (len(written) - 1) / (time.perf_counter() - first)


def two_answers(name: str, number: int) -> None:
    """In a process of its own: what each answer comes to."""
    model, tokenizer = load(name)
    ids, ends = encode(tokenizer, bundled())[number], sorted(tokenizer.eos_token_ids)
    calibrate_once, waited = calibrate.calibrate, 0.0

    def timed(*given: Any) -> Costs:
        nonlocal waited
        start = time.perf_counter()
        found = calibrate_once(*given)
        waited += time.perf_counter() - start
        return found

    calibrate.calibrate = timed
    answer(model, ids, ends, "ar")
    for turn in (1, 2):
        waited = 0.0
        expected, before = answer(model, ids, ends, "ar")
        found, speed = answer(model, ids, ends, "auto")
        plain = (before + answer(model, ids, ends, "ar")[1]) / 2
        same = "same ids" if found == expected else "OTHER IDS"
        told = f", measured again for {waited:.1f} s" if waited else ""
        print(
            f"  prompt {number}, answer {turn}: {plain:.1f} tokens a second plain, "
            f"auto {speed / plain:.2f} times as many, {len(found)} tokens, {same}{told}",
            flush=True,
        )


def main() -> None:
    """Scramble, and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--only", choices=WRONG)
    parser.add_argument("--prompt", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prompt is not None:
        two_answers(given.model, given.prompt)
        return
    model, _ = load(given.model)
    block = model.config.block_size
    good = calibrate.calibrate(model, block)
    print(f"An AR step takes {good.of_ar_step() * 1e3:.1f} ms.")
    for way, wrong in WRONG.items():
        if given.only not in (None, way):
            continue
        print(f"Wrong: {way}")
        for number in range(given.prompts):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["ORTHRUS_MLX_CACHE"] = folder
                key = calibrate._key(model, block)
                measured.store("costs", key, wrong(good), calibrate._encode)
                command = [sys.executable, __file__, given.model, "--prompt", str(number)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
