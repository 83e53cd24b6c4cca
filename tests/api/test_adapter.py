"""An adapter of mlx-lm on the AR view: ids are those of the adapted model, in every mode."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from orthrus_mlx import CheckpointError, IncompleteCheckpointError, load, mlx_generate
from orthrus_mlx.checkpoint.fingerprint import fingerprint_of
from orthrus_mlx.checkpoint.plain import plain_qwen3

QUESTION = "If a rectangle has length 12 and width 7, what is its area?"


def write_adapter(folder: Path, kind: str = "lora", **parameters: Any) -> Path:
    """An adapter for the demo that changes what it says."""
    folder.mkdir()
    plain = plain_qwen3(load("demo")[0])
    lora = {"rank": 4, "scale": 10.0, "dropout": 0.5, **parameters}
    config = {"num_layers": 2, "lora_parameters": lora, "fine_tune_type": kind}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if kind == "full":
        name = "model.layers.0.mlp.down_proj.weight"
        weights = {name: dict(tree_flatten(plain.parameters()))[name] * 0.5}
    else:
        linear_to_lora_layers(plain, 2, lora, use_dora=kind == "dora")
        weights = {
            name: mx.random.normal(a.shape, key=mx.random.key(i)) * 0.1
            for i, (name, a) in enumerate(tree_flatten(plain.parameters()))
            if name.endswith(("lora_a", "lora_b"))
        }
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_ids_are_those_of_the_adapted_model(kind: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", kind)
    model, tokenizer = load("demo", adapter_path=folder)
    prompt = tokenizer.encode(QUESTION)
    own, _ = load("demo")
    theirs = load_adapters(plain_qwen3(load("demo")[0]), str(folder))
    theirs.eval()
    wanted = [t for t, _ in islice(generate_step(mx.array(prompt), theirs, max_tokens=8), 8)]
    for mode in ("ar", "parallel"):
        assert list(mlx_generate(model, prompt, (), 8, mode=mode)) == wanted
    assert list(mlx_generate(own, prompt, (), 8, mode="ar")) != wanted
    diffusion = {n: a for n, a in tree_flatten(model.parameters()) if "_diff" in n}
    before = {n: a for n, a in tree_flatten(own.parameters()) if "_diff" in n}
    assert diffusion.keys() == before.keys()
    assert all(mx.array_equal(diffusion[n], before[n]) for n in before)
    if kind != "full":  # other kernels: measured apart
        assert fingerprint_of(model) != fingerprint_of(own)


def test_what_is_no_adapter_for_this_model(tmp_path: Path) -> None:
    with pytest.raises(IncompleteCheckpointError, match=r"adapter_config\.json"):
        load("demo", adapter_path=tmp_path)
    folder = write_adapter(tmp_path / "adapter")
    mx.save_safetensors(str(folder / "adapters.safetensors"), {"model.x.lora_a": mx.zeros((2, 2))})
    with pytest.raises(CheckpointError, match=r"model\.x\.lora_a"):
        load("demo", adapter_path=folder)
    (folder / "adapters.safetensors").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="does not fit"):
        load("demo", adapter_path=folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="does not fit"):
        load("demo", adapter_path=folder)
