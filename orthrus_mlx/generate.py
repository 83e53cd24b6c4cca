"""Text in, text out: `mlx_generate` yields ids, `stream_generate` yields text with its figures."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx

from .chat.prompt import encode_text
from .chat.stop_strings import StopStrings
from .checkpoint.config import ModelConfig
from .decoding.batch import Receipt, decode
from .decoding.cache import KVQuantization, check, check_quantization
from .decoding.cost_model import NOMINAL, within
from .decoding.drafters import CopyDrafter, ForcedDrafter, PredictionDrafter
from .decoding.grammar import compile_constraint
from .decoding.options import GenerationOptions, options_from, takes_options
from .decoding.plan import RowCounts
from .decoding.scheduler import Evidence, Scheduler, make_scheduler
from .decoding.sequence import Decoded, Drafter, Progress, Request
from .decoding.stats import DecodeStats
from .device.backend import wired
from .device.calibrate import device_costs
from .device.learnt import Learnt
from .device.probe import cached_probe, stored_probe
from .errors import ContextLengthError, GenerationError, PromptError


@dataclass
class GenerationResponse:
    """One piece of text and the totals so far; a superset of mlx-lm's `GenerationResponse`.

    Attributes:
        text: the next piece of decoded text; may be empty.
        token: the id that it comes from.
        logprobs: log-probabilities [vocab_size] of the AR view at that position.
        from_draft: whether a draft had guessed the id.
        prompt_tokens: prompt ids of this call.
        prompt_tps: prompt ids read a second, before the first cycle, which alone reads a prompt of
            one id: then it is 0.
        generation_tokens: ids written so far.
        generation_tps: ids written a second since the prompt was read. (mlx-lm starts the clock at
            the first id; here the first cycle yields several.)
        peak_memory: peak memory of the process's MLX arrays, in GB (10^9 bytes).
        finish_reason: "stop" (end token or stop string), "length", or None while writing.
        cut: what kept the answer from its own end: "max_tokens", "context" (full) or "stop string";
            None for an end token, and while writing.
        forward_passes: passes over the layers so far, prefill apart; a two-pass cycle has two.
        cycles: cycles so far, AR steps included.
        drafted_tokens: drafts verified so far.
        accepted_tokens: drafts accepted so far.
        seed: the sampling seed in use.
        near_ties: tokens chosen by less than the kernels' disagreement, as probed, so far; None
            where that is not known (exact numerics, or no probe on this machine yet).
        complete: whether the answer is all that its constraint asks for, and may end as it stands;
            None without a constraint.
    """

    text: str
    token: int
    logprobs: mx.array
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None
    forward_passes: int = 0
    cycles: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    seed: int = 0
    near_ties: int | None = None
    cut: str | None = None
    complete: bool | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Ids for each pass over the layers; AR decoding has 1."""
        return self.generation_tokens / self.forward_passes if self.forward_passes else 0.0


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
    ends = _checked_ends("eos_token_id", eos_token_id)
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
    return decode(model, work.request, work.scheduler, cache, work.on_stats, work.drafters, receipt)


class Work(NamedTuple):
    """A checked request, ready for the engine."""

    request: Request
    scheduler: Scheduler
    drafters: list[Drafter]
    on_stats: Callable[[DecodeStats], None] | None


