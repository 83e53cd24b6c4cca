"""Text in, text out: `mlx_generate` yields ids, `stream_generate` yields text with its figures."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Collection, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from .chat.prompt import encode_text
from .chat.requests import TextWork
from .chat.responses import GenerationResponse, Responder
from .decoding.batch import Receipt, decode
from .decoding.checks import (
    check_cache,
    checked_block_size,
    checked_ends,
    checked_ids,
    checked_model,
    checked_quantization,
    room_to_answer,
    split_written,
)
from .decoding.cost_model import NOMINAL, Costs, within
from .decoding.drafters import CopyDrafter, ForcedDrafter, PredictionDrafter
from .decoding.grammar import Matcher, compile_constraint
from .decoding.options import GenerationOptions, options_from, takes_options
from .decoding.penalties import NO_PENALTIES
from .decoding.plan import RowCounts
from .decoding.scheduler import Adaptive, Evidence, Scheduler, make_scheduler
from .decoding.sequence import Decoded, Drafter, Request
from .decoding.stats import DecodeStats
from .decoding.watch import Watch
from .device.backend import wired
from .device.calibrate import device_costs, doubt_costs
from .device.learnt import Learnt
from .device.probe import cached_probe, stored_probe
from .errors import GenerationError


@takes_options
def mlx_generate(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_id: int | Collection[int],
    max_tokens: int = 256,
    temperature: float = 0.0,
    **options: Any,
) -> Generator[int, None, None]:
    """Yield token ids as they are decided, the end token last.

    Args:
        model: a model from `orthrus_mlx.load`.
        prompt_tokens: ids to continue, a list or a 1-D `mx.array`; never empty.
        eos_token_id: the id, or ids, that end the answer.
        max_tokens: ids to write at most; -1 for as many as the context holds.
        temperature: 0 is greedy.
        options: everything else that `GenerationOptions` holds, by name.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
    """
    ends = checked_ends("eos_token_id", eos_token_id)
    given = options_from({"max_tokens": max_tokens, "temperature": temperature, **options})
    receipt = Receipt()
    run = decode_tokens(model, prompt_tokens, ends, given, receipt)

    def ids() -> Generator[int, None, None]:
        with contextlib.closing(run):
            for decided, _ in run:
                token = decided.token
                try:  # nothing can fail in here before the caller has the token
                    yield token
                finally:
                    receipt.tokens += 1

    return ids()


def decode_tokens(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_ids: Collection[int],
    options: GenerationOptions,
    receipt: Receipt | None = None,
    tokenizer: Any = None,
) -> Generator[tuple[Decoded, DecodeStats], None, None]:
    """Check a request whole, then decode it.

    Whoever hands the tokens on to a caller counts them in `receipt`. Constraints and predictions
    are text, for which `tokenizer` is needed: where there is none, the one that the model was
    loaded with.

    Returns:
        an iterator over each decided token and the totals at that point. Closing it leaves
        `options.prompt_cache` with all ids but the last one handed out.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
        NumericsError: at once, if exact numerics cannot be had on this device.
    """
    work = plan_run(model, prompt_tokens, eos_token_ids, options, tokenizer)
    cache = model.make_cache() if options.prompt_cache is None else options.prompt_cache
    return decode(
        model,
        work.request,
        work.scheduler,
        cache,
        work.on_stats,
        work.drafters,
        receipt,
        work.watch,
    )


class Work(NamedTuple):
    """A checked request, ready for the engine."""

    request: Request
    scheduler: Scheduler
    drafters: list[Drafter]
    on_stats: Callable[[DecodeStats], None] | None
    watch: Watch | None


def plan_run(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_ids: Collection[int],
    options: GenerationOptions,
    tokenizer: Any = None,
) -> Work:
    """Check a request whole; arguments and errors are those of `decode_tokens`."""
    # 1. The model, and the KV cache that it continues.
    config = checked_model(model).config
    block = checked_block_size(config, options.block_size)
    cache = model.make_cache() if options.prompt_cache is None else options.prompt_cache
    check_cache(cache, model.make_cache(), config.num_key_value_heads, config.head_dim)
    quantization = checked_quantization(options, cache, config.head_dim)
    # 2. The ids: the prompt's, which leave room for an answer, and those that end or bias it.
    prompt = checked_ids(prompt_tokens, config.vocab_size)
    room = room_to_answer(config, cache[0].offset, len(prompt))
    ends = frozenset(int(i) for i in eos_token_ids)
    penalties = options.penalties()
    penalties.check_ids(config.vocab_size)
    text = [*options.cached_ids, *prompt]
    before, written = split_written(text, options.written, config.vocab_size)
    # 3. The text that the answer may be, and the one that it is expected to be.
    if tokenizer is None:
        tokenizer = getattr(model, "tokenizer", None)
    grammar = None
    if options.constraint is not None:
        needed = _needed(tokenizer, "constraint")
        grammar = compile_constraint(
            options.constraint, needed, config.vocab_size, ends, before, written
        )
    predicted = _predicted(options.prediction, tokenizer, config.vocab_size)
    # 4. The row counts that this device computes alike.
    row_counts, near_tie = _numerics(model, options)
    # 5. All of that in one request.
    request = Request(
        prompt=prompt,
        eos_token_ids=ends,
        max_tokens=room if options.max_tokens == -1 else min(options.max_tokens, room),
        sampling=options.sampling(secrets.randbits(32)),
        mask_token_id=config.mask_token_id,
        logits_processors=tuple(options.logits_processors or ()),
        row_counts=row_counts,
        near_tie=near_tie,
        prefill_step_size=options.prefill_step_size,
        on_progress=options.prompt_progress_callback,
        cached_ids=options.cached_ids,
        quantization=quantization,
        penalties=penalties,
        grammar=grammar,
        written=len(written),
    )
    # 6. What is known of drafts, who schedules cycles by it, and who drafts.
    evidence = Evidence() if options.evidence is None else options.evidence
    on_stats = options.on_stats
    if options.mode == "auto" and options.calibrate and grammar is None:
        learnt = Learnt(model)
        learnt.begin(evidence)
        on_stats = _keeping(learnt, evidence, on_stats)
    scheduler = make_scheduler(
        options.mode, options.cycle, block, _costs(model, block, options, row_counts), evidence
    )
    # 7. Who compares the time that cycles take with the costs, where these are of such cycles.
    watch = None
    more = (grammar, quantization, request.logits_processors)
    as_measured = penalties == NO_PENALTIES and not any(more)
    if isinstance(scheduler, Adaptive) and options.calibrate and as_measured:
        watch = Watch(scheduler.costs, partial(doubt_costs, model, block))
    return Work(request, scheduler, _drafters(options.mode, grammar, predicted), on_stats, watch)


def _predicted(prediction: Any, tokenizer: Any, vocab_size: int) -> list[int] | None:
    """The ids that the answer is expected to have; None for none."""
    if isinstance(prediction, str):
        needed = _needed(tokenizer, "prediction")
        prediction = encode_text(needed, prediction, add_special_tokens=False)
    if prediction is None or not len(prediction):
        return None
    return checked_ids(prediction, vocab_size, "prediction")


def _needed(tokenizer: Any, name: str) -> Any:
    if tokenizer is None:
        raise GenerationError(
            f"{name}= is text, and this model came without its tokenizer: load it with "
            "orthrus_mlx.load, or use stream_generate."
        )
    return tokenizer


def _numerics(model: Any, options: GenerationOptions) -> tuple[RowCounts, float | None]:
    """The row counts that passes may have, and what counts as a near-tie, where it is known."""
    if options.numerics == "exact":
        return cached_probe(model, progress=options.probe_progress_callback).row_counts, None
    stored = stored_probe(model)
    return RowCounts(), None if stored is None else stored.near_tie


def _costs(
    model: Any, block: int, options: GenerationOptions, row_counts: RowCounts
) -> Callable[[], Costs]:
    """What cycles cost; measured, where it was not yet, when the scheduler asks."""

    def costs() -> Costs:
        if not options.calibrate:
            return within(NOMINAL, row_counts)
        return within(device_costs(model, block, options.probe_progress_callback), row_counts)

    return costs


def _drafters(mode: str, grammar: Matcher | None, predicted: list[int] | None) -> list[Drafter]:
    """Who drafts beside the diffusion view."""
    drafters: list[Drafter] = [CopyDrafter()] if mode == "auto" else []
    if grammar is not None:
        drafters.append(ForcedDrafter())
    if predicted is not None:
        drafters.append(PredictionDrafter(predicted))
    return drafters


def _keeping(
    learnt: Learnt, evidence: Evidence, on_stats: Callable[[DecodeStats], None] | None
) -> Callable[[DecodeStats], None]:
    """`on_stats`, and what the answer showed of drafts is kept."""

    def ended(stats: DecodeStats) -> None:
        if stats.cycles:
            learnt.keep(evidence)
        if on_stats is not None:
            on_stats(stats)

    return ended


def prepare(
    model: Any,
    *,
    block_size: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Measure now what the first request would wait for; what is on disk already is kept.

    The probe finds the row counts that agree bit for bit on this device (for exact numerics, and
    to count near-ties); calibration measures what passes cost (for mode="auto").

    Args:
        model: a model from `orthrus_mlx.load`.
        block_size: rows of the largest block to draft; None for the checkpoint's.
        progress: called with ("probe" or "calibrate", steps done, steps in all).
    """
    block = checked_block_size(checked_model(model).config, block_size)
    say = progress or (lambda stage, done, total: None)
    cached_probe(model, progress=lambda done, total: say("probe", done, total))
    say("calibrate", 0, 1)
    device_costs(model, block, lambda done, total: say("calibrate", done, total))
    say("calibrate", 1, 1)


