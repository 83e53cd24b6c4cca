"""Hugging Face's own Qwen3 as a reference for both views that nobody here wrote.

Eager attention, no remote code, no network. Qwen3 has no `*_diff` tensors, so they are left out;
a second Qwen3 that wears them under the plain names computes the diffusion view, given the first
one's cache and a mask that hides nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

MARK = "_diff.weight"  # how names of diffusion tensors end
TIED = {"lm_head.weight"}  # what a checkpoint may lack: a tied head is stored as the embeddings


def load(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Qwen3ForCausalLM:
    """The AR view in a checkpoint folder, read by transformers itself."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list every diffusion tensor as unexpected
    try:
        model, report = Qwen3ForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    _check(report["missing_keys"], report["unexpected_keys"])
    return model.to(device).eval()


def from_tensors(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor | np.ndarray],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Qwen3ForCausalLM:
    """The AR view given by the content of config.json and weights by Hugging Face name."""
    # A copy, since transformers writes into nested dicts.
    qwen3 = Qwen3Config.from_dict(copy.deepcopy(dict(config)), attn_implementation="eager")
    model = Qwen3ForCausalLM(qwen3).to(dtype)
    weights = {k: t if isinstance(t, Tensor) else torch.tensor(t) for k, t in tensors.items()}
    report = model.load_state_dict(weights, strict=False)
    _check(report.missing_keys, report.unexpected_keys)
    return model.to(device).eval()


def wear_diffusion(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a Qwen3 whose attention is that of the diffusion view."""
    worn = {
        name.removesuffix(MARK) + ".weight": tensor
        for name, tensor in tensors.items()
        if name.endswith(MARK)
    }
    return {name: t for name, t in tensors.items() if not name.endswith(MARK)} | worn


def _check(missing: Collection[str], unexpected: Collection[str]) -> None:
    unknown = [name for name in unexpected if not name.endswith(MARK)]
    absent = set(missing) - TIED
    if unknown or absent:
        raise ValueError(f"not a Qwen3 checkpoint: unknown {unknown}, missing {sorted(absent)}")


@torch.no_grad()
def ar_logits(model: Qwen3ForCausalLM, ids: Sequence[int]) -> Tensor:
    """Logits [L, V] of a whole sequence; row i is about position i + 1."""
    return model(torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]


@torch.no_grad()
def draft_logits(
    ar: Qwen3ForCausalLM, diffusion: Qwen3ForCausalLM, prefix: Sequence[int], block: Sequence[int]
) -> Tensor:
    """Diffusion logits [B, V] of the block [anchor, mask, ...] after a prefix."""
    cache = ar(torch.tensor([list(prefix)], device=ar.device), use_cache=True).past_key_values
    ids = torch.tensor([list(block)], device=ar.device)
    hide_nothing = torch.zeros(
        1, 1, len(block), len(prefix) + len(block), dtype=ar.dtype, device=ar.device
    )
    return diffusion(ids, attention_mask=hide_nothing, past_key_values=cache).logits[0]


@torch.no_grad()
def greedy_ar(
    model: Qwen3ForCausalLM,
    prompt: Sequence[int],
    max_tokens: int,
    eos_ids: int | Collection[int],
) -> list[int]:
    """Greedy ids by transformers' own `generate`; the end token, if reached, comes last."""
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=eos_ids if isinstance(eos_ids, int) else sorted(eos_ids),
        pad_token_id=0,  # never used at batch 1, but its absence is warned about
    )
    ids = torch.tensor([list(prompt)], device=model.device)
    output = model.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    return output[0, len(prompt) :].tolist()
