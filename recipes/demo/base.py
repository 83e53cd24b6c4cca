"""Train the demo's Qwen3 base model from scratch and save it in the public Hugging Face layout."""

import argparse
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.qwen3 import Model, ModelArgs

from . import rows, tokenizer
from .corpus import Question
from .greedy import exact_rates

Tree = Any  # nested dicts and lists of arrays

SHAPE: dict[str, int] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def config(shape: dict[str, int]) -> dict[str, object]:
    """The model's config.json, as transformers 5 writes it for Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": tokenizer.EOS_ID,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "model_type": "qwen3",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tokenizer.VOCABULARY,
        **shape,
    }


def build(shape: dict[str, int], seed: int) -> Model:
    """A new model; the projections into the residual stream start small."""
    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(config(shape)))
    scale = 1 / math.sqrt(2 * shape["num_hidden_layers"])
    for layer in model.layers:
        layer.self_attn.o_proj.weight *= scale
        layer.mlp.down_proj.weight *= scale
    mx.eval(model.parameters())
    return model


class Trainer:
    """AdamW on float32 weights, with passes in a narrower type."""

    def __init__(
        self, model: Model, steps: int, learning_rate: float, warmup: int, dtype: mx.Dtype
    ) -> None:
        self.model = model
        self.dtype = dtype
        warm = optim.linear_schedule(0.0, learning_rate, warmup)
        cool = optim.cosine_decay(learning_rate, max(1, steps - warmup), learning_rate * 0.01)
        self.optimizer = optim.AdamW(
            optim.join_schedules([warm, cool], [warmup]), betas=[0.9, 0.95], weight_decay=0.1
        )
        self.weights: Tree = model.trainable_parameters()
        self.optimizer.init(self.weights)
        self.state: Tree = self.optimizer.state
        self._step = mx.compile(self._update)

    def _loss(self, weights: Tree, tokens: mx.array, learn: mx.array) -> mx.array:
        self.model.update(tree_map(lambda w: w.astype(self.dtype), weights))
        logits = self.model(tokens[:, :-1]).astype(mx.float32)  # [B, L-1, vocabulary]
        losses = nn.losses.cross_entropy(logits, tokens[:, 1:])
        return (losses * learn[:, 1:]).sum() / mx.maximum(learn[:, 1:].sum(), 1)

    def _update(
        self, weights: Tree, state: Tree, tokens: mx.array, learn: mx.array
    ) -> tuple[Tree, Tree, mx.array]:
        loss, gradients = mx.value_and_grad(self._loss)(weights, tokens, learn)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        self.optimizer.state = state
        weights = self.optimizer.apply_gradients(gradients, weights)
        return weights, self.optimizer.state, loss

    def step(self, tokens: np.ndarray, learn: np.ndarray) -> mx.array:
        """One update; returns the loss."""
        self.weights, self.state, loss = self._step(
            self.weights, self.state, mx.array(tokens, mx.int32), mx.array(learn, mx.float32)
        )
        mx.async_eval(self.weights, self.state, loss)
        return loss

    def finished(self) -> Model:
        """The model with the trained weights, in the type of its passes."""
        self.model.update(tree_map(lambda w: w.astype(self.dtype), self.weights))
        mx.eval(self.model.parameters())
        return self.model


def train(
    model: Model,
    tokens: np.ndarray,
    learn: np.ndarray,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    warmup: int,
    dtype: mx.Dtype,
    seed: int,
    report: int,
) -> Model:
    """Train on rows [rows, length], each epoch in another order."""
    trainer = Trainer(model, steps, learning_rate, warmup, dtype)
    rng = np.random.default_rng(seed)
    order, at = rng.permutation(len(tokens)), 0
    since, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        if at + batch > len(order):
            order, at = rng.permutation(len(tokens)), 0
        chosen = order[at : at + batch]
        at += batch
        losses.append(trainer.step(tokens[chosen], learn[chosen]))
        if step % report == 0 or step == steps:
            loss = mx.stack(losses).mean().item()
            speed = len(losses) * batch * tokens.shape[1] / (time.perf_counter() - since)
            peak = mx.get_peak_memory() / 1e9
            print(
                f"step {step}/{steps}  loss {loss:.4f}  {speed:,.0f} tokens/s  peak {peak:.1f} GB",
                flush=True,
            )
            since, losses = time.perf_counter(), []
    return trainer.finished()


def steps_within(
    seconds: float, model: Model, tokens: np.ndarray, learn: np.ndarray, batch: int, dtype: mx.Dtype
) -> int:
    """How many steps fit into this time here, by a short trial that is thrown away."""
    trainer = Trainer(model, steps=100, learning_rate=1e-4, warmup=10, dtype=dtype)
    for i in range(30):
        if i == 10:  # compiled and warm
            mx.eval(trainer.weights)
            start = time.perf_counter()
        trainer.step(tokens[:batch], learn[:batch])
    mx.eval(trainer.weights)
    return int(seconds / ((time.perf_counter() - start) / 20))


def save(model: Model, shape: dict[str, int], tokenizer_folder: Path, out: Path) -> None:
    """Write weights, config and tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: w.astype(mx.bfloat16) for name, w in tree_flatten(model.parameters())}
    mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config(shape), indent=2) + "\n")
    generation = {"eos_token_id": tokenizer.EOS_ID, "pad_token_id": 0}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in tokenizer.FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)


def main() -> None:
    """Command line: data and tokenizer in, base checkpoint out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder of the base checkpoint")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--minutes", type=float, help="fewer steps if they would take longer")
    parser.add_argument("--batch", type=int, default=64, help="rows a step")
    parser.add_argument("--length", type=int, default=768, help="tokens a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="count exact answers when done")
    parser.add_argument("--report", type=int, default=200, help="steps between progress lines")
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    args = parser.parse_args()
    shape = {name: getattr(args, name) for name in SHAPE}

    start = time.perf_counter()
    vocabulary = tokenizer.load(args.tokenizer)
    conversations = rows.read(args.data / "train.jsonl")
    tokens, learn = rows.pack(rows.encode(conversations, vocabulary), args.length, pad=0)
    print(
        f"{len(tokens):,} rows of {args.length} tokens, {(tokens != 0).mean():.1%} filled, "
        f"{learn.mean():.1%} learned, {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    model = build(shape, args.seed)
    size = sum(w.size for _, w in tree_flatten(model.parameters()))
    print(f"{size:,} parameters", flush=True)
    dtype, steps = getattr(mx, args.dtype), args.steps
    if args.minutes:
        left = 60 * args.minutes - (time.perf_counter() - start)
        steps = max(1, min(steps, steps_within(left, model, tokens, learn, args.batch, dtype)))
        model = build(shape, args.seed)
    model = train(
        model,
        tokens,
        learn,
        steps=steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
        warmup=min(args.warmup, steps // 2),
        dtype=dtype,
        seed=args.seed,
        report=args.report,
    )
    save(model, shape, args.tokenizer, args.out)
    print(f"saved {args.out} after {time.perf_counter() - start:.0f} s", flush=True)
    held_out = args.data / "heldout.jsonl"
    if args.check:
        lines = held_out.read_text(encoding="utf-8").splitlines()
        exact_rates(model, vocabulary, [Question.from_json(line) for line in lines])


if __name__ == "__main__":
    main()
