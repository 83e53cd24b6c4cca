"""What the tests run on every rank: `python -m tests.distributed.jobs NAME FOLDER ...`.

The same on one process and on several, as `load` is the only thing that knows. Each job prints one
line of JSON, on rank 0, with what the other ranks report under "ranks".
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from orthrus_mlx import (
    BatchEngine,
    Choices,
    ModelConfig,
    Regex,
    generate,
    load,
    mlx_generate,
    stream_generate,
)
from orthrus_mlx.decoding.cost_model import Costs
from orthrus_mlx.device import calibrate, measured
from orthrus_mlx.rows import Rows, Segment

WAYS = (("ar", "auto"), *(("parallel", c) for c in ("two-pass", "one-pass", "alternating")))
WAYS = (*WAYS, ("auto", "auto"))
Found = dict[str, Any]


def ids_of(model: Any, n: int, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(model.config.vocab_size - 1) for _ in range(n)]


def lone(model: Any, **options: Any) -> list[int]:
    prompt = options.pop("prompt", None) or ids_of(model, 11)
    return list(mlx_generate(model, prompt, (), calibrate=False, **options))


def answers(folder: Path) -> Found:
    """Ids of all modes and cycles, greedy and sampled, constrained, with a quantized KV cache."""
    model, tokenizer = load(folder)
    found: Found = {}
    for mode, cycle in WAYS:
        for temperature in (0.0, 0.8):
            found[f"{mode} {cycle} {temperature}"] = lone(
                model, max_tokens=8, temperature=temperature, seed=3, mode=mode, cycle=cycle
            )
        found[f"{mode} {cycle} kv"] = lone(
            model, max_tokens=6, mode=mode, cycle=cycle, kv_bits=8, kv_group_size=32,
            quantized_kv_start=13,
        )  # fmt: skip
    if tokenizer is not None and tokenizer.has_chat_template:
        for n, constraint in enumerate((Regex("[a-z]{3,9} [0-9]{2,4}"), Choices(["yes", "no"]))):
            for mode, cycle in WAYS[:2]:
                run = stream_generate(
                    model, tokenizer, "Say", 12, mode=mode, cycle=cycle, constraint=constraint,
                    calibrate=False, seed=5, temperature=0.7,
                )  # fmt: skip
                found[f"constraint {n} {mode}"] = [r.token for r in run]
    return found | of_group(model)


def batch(folder: Path) -> Found:
    """Many answers at once, with cancels, shared prefixes and a text that joins late."""
    model, tokenizer = load(folder)
    prompt = ids_of(model, 40)
    wishes: list[Any] = [
        (prompt[: 9 + 5 * n], {"seed": n, "temperature": 0.9 * (n % 2), "mode": m, "cycle": c})
        for n, (m, c) in enumerate(WAYS)
    ]
    found: Found = {}
    with BatchEngine(model, tokenizer, calibrate=False, prefix_memory=1 << 26) as engine:
        numbers: dict[int, Any] = {}
        said: dict[int, list[int]] = {}

        def add(wish: Any) -> int:
            ids, options = wish
            number = engine.add(ids, 8, eos_token_ids=(), calibrate=False, **options)
            numbers[number], said[number] = wish, []
            return number

        for wish in wishes[:3]:
            add(wish)
        victim, steps = add((prompt, {"seed": 9, "mode": "parallel", "cycle": "two-pass"})), 0
        while engine.running:
            for number, response, error in engine.step():
                assert error is None, error
                said[number].append(response.token)
            steps += 1
            if steps == 2:
                engine.cancel(victim)  # its next pass is prepared, and its cache is taken up
                add((prompt[:30], {"seed": 1, "mode": "parallel", "cycle": "two-pass"}))
                for wish in wishes[3:]:
                    add(wish)
        for number, (ids, options) in numbers.items():
            if number != victim:
                found[f"batched {number}"] = said[number]
                if hasattr(model, "group"):  # one process has compared, and is compared with
                    continue
                alone = lone(model, prompt=ids, max_tokens=8, **options)
                assert said[number] == alone, (number, said[number], alone)
    return found | of_group(model)


def cancelled(folder: Path) -> Found:
    """A text is cancelled whose next pass is prepared beside another's, and its cache taken up."""
    model, tokenizer = load(folder)
    first, second = ids_of(model, 20, 1), ids_of(model, 12, 2)
    found: Found = {}
    for steps in (2, 3, 4):
        with BatchEngine(model, tokenizer, calibrate=False, prefix_memory=1 << 26) as engine:
            said: dict[int, list[int]] = {}

            def add(ids: list[int], said: Any = said, engine: Any = engine) -> int:
                options = {"mode": "parallel", "cycle": "two-pass", "calibrate": False}
                number: int = engine.add(ids, 12, eos_token_ids=(), **options)
                said[number] = []
                return number

            def step(said: Any = said, engine: Any = engine) -> None:
                for number, response, error in engine.step():
                    assert error is None, error
                    said[number].append(response.token)

            victim, other = add(first), add(second)
            for _ in range(steps):
                step()
            engine.cancel(victim)
            longer = first + said[victim] + ids_of(model, 30, 3)
            heir = add(longer)
            while engine.running:
                step()
            found[f"cancelled after {steps}"] = [said[heir], said[other]]
            if hasattr(model, "group"):  # one process has compared, and is compared with
                continue
            assert said[heir] == lone(model, prompt=longer, max_tokens=12), steps
            assert said[other] == lone(model, prompt=second, max_tokens=12), steps
    return found | of_group(model)


