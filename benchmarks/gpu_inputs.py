"""The inputs of `gpu_proof.py`'s jobs: models, prompts and probe results."""

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.checkpoint.config import ModelConfig
from orthrus_mlx.checkpoint.read import inspect, load_model, load_tokenizer, ready, resolve
from orthrus_mlx.device import probe as numerics
from orthrus_mlx.errors import NumericsError
from orthrus_mlx.model import Model
from tests import helpers

BITS = {"8bit": 8, "4bit": 4}
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
    return ready(model), prompts, ends


def random_prompts(count: int, vocab_size: int) -> list[list[int]]:
    """Prompts of 20 to 60 random ids."""
    draw = random.Random(7)
    return [[draw.randrange(vocab_size) for _ in range(draw.randint(20, 60))] for _ in range(count)]


def read_prompts(file: str, folder: Path, count: int) -> list[list[int]]:
    """`count` prompts from a file, varied where it holds fewer; without one, held-out questions.

    A JSON list of {"prompt": ids or text} or {"messages": ...}, each with "tokens", the ids of an
    answer, if known; or text with one question a line. More prompts are made by extending the
    conversation: by the answer's start, or by the answer and the next question.
    """
    cases = [case if isinstance(case, dict) else {"prompt": case} for case in read_cases(file)]
    if not all(isinstance(case.get("prompt"), list) for case in cases):
        tokenizer = load_tokenizer(folder)
        for case in cases:
            if not isinstance(case.get("prompt"), list):
                question = {"role": "user", "content": case.get("prompt")}
                case["prompt"] = encode(tokenizer, case.get("messages") or [question])
    prompts = [case["prompt"] for case in cases][:count]
    for case in cases:  # continue after a third of the answer
        if len(prompts) < count and len(case.get("tokens", [])) > 8:
            prompts.append(case["prompt"] + case["tokens"][: len(case["tokens"]) // 3])
    for case, follow in zip(cases, [*cases[1:], cases[0]], strict=True):
        if len(prompts) < count:  # a second question
            prompts.append(case["prompt"] + case.get("tokens", []) + follow["prompt"])
    return prompts


def read_cases(file: str) -> list[Any]:
    """The entries of a file of prompts, or questions that the demo was not trained on."""
    if not file:
        from recipes.demo.corpus import evaluation

        return [{"messages": question.prompt} for question in evaluation(6, seed=3)]
    text = Path(file).read_text(encoding="utf-8")
    if Path(file).suffix == ".json":
        return list(json.loads(text))
    return [line for line in text.splitlines() if line.strip()]


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Ids of messages through the chat template, or of the last one's text if there is none."""
    if tokenizer.has_chat_template:
        return encode_chat(tokenizer, messages)[0]
    return list(tokenizer.encode(messages[-1]["content"]))


def take_probe(model: Any, job: dict[str, Any], result: dict[str, Any]) -> numerics.Probe:
    """The probe's result, from disk if another job has run it."""
    started = time.monotonic()
    if job["smoke"]:
        found = numerics.stored_probe(model) or numerics.probe(model, contexts=(24,), steps=())
        numerics.store_probe(model, found)
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
