"""One model over one or two GPUs (NCCL): ids, and tokens a second of AR mode and of auto.

    python benchmarks/several_gpus.py make 8b /tmp/8b [--bits 4]      once, on the machine's disk
    python benchmarks/several_gpus.py run /tmp/8b                     one GPU
    mlx.launch -n 2 -- python benchmarks/several_gpus.py run /tmp/8b  two

`make` writes random weights of a public model's shape (8b, 4b, 1.7b; tiny to try the script on a
CPU: there `mlx.launch -n 2 --backend ring`). The diffusion view's projections are the AR view's,
and one token is favoured, so that drafts are accepted. `run` prints a JSON line: the digest of the
ids of AR mode and of parallel modes in exact numerics, equal on each number of GPUs, and speeds,
each the best of some rounds in which the modes take turns.

The goal: `auto` over two GPUs faster than over one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("ORTHRUS_MLX_ALONE", "never")

WAYS = (("ar", "auto"), ("parallel", "two-pass"), ("parallel", "one-pass"), ("auto", "auto"))
FAVOURED, RMS, T = 5, 0.77, 0.8


def config_of(size: str) -> dict[str, Any]:
    """The config of a public model."""
    hidden, middle, layers, heads, vocabulary = {
        "8b": (4096, 12288, 36, 32, 151936),
        "4b": (2560, 9728, 36, 32, 151936),
        "1.7b": (2048, 6144, 28, 16, 151936),
        "tiny": (128, 256, 2, 4, 2048),
    }[size]
    return {
        "architectures": ["OrthrusLM"],
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": min(8, heads),
        "head_dim": 128 if size != "tiny" else 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "tie_word_embeddings": False,
        "block_size": 32,
        "mask_token_id": vocabulary - 1,
        "eos_token_id": 2,
    }


def make(size: str, folder: Path, bits: int | None) -> None:
    """Write a checkpoint of random weights, one layer after another."""
    import mlx.core as mx

    from tests.helpers import tensor_shapes, write_index

    config = config_of(size)
    # The favoured token's lead over the mean of the others, whose logits have a deviation of 2, so
    # that it is drawn about five times out of six at temperature T. (RMS: of hidden states.)
    lead = T * (math.log(config["vocab_size"]) + (2 / T) ** 2 / 2 + math.log(5))
    folder.mkdir(parents=True)
    plain = folder / "plain" if bits else folder
    plain.mkdir(exist_ok=True)
    (plain / "config.json").write_text(json.dumps(config))
    demo = Path(__file__).resolve().parents[1] / "orthrus_mlx" / "demo"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (plain / name).write_bytes((demo / name).read_bytes())
    files: dict[str, dict[str, Any]] = {}
    weight_map = {}
    shapes = tensor_shapes(config)
    for name in sorted(shapes):
        part = name.split(".")[2] if ".layers." in name else "rest"
        weight_map[name] = f"model-{part}.safetensors"
        files.setdefault(weight_map[name], {})[name] = shapes[name]
    first = mx.arange(config["hidden_size"]) == 0
    for file, names in files.items():
        tensors = {}
        for name, shape in names.items():
            source = name.replace("_diff", "")  # both views alike
            key = mx.random.key(int(hashlib.sha256(source.encode()).hexdigest()[:8], 16))
            noise = mx.random.normal(shape, key=key)
            if name == "model.embed_tokens.weight":
                value = mx.where(first, 2, 0.3 * noise)
            elif name == "lm_head.weight":
                favoured = mx.arange(shape[0]) == FAVOURED
                value = mx.where(first, 2 * (1 + favoured[:, None]), 0.3 * noise)
            elif name == "model.norm.weight":
                value = mx.where(first, lead * RMS / 4, 2 / (0.3 * shape[0] ** 0.5))
            elif len(shape) == 1:
                layer_norm = name.endswith("layernorm.weight")
                value = mx.where(first, 0, mx.ones(shape)) if layer_norm else 2 * mx.ones(shape)
            else:
                value = noise / shape[-1] ** 0.5
                if ".o_proj" in name or ".down_proj" in name:
                    # What all layers add stays small: the favoured token is as likely when deep.
                    depth = (2 * config["num_hidden_layers"]) ** 0.5
                    value = mx.where(first[:, None], 0, value / depth)
            tensors[name] = value.astype(mx.bfloat16)
        mx.save_safetensors(str(plain / file), tensors, metadata={"format": "pt"})
        del tensors
        mx.clear_cache()
    write_index(plain, weight_map)
    if bits:
        from orthrus_mlx.convert import convert

        convert(plain, folder / "packed", quantize=True, q_bits=bits)
        print(f"{folder / 'packed'}")


def run(folder: Path, tokens: int, rounds: int, ids_too: bool) -> None:
    """Print ids and speeds; on rank 0 alone, where there are several."""
    import mlx.core as mx

    from orthrus_mlx import load, mlx_generate, prepare
    from orthrus_mlx.errors import NumericsError

    model, _ = load(folder)
    prompt = [7 + 3 * n for n in range(64)]
    size = model.config.vocab_size

    def write(mode: str, cycle: str, seed: int, **options: Any) -> list[int]:
        ids = [(n * (seed + 1)) % (size - 1) for n in prompt]
        given = {"mode": mode, "cycle": cycle, "seed": seed, **options}
        return list(mlx_generate(model, ids, (), tokens, **given))

    if ids_too:
        prepare(model)
    found: dict[str, Any] = {
        "device": mx.device_info().get("device_name"),
        "several": list(getattr(model, "several", ())),
        "memory": mx.get_active_memory(),
    }
    for temperature in (0.0, T) if ids_too else ():
        for mode, cycle in WAYS:
            try:
                ids = [
                    write(mode, cycle, seed, temperature=temperature, numerics="exact")
                    for seed in range(3)
                ]
            except NumericsError as error:
                found["exact"] = str(error)
                break
            digest = hashlib.sha256(str(ids).encode()).hexdigest()[:12]
            digest += f" ({len({i for own in ids for i in own})} different)"
            found[f"ids {mode} {cycle} T={temperature}"] = digest
            print(f"{mode} {cycle} T={temperature}: {digest}", file=sys.stderr, flush=True)
    best: dict[str, float] = {}
    write("auto", "auto", 0)  # what passes cost is measured now, if it was not yet
    for turn in range(rounds):
        for mode, cycle in WAYS:
            start = time.perf_counter()
            ids = write(mode, cycle, turn % 3, temperature=T)
            speed = len(ids) / (time.perf_counter() - start)
            best[f"{mode} {cycle}"] = max(best.get(f"{mode} {cycle}", 0.0), speed)
    found["tokens a second"] = {name: round(speed, 1) for name, speed in best.items()}
    if group := getattr(model, "group", None):
        found["ranks"] = group.report()
    print(json.dumps(found), flush=True)


def main() -> None:
    """Make or run."""
    parser = argparse.ArgumentParser(description="One model over one or two GPUs.")
    parser.add_argument("what", choices=("make", "run"))
    parser.add_argument("args", nargs="+")
    parser.add_argument("--bits", type=int)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--speed", action="store_true", help="no ids, tokens a second alone")
    given = parser.parse_args()
    if given.what == "make":
        make(given.args[0], Path(given.args[1]), given.bits)
    else:
        run(Path(given.args[0]), given.tokens, given.rounds, not given.speed)


if __name__ == "__main__":
    main()