def together(folder: Path) -> Found:
    """The jobs that `make test` has time for, in one start of the ranks."""
    found = answers(folder) | batch(folder) | cancelled(folder) | rows(folder)
    return found | hunt(folder, "6")


def rows(folder: Path) -> Found:
    """Whether a row's bits beside 15 others, and beside blocks, are those of the row alone."""
    model, _ = load(folder)
    ids = mx.array(ids_of(model, 16), mx.int32)
    one, many, mixed = (model.make_cache() for _ in range(3))
    alone = mx.concatenate([model.forward(Rows.verify(ids[n : n + 1], one))[0] for n in range(16)])
    together = model.forward(Rows.verify(ids, many))[0]
    blocks = mx.zeros((2, 4), mx.int32)
    beside = model.forward(Rows([Segment(mixed, ids, blocks, (0, 3))]))[0]
    mx.eval(alone, together, beside)
    same = [
        bool(mx.array_equal(alone[n], a[n]).item()) for a in (together, beside) for n in range(16)
    ]
    ar = lone(model, max_tokens=12, mode="ar")
    equal = [lone(model, max_tokens=12, mode=m, cycle=c) == ar for m, c in WAYS]
    return {"same rows": sum(same), "parallel equals ar": all(equal)} | of_group(model)


def memory(folder: Path) -> Found:
    """Bytes that the weights take here and elsewhere, and at most while they are read."""
    model, _ = load(folder)
    here = {"memory": mx.get_active_memory(), "peak": mx.get_peak_memory()}
    return {"here": here} | of_group(model)


def exact(folder: Path) -> Found:
    """The probe over all ranks, and exact answers."""
    model, _ = load(folder)
    ways = [lone(model, max_tokens=10, mode=m, cycle=c, numerics="exact") for m, c in WAYS]
    return {"same": all(way == ways[0] for way in ways), "ids": ways[0]} | of_group(model)


def calibrated(folder: Path) -> Found:
    """Costs measured over the ranks, twice, and where they were kept."""
    model, _ = load(folder)
    block, prompt = model.config.block_size, ids_of(model, 11)
    expected = list(mlx_generate(model, prompt, (), 8, mode="ar"))
    assert list(mlx_generate(model, prompt, (), 8, mode="auto")) == expected
    assert calibrate.stored_costs(model, block) is not None
    calibrate.doubt_costs(model, block)
    assert calibrate.stored_costs(model, block) is None
    assert list(mlx_generate(model, prompt, (), 8, mode="auto")) == expected
    stored = calibrate.stored_costs(model, block)
    assert stored is not None
    key = measured.device_key(model)
    return {"several": key.get("several"), "step": stored.of_ar_step()} | of_group(model)