@takes_options
def stream_generate(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int] | mx.array,
    max_tokens: int = 256,
    *,
    stop: str | Sequence[str] | None = (),
    eos_token_ids: Collection[int] | None = None,
    **options: Any,
) -> Generator[GenerationResponse, None, None]:
    """Yield pieces of text as they are decided, with the totals so far.

    Args:
        model: a model from `orthrus_mlx.load`.
        tokenizer: its tokenizer (mlx-lm's `TokenizerWrapper`).
        prompt: text to continue as it stands (no chat template), or ids.
        max_tokens: ids to write at most; -1 for as many as the context holds.
        stop: one string or several that end the answer; none is handed out, nor what follows.
        eos_token_ids: ids that end the answer, in place of the tokenizer's.
        options: everything else that `GenerationOptions` holds, by name.

    Yields:
        `GenerationResponse`, the last one with its `finish_reason`. The end token has no text.
        With `max_tokens=0` there is one response: no text, -1 for a token, no logprobs.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
    """
    work = TextWork.of(tokenizer, prompt, max_tokens, stop, eos_token_ids, options)
    receipt = Receipt()
    run = decode_tokens(model, work.ids, work.ends, work.options, receipt, work.tokenizer)
    return _respond(run, work, Responder(model, work), receipt)


def _respond(
    run: Generator[tuple[Decoded, DecodeStats], None, None],
    work: TextWork,
    responder: Responder,
    receipt: Receipt,
) -> Generator[GenerationResponse, None, None]:
    with wired(), contextlib.closing(run):
        work.watch.start()
        for decided, stats in run:
            answer = responder.respond(decided, stats)
            try:  # nothing can fail in here before the caller has the response
                yield answer
            finally:
                receipt.tokens += 1
            if answer.finish_reason is not None:
                return
    yield responder.nothing()
