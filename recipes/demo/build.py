"""Rebuild the demo from nothing: corpus, tokenizer, base, diffusion view, evaluation."""

import argparse
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from . import corpus, rows, tokenizer

STAGES = ("corpus", "tokenizer", "base", "drafting", "evaluation")
TOKENIZER_CONVERSATIONS = 40_000


class Round(NamedTuple):
    """A training run of the diffusion view, on the first conversations of the base's data."""

    conversations: int
    options: str


DRAFTING = "--batch-size 64 --anchors 16 --max-seq-length 512 --steps-per-report 200"
# The second round starts from the first one's checkpoint.
ROUNDS = (
    Round(60_000, "--iters 14000 --learning-rate 1.2e-3 --steps-per-eval 7000 --save-every 7000"),
    Round(120_000, "--iters 6000 --learning-rate 6e-4 --steps-per-eval 0 --save-every 6000"),
)


def write_corpus(work: Path, count: int, seed: int) -> None:
    """The data of the base, and parts of it for the rounds of the diffusion view."""
    corpus.write(work / "data", train=count, valid=400, per_kind=25, seed=seed)
    for number, training in enumerate(ROUNDS, start=1):
        folder = work / f"drafting-{number}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(work / "data" / "valid.jsonl", folder / "valid.jsonl")
        with (
            (work / "data" / "train.jsonl").open(encoding="utf-8") as source,
            (folder / "train.jsonl").open("w", encoding="utf-8") as target,
        ):
            target.writelines(itertools.islice(source, training.conversations))


def train_tokenizer(work: Path) -> None:
    """The tokenizer, from the first conversations."""
    conversations = rows.read(work / "data" / "train.jsonl")
    chosen = itertools.islice(conversations, TOKENIZER_CONVERSATIONS)
    tokenizer.save(tokenizer.train(chosen), work / "tokenizer")


def train_base(work: Path, options: list[str]) -> None:
    """The base model, with further options of `recipes.demo.base`."""
    command = [sys.executable, "-m", "recipes.demo.base", "--data", str(work / "data")]
    command += ["--tokenizer", str(work / "tokenizer"), "--out", str(work / "base")]
    subprocess.run([*command, "--check", *options], check=True)


def train_drafting(work: Path, out: Path, options: list[str]) -> None:
    """The diffusion view, by `orthrus-mlx train`; `options` apply to both rounds and come last."""
    between = work / "round-1"
    shutil.rmtree(between, ignore_errors=True)
    models = (work / "base", between, out)  # each round trains one into the next
    for number, training in enumerate(ROUNDS, start=1):
        command = [sys.executable, "-m", "orthrus_mlx.cli", "train", "--block-size", "32"]
        command += ["--model", str(models[number - 1]), "--output", str(models[number])]
        command += ["--data", str(work / f"drafting-{number}"), *DRAFTING.split()]
        print(f"-- round {number}", flush=True)
        subprocess.run([*command, *training.options.split(), *options], check=True)


def base_hashes(folder: Path) -> dict[str, str]:
    """A hash of every tensor that is not the diffusion view's."""
    import mlx.core as mx
    import numpy as np

    tensors: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= mx.load(str(path))
    return {
        name: hashlib.sha256(np.array(tensor.view(mx.uint16)).tobytes()).hexdigest()
        for name, tensor in sorted(tensors.items())
        if "_diff" not in name
    }


def check_unchanged(work: Path, out: Path) -> None:
    """Fail unless training left the base's tensors as they were, bit for bit."""
    before, after = base_hashes(work / "base"), base_hashes(out)
    if before != after:
        changed = sorted(name for name in before if before[name] != after.get(name))
        raise SystemExit(f"training changed the base: {changed or sorted(after)}")
    total = hashlib.sha256(json.dumps(before).encode()).hexdigest()
    print(f"{len(before)} base tensors unchanged, sha256 {total}", flush=True)


def evaluate(out: Path, work: Path) -> None:
    """The tables of `recipes.demo.evaluate`."""
    command = [sys.executable, "-m", "recipes.demo.evaluate", str(out)]
    subprocess.run([*command, "--out", str(work / "evaluation.md")], check=True)


def main() -> None:
    """Command line: run all stages, or some of them, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished checkpoint")
    parser.add_argument(
        "--work", type=Path, default=Path("build/demo"), help="folder between stages"
    )
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this; repeatable")
    parser.add_argument("--conversations", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="", help='options of the base, as "--steps 100"')
    parser.add_argument(
        "--drafting", default="", help='options of the trainer in both rounds, as "--iters 100"'
    )
    args = parser.parse_args()

    work, out = args.work, args.out
    chosen = args.stage or STAGES
    if "drafting" in chosen and out.exists():  # refuse now, not after twenty minutes
        raise SystemExit(f"{out} exists already. Remove it, or name another --out.")
    work.mkdir(parents=True, exist_ok=True)
    stages = {
        "corpus": lambda: write_corpus(work, args.conversations, args.seed),
        "tokenizer": lambda: train_tokenizer(work),
        "base": lambda: train_base(work, args.base.split()),
        "drafting": lambda: train_drafting(work, out, args.drafting.split()),
        "evaluation": lambda: (check_unchanged(work, out), evaluate(out, work)),
    }
    for stage in chosen:
        start = time.perf_counter()
        print(f"== {stage}", flush=True)
        stages[stage]()
        print(f"== {stage}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