def plan_run(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_ids: Collection[int],
    options: GenerationOptions,
    tokenizer: Any = None,
) -> Work:
    """Check a request whole; arguments and errors are those of `decode_tokens`."""
    config = _checked_model(model).config
    block = _block_size(config, options.block_size)
    cache = model.make_cache() if options.prompt_cache is None else options.prompt_cache
    check(cache, model.make_cache(), config.num_key_value_heads, config.head_dim)
    held_bits = getattr(cache[0], "bits", None)
    if held_bits is not None and options.numerics == "exact":
        raise GenerationError(
            'The prompt cache is quantized, and numerics="exact" promises nothing over such a '
            "cache: the probe compares passes over one that is not."
        )
    if held_bits is not None and options.kv_bits not in (None, held_bits):
        raise GenerationError(
            f"The prompt cache is quantized to {held_bits} bits already, and kv_bits is "
            f"{options.kv_bits}. Leave kv_bits out, or read the prompt again."
        )
    quantization = None
    if options.kv_bits is not None:
        check_quantization(options.kv_bits, options.kv_group_size, config.head_dim)
        quantization = KVQuantization(
            options.kv_bits, options.kv_group_size, options.quantized_kv_start
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
    ends = frozenset(int(i) for i in eos_token_ids)
    penalties = options.penalties()
    penalties.check_ids(config.vocab_size)
    written = _checked_ids(options.written, config.vocab_size, "written") if options.written else []
    text = [*options.cached_ids, *prompt]
    if text[len(text) - len(written) :] != written:
        raise PromptError("The prompt does not end with the ids of written=.")
    grammar, predicted = None, None
    if tokenizer is None:
        tokenizer = getattr(model, "tokenizer", None)
    if options.constraint is not None:
        grammar = compile_constraint(
            options.constraint,
            _needed(tokenizer, "constraint"),
            config.vocab_size,
            ends,
            text[: len(text) - len(written)],
            written,
        )
    if options.prediction is not None:
        ids: Any = options.prediction
        if isinstance(ids, str):
            ids = encode_text(_needed(tokenizer, "prediction"), ids, add_special_tokens=False)
        predicted = _checked_ids(ids, config.vocab_size, "prediction") if len(ids) else None
    row_counts, near_tie = RowCounts(), None
    if options.numerics == "exact":
        found = cached_probe(model, progress=options.probe_progress_callback)
        row_counts = found.row_counts
    elif (stored := stored_probe(model)) is not None:
        near_tie = stored.near_tie
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
    evidence = Evidence() if options.evidence is None else options.evidence
    on_stats = options.on_stats
    if options.mode == "auto" and options.calibrate and grammar is None:
        learnt = Learnt(model)
        learnt.begin(evidence)
        on_stats = _keeping(learnt, evidence, on_stats)
    scheduler = make_scheduler(
        options.mode,
        options.cycle,
        block,
        lambda: within(
            device_costs(model, block, options.probe_progress_callback)
            if options.calibrate
            else NOMINAL,
            row_counts,
        ),
        evidence,
    )
    drafters: list[Drafter] = [CopyDrafter()] if options.mode == "auto" else []
    if grammar is not None:
        drafters.append(ForcedDrafter())
    if predicted is not None:
        drafters.append(PredictionDrafter(predicted))
    return Work(request, scheduler, drafters, on_stats)


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
    block = _block_size(_checked_model(model).config, block_size)
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
    return _respond(run, Responder(model, work), receipt)


@dataclass
class TextWork:
    """A request in text, checked.

    Attributes:
        ids: the prompt.
        ends: ids that end the answer.
        options: everything else; progress and totals go through `watch`.
        stops: the stop strings.
        watch: what the run has come to.
        tokenizer: as the caller gave it, wrapped as mlx-lm wraps it.
        detokenizer: turns ids into text.
    """

    ids: Any
    ends: frozenset[int]
    options: GenerationOptions
    stops: StopStrings
    watch: _Watch
    tokenizer: Any
    detokenizer: Any

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        prompt: str | Sequence[int] | mx.array,
        max_tokens: int,
        stop: str | Sequence[str] | None,
        eos_token_ids: Collection[int] | None,
        options: dict[str, Any],
    ) -> TextWork:
        """What `stream_generate` was asked for; raises `GenerationError` if it is unusable."""
        tokenizer = _checked_tokenizer(tokenizer)
        if isinstance(prompt, str):
            # mlx-lm's rule: special tokens are added unless the text already starts with one.
            bos = tokenizer.bos_token
            add_bos = not bos or not prompt.startswith(bos)
            ids: Any = encode_text(tokenizer, prompt, add_special_tokens=add_bos)
        else:
            ids = prompt
        ends = _checked_ends(
            "eos_token_ids", tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
        )
        asked = options_from({"max_tokens": max_tokens, **options})
        watch = _Watch(asked.prompt_progress_callback, asked.on_stats)
        given = replace(asked, prompt_progress_callback=watch.progress, on_stats=watch.ended)
        texts = _several(() if stop is None else stop)
        if not all(isinstance(text, str) for text in texts):
            raise GenerationError(f"stop is {stop!r}; expected a string, or a list of strings.")
        return cls(ids, ends, given, StopStrings(texts), watch, tokenizer, tokenizer.detokenizer)


def _needed(tokenizer: Any, name: str) -> Any:
    if tokenizer is None:
        raise GenerationError(
            f"{name}= is text, and this model came without its tokenizer: load it with "
            "orthrus_mlx.load, or use stream_generate."
        )
    return tokenizer


def _checked_ids(
    prompt_tokens: Sequence[int] | mx.array, vocab_size: int, name: str = "prompt_tokens"
) -> list[int]:
    if isinstance(prompt_tokens, mx.array) and prompt_tokens.ndim != 1:
        raise PromptError(
            f"{name} has shape {prompt_tokens.shape}; expected one dimension (one prompt)."
        )
    ids: Any = prompt_tokens
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise PromptError(
            f"{name} is {ids!r}; expected a list of token ids. Encode text with the "
            "tokenizer, or give it to stream_generate."
        )
    ids = ids.tolist() if isinstance(ids, mx.array) else list(ids)
    if not ids:
        raise PromptError("The prompt is empty; give at least one token.")
    for place, token in enumerate(ids):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise PromptError(f"{name}[{place}] is {token!r}; expected token ids.")
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"{name}[{place}] is {token}; this model's ids go from 0 to "
                f"{vocab_size - 1}. Was the prompt encoded with another tokenizer?"
            )
    return [int(token) for token in ids]


def _block_size(config: ModelConfig, asked: int | None) -> int:
    if asked is not None and asked > config.block_size:
        raise GenerationError(
            f"block_size is {asked}; this model was trained to draft blocks of at most "
            f"{config.block_size} rows."
        )
    return config.block_size if asked is None else asked


