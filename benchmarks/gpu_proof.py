"""Prove on this machine that parallel decoding is lossless, and measure what exactness costs.

Compares parallel with AR mode on trained checkpoints and on random weights of the 1.7B shapes
(many near-ties; scripted drafts, so that every number of accepted drafts occurs), in bf16, 8 and 4
bits, greedy and sampled, exact and fast; then with torch, where it is installed; then times exact
against fast. Every job runs in its own process, within a time budget that starts once its model is
built and probed; exact mode comes first.

    python benchmarks/gpu_proof.py --model demo --model FOLDER=PROMPTS.json --out proof.json

PROMPTS is a JSON list of {"prompt": ids or text, "tokens": ids of an answer, if known}, or a text
file with one question a line; without it, held-out questions of the demo are asked. Exit code 1 if
exact mode ever differs, if a fast-mode difference is no near-tie, or if a job failed; 130 after
Ctrl-C, which prints what is known.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PACKINGS = ("bf16", "8bit", "4bit")
# On CUDA, MLX's 16-bit attention, which prefill uses, is planned anew for each number of keys; more
# than 512 plans are an error by default.
CUDA_SETTINGS = {"MLX_CUDA_SDPA_CACHE_SIZE": "100000", "MLX_ENABLE_CACHE_THRASHING_CHECK": "0"}
# Seconds that a job may take beyond its budget before it is killed: to build its model, to compile
# kernels (over 100 s where nothing is compiled yet, most of it for quantized weights), to probe.
GRACE = 240.0


def main() -> None:
    """Run the jobs, print the table, write the JSON."""
    args = parse()
    with tempfile.TemporaryDirectory() as scratch:
        # The jobs share new probes, not those on disk.
        os.environ["ORTHRUS_MLX_CACHE"] = scratch
        started = time.monotonic()
        report: dict[str, Any] = {"device": describe_device(), "results": [], "seconds": 0.0}
        print(report["device"], flush=True)
        phases = {
            "compare": (correctness_jobs(args), args.workers, args.gpus),
            "cost": (cost_jobs(args), 1, 1),
        }
        interrupted = False
        try:
            for jobs, workers, gpus in [phases[args.only]] if args.only else phases.values():
                for result in do_all(jobs, workers, gpus, Path(scratch)):
                    report["results"].append(result)
                    print_result(result)
                    report["seconds"] = round(time.monotonic() - started, 1)
                    if args.out:
                        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        except KeyboardInterrupt:
            interrupted = True
    faults = [fault for result in report["results"] for fault in faults_of(result)]
    print(f"\n{report['seconds']:.0f} s in all.")
    if cut := sum(r["prompts"] < r["asked"] for x in report["results"] for r in compared(x)):
        print(f"Time was up on {cut} lines before all prompts were answered.")
    lossless = "LOSSLESS: no difference in exact mode, and none but near-ties."
    print("\n".join(faults) or ("Stopped: nothing wrong so far." if interrupted else lossless))
    sys.exit(130 if interrupted else 1 if faults else 0)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="FOLDER[=PROMPTS]", help="may be repeated")
    add("--out", type=Path, help="write all results here, as JSON")
    add("--prompts", type=int, default=104, help="prompts for each checkpoint")
    add("--max-tokens", type=int, default=256, help="the longest answer of a checkpoint")
    add("--random-prompts", type=int, default=16, help="prompts for the random weights; 0: skip")
    add("--random-tokens", type=int, default=96, help="tokens written to each of them")
    add("--workers", type=int, help="jobs at a time; 0: in this process [6 on CUDA, else 1]")
    add("--gpus", type=int, default=1, help="GPUs that share the jobs (CUDA)")
    add("--budget-seconds", type=float, default=240, help="for each job of the comparisons")
    add("--cost-seconds", type=float, default=12, help="for each timing; 0: skip")
    add("--only", choices=("compare", "cost"), help="only this part")
    add("--no-torch", action="store_true", help="leave the comparison with torch out")
    add("--smoke", action="store_true", help="a quick run with tiny sizes, to test this script")
    args = parser.parse_args()
    if args.smoke:
        args.prompts, args.max_tokens = 2, 12
        args.random_prompts, args.random_tokens = min(2, args.random_prompts), 24
        args.budget_seconds, args.cost_seconds = 6.0, min(2.0, args.cost_seconds)
        args.workers = args.workers or 0
    if not 1 <= args.gpus <= len(gpu_names(args.gpus)):
        parser.error("--gpus is more than CUDA_VISIBLE_DEVICES names, or less than 1")
    args.model = [split(model) for model in args.model]
    if args.workers is None:
        import mlx.core as mx

        args.workers = 6 * args.gpus if has_cuda(mx) else 1
    return args


def split(model: str) -> tuple[str, str]:
    """The two paths of FOLDER=PROMPTS, made absolute; a Hub id is kept."""
    name, _, prompts = model.partition("=")
    folder = Path(name)
    name = str(folder.resolve()) if folder.exists() else name
    return name, str(Path(prompts).resolve()) if prompts else ""


def has_cuda(mx: Any) -> bool:
    """Whether MLX computes on CUDA here."""
    return hasattr(mx, "cuda") and bool(mx.cuda.is_available())


def describe_device() -> dict[str, Any]:
    """The device and the versions of this run."""
    import platform

    import mlx.core as mx

    from orthrus_mlx.device import backend

    return {
        "device": str(mx.default_device()),
        "name": backend.device_name(),
        "backend": backend.backend(),
        "mlx": mx.__version__,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


# --------------------------------------------------------------------------------------- the jobs


def correctness_jobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The comparisons, the longest first."""
    common = {"smoke": args.smoke, "budget": args.budget_seconds}
    at_random = {"model": "random", "count": args.random_prompts, "max_tokens": args.random_tokens}
    jobs: list[dict[str, Any]] = []
    if args.random_prompts:
        jobs += [{"kind": "lossless", "packing": p, **at_random, **common} for p in PACKINGS]
    trained = [(*model, args.prompts, args.max_tokens) for model in args.model]
    keys = ("model", "prompts", "count", "max_tokens")
    for values in trained:
        rest = {**dict(zip(keys, values, strict=True)), **common}
        packings = PACKINGS[:1] if args.smoke else PACKINGS  # quantized, a CPU takes minutes
        jobs += [{"kind": "lossless", "packing": p, **rest} for p in packings]
    for values in trained if not args.no_torch else []:
        rest = {**dict(zip(keys, values, strict=True)), **common}
        jobs += [{"kind": "torch", "packing": p, **rest} for p in ("float32", "bf16")]
    return jobs