def hunt(folder: Path, runs: str = "200", seed: str = "0") -> Found:
    """Random requests with random costs and cancels; each answer is that of AR decoding."""
    # Each rank has other costs and another clock, as different machines have.
    draw = random.Random(int(seed) + 1000 * int(os.environ.get("MLX_RANK", "0")))
    clock, skew = time.perf_counter, draw.uniform(-1e6, 1e6)
    time.perf_counter = lambda: clock() * draw.uniform(0.5, 2) + skew  # type: ignore[assignment]
    block = ModelConfig.from_folder(folder).block_size
    generate.device_costs = lambda *_: random_costs(draw, block)
    model, tokenizer = load(folder)
    known: dict[Any, list[int]] = {}
    checked = cancelled = 0

    def truth(n: int, key: int, temperature: float, most: int) -> list[int]:
        at = n, key, temperature
        if len(known.get(at, ())) < most:
            known[at] = lone(
                model, prompt=ids_of(model, n, n), max_tokens=16, mode="ar", seed=key,
                temperature=temperature,
            )  # fmt: skip
        return known[at]

    for _ in range(int(runs)):
        n, key = draw.choice((3, 9, 20)), draw.randrange(3)
        temperature, most = draw.choice((0.0, 0.9)), draw.randrange(1, 16)
        mode, cycle = draw.choice(WAYS)
        stop = draw.randrange(most + 1) if draw.random() < 0.5 else most
        if draw.random() < 0.5:
            out: list[int] = []
            seen: list[Any] = []
            run = mlx_generate(
                model, ids_of(model, n, n), (), most, temperature, mode=mode, cycle=cycle,
                seed=None if draw.random() < 0.5 else key, on_stats=seen.append,
            )  # fmt: skip
            for token in run:
                out.append(token)
                if len(out) >= stop:
                    break
            run.close()
            if (seen and seen[0].seed == key) or not temperature:
                assert out == truth(n, key, temperature, most)[: len(out)], "ids differ"
                checked += 1
            cancelled += stop < most
            continue
        with BatchEngine(model, tokenizer, calibrate=False) as engine:
            said: dict[int, list[int]] = {}
            for lane in range(draw.randrange(1, 4)):
                m, c = draw.choice(WAYS)
                number = engine.add(
                    ids_of(model, n, n), most, eos_token_ids=(), seed=lane, mode=m, cycle=c,
                    temperature=temperature,
                )  # fmt: skip
                said[number] = []
            lanes = {number: lane for lane, number in enumerate(said)}
            while engine.running:
                for number, response, error in engine.step():
                    assert error is None, error
                    said[number].append(response.token)
                if draw.random() < 0.2:
                    engine.cancel(draw.choice(list(said)))
                    cancelled += 1
            for number, ids in said.items():
                assert ids == truth(n, lanes[number], temperature, most)[: len(ids)], "ids differ"
                checked += 1
    return {"checked": checked, "cancelled": cancelled} | of_group(model)


def interrupted(folder: Path, runs: str = "60") -> Found:
    """Ctrl-C anywhere in an answer; the cache then goes on from where the answer was."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(0)
    model, _ = load(folder)
    truth = {n: lone(model, prompt=ids_of(model, n, n), max_tokens=24) for n in (3, 9, 20)}
    struck = 0
    for _ in range(int(runs)):
        n, (mode, cycle) = draw.choice((3, 9, 20)), draw.choice(WAYS)
        cache, said, prompt = model.make_cache(), list[int](), ids_of(model, n, n)
        options: Any = {"mode": mode, "cycle": cycle, "calibrate": False, "prompt_cache": cache}
        timer = threading.Timer(draw.uniform(0, 0.2), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for token in mlx_generate(model, prompt, (), 24, **options):
                said.append(token)
            timer.join()
            time.sleep(0.01)
        except KeyboardInterrupt:
            struck += 1
        timer.join()
        assert said == truth[n][: len(said)], (mode, cycle, said)
        held, text = cache[0].offset, prompt + said
        if len(said) < 24:
            rest = mlx_generate(
                model, text[held:], (), 24 - len(said), cached_ids=text[:held], **options
            )
            assert list(rest) == truth[n][len(said) :], (mode, cycle, held, said)
    return {"struck": struck} | of_group(model)


def random_costs(draw: random.Random, block: int) -> Costs:
    """Costs of which nothing can be foreseen."""
    sizes = [n for n in (1, 2, 4, 8, 16) if n <= block]
    return Costs(
        verify={n: draw.uniform(0.5, 3) for n in sizes},
        draft={n: draw.uniform(0.1, 2) for n in sizes[1:]},
        fused={(1, n - 1): draw.uniform(0.5, 3) for n in sizes[2:]}
        | {(n, n): draw.uniform(0.5, 4) for n in sizes[2:]},
        plain=draw.uniform(0.5, 1.5),
    )


def asleep(folder: Path) -> Found:
    """Say that the model is there, then write without end."""
    model, _ = load(folder)
    lone(model, max_tokens=3)
    print(json.dumps({"pids": [link.facts["pid"] for link in model.group.links]}), flush=True)
    while True:
        lone(model, max_tokens=64)


def of_group(model: Any) -> Found:
    group = getattr(model, "group", None)
    return {"ranks": group.report()} if group else {}


JOBS: dict[str, Callable[..., Found]] = {
    job.__name__: job
    for job in (
        answers,
        batch,
        cancelled,
        together,
        rows,
        memory,
        exact,
        calibrated,
        hunt,
        interrupted,
        asleep,
    )
}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
