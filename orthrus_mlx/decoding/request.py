"""From what a caller asks for to a running engine: check the request whole, then decode it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import mlx.core as mx

from ..device.measured import NOMINAL, device_costs, within
from ..device.probe import cached_probe, stored_probe
from ..errors import ContextLengthError, GenerationError, PromptError
from .consensus import Sampling
from .engine import Decoded, DecodeStats, LogitsProcessor, Progress, Request, decode
from .plan import RowCounts
from .scheduler import CYCLES, MODES, CycleKind, Mode, make_scheduler

NUMERICS = ("fast", "exact")


def decode_request(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_ids: Collection[int],
    max_tokens: int,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    mode: Mode = "auto",
    cycle: CycleKind = "auto",
    numerics: str = "fast",
    prompt_cache: list[Any] | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    on_stats: Callable[[DecodeStats], None] | None = None,
    block_size: int | None = None,
    calibrate: bool = True,
    prefill_step_size: int = 2048,
    prompt_progress_callback: Progress | None = None,
    probe_progress_callback: Progress | None = None,
) -> Generator[tuple[Decoded, DecodeStats], None, None]:
    """Decode one prompt; the arguments are those of `orthrus_mlx.mlx_generate`.

    Returns:
        an iterator over each decided token and the totals at that point. Closing it leaves
        `prompt_cache` with all ids but the last one handed out.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
        NumericsError: at once, if exact numerics cannot be had on this device.
    """
    _one_of("mode", mode, MODES)
    _one_of("cycle", cycle, CYCLES)
    _one_of("numerics", numerics, NUMERICS)
    config = model.config
    cache = model.make_cache() if prompt_cache is None else prompt_cache
    if len(cache) != config.num_hidden_layers:
        raise GenerationError(
            f"The prompt cache has {len(cache)} layers, and this model {config.num_hidden_layers}: "
            "it was made for another model. Make one with `model.make_cache()`."
        )
    prompt = _checked_ids(prompt_tokens, config.vocab_size)
    room = config.max_position_embeddings - cache[0].offset - len(prompt)
    if room < 1:
        cached = f" after {cache[0].offset} cached ones" if cache[0].offset else ""
        raise ContextLengthError(
            f"The prompt has {len(prompt)} tokens{cached}, and this model's context holds "
            f"{config.max_position_embeddings} with at least one to answer in. Shorten the "
            "prompt, or start a new conversation."
        )
    if not _is_count(max_tokens) and max_tokens != -1:
        raise GenerationError(
            f"max_tokens is {max_tokens!r}; expected a whole number, or -1 for no limit but the "
            "context."
        )
    if not _is_count(prefill_step_size) or prefill_step_size < 1:
        raise GenerationError(f"prefill_step_size is {prefill_step_size!r}; expected 1 or more.")
    if block_size is not None and (not _is_count(block_size) or block_size < 2):
        raise GenerationError(f"block_size is {block_size!r}; expected 2 rows or more.")
    row_counts = RowCounts()
    if numerics == "exact":
        row_counts = cached_probe(model, progress=probe_progress_callback).row_counts
    request = Request(
        prompt=prompt,
        eos_token_ids=frozenset(int(i) for i in eos_token_ids),
        max_tokens=room if max_tokens == -1 else min(max_tokens, room),
        sampling=Sampling(
            temperature, top_p, top_k, min_p, secrets.randbits(32) if seed is None else seed
        ),
        mask_token_id=config.mask_token_id,
        logits_processors=tuple(logits_processors or ()),
        row_counts=row_counts,
        near_tie=_near_tie(model) if numerics == "fast" else None,
        prefill_step_size=prefill_step_size,
        on_progress=prompt_progress_callback,
    )
    block = config.block_size if block_size is None else block_size
    scheduler = make_scheduler(
        mode,
        cycle,
        block,
        lambda: within(device_costs(model, block) if calibrate else NOMINAL, row_counts),
    )
    return decode(model, request, scheduler, cache, on_stats)


def _near_tie(model: Any) -> float | None:
    found = stored_probe(model)
    return None if found is None else found.near_tie


def _checked_ids(prompt_tokens: Sequence[int] | mx.array, vocab_size: int) -> list[int]:
    if isinstance(prompt_tokens, mx.array) and prompt_tokens.ndim != 1:
        raise PromptError(
            f"prompt_tokens has shape {prompt_tokens.shape}; expected one dimension (one prompt)."
        )
    ids: Any = prompt_tokens
    ids = ids.tolist() if isinstance(ids, mx.array) else list(ids)
    if not ids:
        raise PromptError("The prompt is empty; give at least one token.")
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise PromptError(f"prompt_tokens[{place}] is {token!r}; expected token ids.")
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"prompt_tokens[{place}] is {token}; this model's ids go from 0 to "
                f"{vocab_size - 1}. Was the prompt encoded with another tokenizer?"
            )
    return [int(token) for token in ids]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GenerationError(f"{name} is {value!r}; expected one of {', '.join(known)}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