def cost_jobs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The timings, which must have the device to themselves."""
    if not args.cost_seconds:
        return []
    common = {"kind": "cost", "smoke": args.smoke, "budget": args.cost_seconds}
    at_random = {"model": "random", "count": 12, "max_tokens": args.random_tokens}
    models: list[dict[str, Any]] = [at_random] if args.random_prompts else []
    most = min(128, args.max_tokens)
    for name, prompts in args.model:
        models.append({"model": name, "prompts": prompts, "count": 48, "max_tokens": most})
    packings = ("bf16",) if args.smoke else ("bf16", "4bit")
    return [{**common, **model, "packing": p} for model in models for p in packings]


@dataclass
class Running:
    """A running job."""

    process: subprocess.Popen[str]
    job: dict[str, Any]
    file: Path  # its result, from the end of its probe on
    log: Path
    started: float
    gpu: int


def next_job(waiting: list[tuple[int, dict[str, Any]]], running: list[Running]) -> int | None:
    """The index of the next job to start: one whose packing no running job is still probing.

    Two such jobs would compile the same kernels and probe the same model.
    """
    probing = {one.job["packing"] for one in running if not one.file.exists()}
    ready = (at for at, (_, job) in enumerate(waiting) if job["packing"] not in probing)
    return next(ready, None)


def do_all(
    jobs: list[dict[str, Any]], workers: int, gpus: int, scratch: Path
) -> Iterator[dict[str, Any]]:
    """Do the jobs, `workers` at a time, yielding results as they come.

    Ctrl-C ends the running ones; their results so far are yielded too.
    """
    if workers == 0:
        for job in jobs:
            yield do_here(job)
        return
    waiting = list(enumerate(jobs))
    running: list[Running] = []
    try:
        yield from share_out(waiting, running, workers, gpus, scratch)
    except KeyboardInterrupt:
        for one in running:
            stop(one)
            yield collect(one.job, one.file, one.log, "stopped with Ctrl-C")
        raise
    finally:  # after any exception
        for one in running:
            stop(one)


def stop(one: Running) -> None:
    """End a job, if it has not ended."""
    one.process.kill()
    one.process.wait()


def share_out(
    waiting: list[tuple[int, dict[str, Any]]],
    running: list[Running],
    workers: int,
    gpus: int,
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    """Do the jobs of `waiting`, keeping the running ones in `running`."""
    while waiting or running:
        while len(running) < workers and (at := next_job(waiting, running)) is not None:
            number, job = waiting.pop(at)
            file = scratch / f"{job['kind']}-{number}.json"
            log = file.with_suffix(".log")
            # The reference computes float32 in full precision; MLX must then too.
            environment = {**CUDA_SETTINGS, **os.environ, "PYTHONPATH": python_path()}
            if job["packing"] == "float32":
                environment["MLX_ENABLE_TF32"] = "0"
            busy = [sum(one.gpu == gpu for one in running) for gpu in range(gpus)]
            gpu = busy.index(min(busy))
            environment["CUDA_VISIBLE_DEVICES"] = gpu_names(gpus)[gpu]
            with log.open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.gpu_jobs", json.dumps(job), str(file)],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            running.append(Running(process, job, file, log, time.monotonic(), gpu))
        time.sleep(0.05)
        for one in list(running):
            ended = one.process.poll() is not None
            late = not ended and time.monotonic() - one.started > one.job["budget"] + GRACE
            if not (ended or late):
                continue
            if late:
                stop(one)
            running.remove(one)
            yield collect(one.job, one.file, one.log, "killed: over its time" if late else "")


def gpu_names(count: int) -> list[str]:
    """CUDA's names of the GPUs. A job sees only one: MLX 0.32.4 can fail if a process sees two."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if given is None else given.split(",")