def _checked_ends(name: str, ends: Any) -> frozenset[int]:
    """The ids that end an answer: one, several or none."""
    several = _several(ends)
    if not all(hasattr(token, "__index__") and not isinstance(token, bool) for token in several):
        raise GenerationError(f"{name} is {ends!r}; expected a token id, or a list of ids.")
    return frozenset(int(token) for token in several)


def _checked_model(model: Any) -> Any:
    if not all(hasattr(model, name) for name in ("config", "forward", "make_cache")):
        raise GenerationError(
            f"The model is a {type(model).__module__}.{type(model).__name__}; expected one from "
            "orthrus_mlx.load."
        )
    return model


def _checked_tokenizer(tokenizer: Any) -> Any:
    """Anything that can do what mlx-lm's wrapper can, or a tokenizer of transformers, wrapped."""
    if all(hasattr(tokenizer, name) for name in ("encode", "detokenizer", "eos_token_ids")):
        return tokenizer
    if all(hasattr(tokenizer, name) for name in ("encode", "decode", "eos_token_id", "get_vocab")):
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        return TokenizerWrapper(tokenizer)
    raise GenerationError(
        f"The tokenizer is a {type(tokenizer).__module__}.{type(tokenizer).__name__}; expected one "
        "from orthrus_mlx.load, or a tokenizer of transformers."
    )


def _several(values: Any) -> list[Any]:
    """A list of values; of one, where one was given."""
    return [values] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)


class _Watch:
    """Notes when the prompt was read and what the run came to, and passes both on."""

    def __init__(
        self, on_progress: Progress | None, on_stats: Callable[[DecodeStats], None] | None
    ):
        self.on_progress = on_progress
        self.on_stats = on_stats
        self.prompt_read = 0.0
        self.stats = DecodeStats()

    def progress(self, done: int, total: int) -> None:
        """As `prompt_progress_callback`."""
        if done == total:
            self.prompt_read = time.perf_counter()
        if self.on_progress is not None:
            self.on_progress(done, total)

    def ended(self, stats: DecodeStats) -> None:
        """As `on_stats`."""
        self.stats = stats
        if self.on_stats is not None:
            self.on_stats(stats)


class Responder:
    """Turns the decided tokens of one text into responses.

    Attributes:
        started: when the run began, as `time.perf_counter` has it.
    """

    def __init__(self, model: Any, work: TextWork):
        self._context = model.config.max_position_embeddings
        self._work = work
        self.started = time.perf_counter()

    def respond(self, decided: Decoded, stats: DecodeStats) -> GenerationResponse:
        """The response to one token; the last one has a finish reason."""
        work, text, finish_reason = self._work, "", stats.finish_reason
        if decided.token not in work.ends:
            work.detokenizer.add_token(decided.token)
            text = work.stops.feed(work.detokenizer.last_segment)
        if finish_reason is not None:
            work.detokenizer.finalize()
            text += work.stops.feed(work.detokenizer.last_segment) + work.stops.flush()
        if work.stops.found:
            finish_reason = "stop"
        return self._response(decided, stats, text, finish_reason)

    def nothing(self) -> GenerationResponse:
        """The one response where max_tokens is 0: nothing was decided."""
        decided, stats = Decoded(-1, mx.zeros(0), from_draft=False), self._work.watch.stats
        return self._response(decided, stats, "", stats.finish_reason)

    def _response(
        self, decided: Decoded, stats: DecodeStats, text: str, finish_reason: str | None
    ) -> GenerationResponse:
        read = self._work.watch.prompt_read
        return GenerationResponse(
            text=text,
            token=decided.token,
            logprobs=decided.logits - mx.logsumexp(decided.logits, keepdims=True)
            if decided.logits.size
            else decided.logits,
            from_draft=decided.from_draft,
            prompt_tokens=stats.prompt_tokens,
            prompt_tps=stats.prompt_tokens / max(read - self.started, 1e-9)
            if stats.prompt_tokens > 1
            else 0.0,
            generation_tokens=stats.generation_tokens,
            generation_tps=stats.generation_tokens / max(time.perf_counter() - read, 1e-9),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=finish_reason,
            forward_passes=stats.forward_passes,
            cycles=stats.cycles,
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            seed=stats.seed,
            near_ties=stats.near_ties,
            cut=self._cut(stats, finish_reason),
            complete=stats.complete,
        )

    def _cut(self, stats: DecodeStats, finish_reason: str | None) -> str | None:
        if finish_reason == "length":
            held = stats.cached_tokens + stats.prompt_tokens + stats.generation_tokens
            return "context" if held >= self._context else "max_tokens"
        return "stop string" if self._work.stops.found else None


def _respond(
    run: Generator[tuple[Decoded, DecodeStats], None, None], responder: Responder, receipt: Receipt
) -> Generator[GenerationResponse, None, None]:
    with wired(), contextlib.closing(run):
        responder.started = time.perf_counter()
        for decided, stats in run:
            answer = responder.respond(decided, stats)
            try:  # nothing can fail in here before the caller has the response
                yield answer
            finally:
                receipt.tokens += 1
            if answer.finish_reason is not None:
                return
    yield responder.nothing()
