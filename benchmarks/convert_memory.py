"""Measure the memory that `orthrus-mlx convert` needs, and what it leaves behind when killed.

Writes a synthetic checkpoint with the real names and the 1.7B's layer shapes, converts it in a
process of its own, and compares that process's peak resident memory with the promise: the largest
shard plus 2 GiB. Then interrupts the conversion half-way with each signal and looks for leftovers.

    python benchmarks/convert_memory.py [--gib 3] [--shards 6] [--dtype bfloat16] [--folder /tmp]
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from orthrus_mlx.checkpoint.config import ModelConfig
from orthrus_mlx.checkpoint.tensors import MX_DTYPES, plain_shapes
from orthrus_mlx.convert.options import DTYPES
from orthrus_mlx.convert.writer import SafetensorsWriter, TensorSpec

GIB = 1 << 30


def main() -> None:
    """Build the checkpoint, convert it, kill it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=3.0)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--folder", type=Path, default=None, help="where to put scratch files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        source = Path(scratch) / "source"
        # In a process of its own: a child's peak memory counts from what its parent holds.
        options = (source, args.gib, args.shards, DTYPES[args.dtype])
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=options)
        writer.start()
        writer.join()
        report(Path(scratch), source)


def write_checkpoint(folder: Path, gib: float, count: int, dtype: str) -> None:
    """Write a checkpoint of at least `gib` in `count` shards of similar size."""
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {}
    for layers in range(1, 1000):
        raw = config(layers)
        shapes = plain_shapes(ModelConfig.from_dict(raw))
        total = sum(prod(shape) for shape in shapes.values()) * (4 if dtype == "F32" else 2)
        if total >= gib * GIB:
            break
    (folder / "config.json").write_text(json.dumps(raw))
    specs = [TensorSpec(name, dtype, shape) for name, shape in shapes.items()]
    parts: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if len(parts) < count and sum(s.nbytes for s in parts[-1]) >= total / count:
            parts.append([])
        parts[-1].append(spec)
    weight_map = {}
    for i, part in enumerate(parts, start=1):
        file = folder / f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        with SafetensorsWriter(file, part) as writer:
            for spec in part:
                writer.write(spec.name, 0.02 * mx.random.normal(spec.shape, MX_DTYPES[dtype]))
        weight_map.update({spec.name: file.name for spec in part})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def config(layers: int) -> dict[str, Any]:
    """The public 1.7B's configuration with another number of layers."""
    return {
        "model_type": "qwen3",
        "block_size": 32,
        "mask_token_id": 151669,
        "eos_token_id": 151645,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }


def report(scratch: Path, source: Path) -> None:
    """Convert plain and to 4 bits, interrupt with each signal, and print the results."""
    shards = list(source.glob("*.safetensors"))
    largest = max(file.stat().st_size for file in shards)
    total = sum(file.stat().st_size for file in shards)
    bound = largest + 2 * GIB
    print(f"{len(shards)} shards, {total / GIB:.2f} GiB, the largest {largest / GIB:.2f} GiB")
    for name, options in {"plain": {}, "4-bit": {"quantize": True}}.items():
        target = scratch / name
        start = time.perf_counter()
        peak = run(source, target, options)
        seconds = time.perf_counter() - start
        verdict = "ok" if peak <= bound else "TOO MUCH"
        size = sum(file.stat().st_size for file in target.iterdir())
        print(
            f"{name}: {size / GIB:.2f} GiB in {seconds:.0f} s, peak memory {peak / GIB:.2f} GiB, "
            f"bound {bound / GIB:.2f} GiB: {verdict}"
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        target = scratch / "killed"
        child = start_child(source, target, {"quantize": True})
        while total_size(scratch, ".killed.") < total / 8:
            time.sleep(0.05)
        child.send_signal(number)
        code = child.wait()
        left = [path.name for path in scratch.iterdir() if "killed" in path.name]
        whole = "no output folder" if "killed" not in left else "AN OUTPUT FOLDER"
        print(f"{number.name}: exit {code}, {whole}, beside it {left or 'nothing'}")
    run(source, scratch / "killed", {"quantize": True})
    left = [path.name for path in scratch.iterdir() if "killed" in path.name]
    print(f"run again to the end: {left}")


def run(source: Path, target: Path, options: dict[str, Any]) -> int:
    """Peak resident bytes of a process that converts."""
    child = start_child(source, target, options)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"the conversion failed with status {status}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start_child(source: Path, target: Path, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start converting in another process."""
    code = (
        "from orthrus_mlx.convert import convert\n"
        f"convert({str(source)!r}, {str(target)!r}, **{options!r})"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def total_size(folder: Path, prefix: str) -> int:
    """Bytes in the files below the subfolders whose names start with `prefix`."""
    files = [f for sub in folder.glob(f"{prefix}*") for f in sub.rglob("*.safetensors")]
    return sum(file.stat().st_size for file in files if file.exists())


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