def python_path() -> str:
    """PYTHONPATH with this repository first."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), *([before] if before else [])])


def collect(job: dict[str, Any], file: Path, log: Path, fault: str) -> dict[str, Any]:
    """The result that a job's process wrote, complete or not."""
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {"job": job, "rows": []}
    if not result.get("complete"):
        output = log.read_text(encoding="utf-8", errors="replace")
        result["error"] = fault or output[-1500:]
    return result


def do_here(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job in this process."""
    from benchmarks.gpu_jobs import run

    result: dict[str, Any] = {"job": job, "rows": []}
    try:
        run(job, result.update)
    except Exception as error:  # other jobs can still run
        result["error"] = repr(error)
    return result


# -------------------------------------------------------------------------------------- the table


def print_result(result: dict[str, Any]) -> None:
    """Print a job's part of the table."""
    job = result["job"]
    name = Path(job["model"]).name
    if job["model"] == "random":
        name = f"random weights, {'tiny' if job['smoke'] else '1.7B'} shapes"
    print(f"\n{name}, {job['packing']}, {job['kind']}: {result.get('seconds', '?')} s", flush=True)
    if probe := result.get("probe"):
        print(
            f"  probe {probe['seconds']} s: classes {probe['classes']}, fused {probe['fused']}, "
            f"disagreement {probe['disagreement']:.4g}; {exact_counts(probe)}"
        )
    for row in result["rows"]:
        print("  " + (cost_line(row) if job["kind"] == "cost" else comparison_line(row)))
        for d in row.get("differences", [])[: 4 if row.get("numerics") != "exact" else 32]:
            print("      " + difference_line(d))
    if "error" in result:
        print(f"  FAILED: {result['error']}")
    sys.stdout.flush()


def exact_counts(probe: dict[str, Any]) -> str:
    """The row counts of exact mode."""
    counts = probe["row_counts"]
    return f"exact uses {counts}" if isinstance(counts, dict) else "no exact mode"


def difference_line(d: dict[str, Any]) -> str:
    """The line of one difference."""
    line = f"prompt {d['prompt']} token {d['place']}: {d['expected']} / {d['found']}, "
    if d["gap"] is None:
        return line + "one had ended"
    return line + f"gap {d['gap']:.4g}, rank {d['rank']}{', near-tie' if d['near_tie'] else ''}"


def comparison_line(row: dict[str, Any]) -> str:
    """The line of one comparison."""
    what = row.get("against") or f"{row['numerics']:5} {row['sampling']:6}"
    if row.get("other_class"):
        what += f" rows {row['other_class'][0]}-{row['other_class'][-1]}"
    line = (
        f"{what} {row['cycle']:8}  {row['same_prompts']}/{row['prompts']} answers and "
        f"{row['same_tokens']}/{row['tokens']} tokens the same"
    )
    if row["cycles"]:
        line += f", {row['tokens'] / row['cycles']:.2f} tokens a cycle"
    if "accepted_at" in row:
        line += f", {accepted_lengths(row['accepted_at'], row['cycles'])}"
    if row["prompts"] > row["same_prompts"]:
        line += f"; {row['near_ties']} near-ties (bound {row['bound']:.4g})"
    if row["prompts"] < row["asked"]:
        line += f"  [time was up after {row['prompts']} of {row['asked']}]"
    return line


def accepted_lengths(accepted_at: list[int], cycles: int) -> str:
    """How many of the possible numbers of accepted drafts occurred."""
    if not accepted_at:
        return "no drafts"
    at_least = [cycles, *accepted_at, 0]  # cycles with at least 0, 1, 2, ... accepted drafts
    seen = sum(more < here for here, more in pairwise(at_least))
    return f"{seen} of {len(accepted_at) + 1} accepted lengths seen"


def cost_line(row: dict[str, Any]) -> str:
    """The line of one timing."""
    return (
        f"{row['numerics']:5} {row['mode']:8}  {row['tokens_per_second']:7.1f} tokens/s, "
        f"{row['tokens_per_forward']:.2f} tokens a forward ({row['answers']} answers)"
    )


def compared(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons of a result; timings are none."""
    return [row for row in result["rows"] if "asked" in row]


def faults_of(result: dict[str, Any]) -> Iterator[str]:
    """Each failure in a result, as a line."""
    job = result["job"]
    name = f"{job['model']} {job['packing']} {job['kind']}"
    if "error" in result:
        yield f"FAILED: {name}"
    if job["kind"] != "lossless":
        if job["packing"] == "float32":
            for row in result["rows"]:
                if row["prompts"] > row["same_prompts"]:
                    yield f"DIFFERENT FROM TORCH in float32: {name} {row['cycle']}"
        return
    for row in result["rows"]:
        way = f"{name} {row['sampling']} {row['cycle']}"
        if row["numerics"] == "exact" and row["prompts"] > row["same_prompts"]:
            yield f"NOT LOSSLESS in exact mode: {way}"
        if row["numerics"] == "fast" and row["unexplained"]:
            yield f"{row['unexplained']} differences in fast mode are no near-ties: {way}"
    if isinstance((result.get("probe") or {}).get("row_counts"), str):
        yield f"NO EXACT MODE: {name}: {result['probe']['row_counts']}"


if __name__ == "__main__":
    main()
