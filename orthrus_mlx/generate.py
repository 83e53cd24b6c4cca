"""The text layer: `mlx_generate` yields ids, `stream_generate` yields text with its figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .decoding.engine import Decoded, DecodeStats, LogitsProcessor, Progress
from .decoding.request import decode_request
from .decoding.scheduler import CycleKind, Mode


@dataclass
class GenerationResponse:
    """One piece of text and the totals so far; a superset of mlx-lm's `GenerationResponse`.

    Attributes:
        text: the next piece of decoded text; may be empty.
        token: the id that it comes from.
        logprobs: log-probabilities [vocab_size] of the AR view at that position.
        from_draft: whether a draft had guessed the id.
        prompt_tokens: prompt ids of this call.
        prompt_tps: prompt ids read a second, up to the first token.
        generation_tokens: ids written so far.
        generation_tps: ids written a second since the prompt was read. (mlx-lm counts from the
            first id on; here that one brings others with it.)
        peak_memory: peak memory of the process's MLX arrays, in GB (10^9 bytes).
        finish_reason: "stop" (end token or stop string), "length", or None while writing.
        forward_passes: passes over the layers so far, prefill apart; a two-pass cycle has two.
        cycles: cycles so far, plain steps included.
        drafted_tokens: drafts verified so far.
        accepted_tokens: drafts that stood so far.
        seed: the sampling seed in use.
        near_ties: tokens chosen by less than the kernels' disagreement, as probed, so far; None
            where that is not known (exact numerics, or no probe on this machine yet).
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

    @property
    def tokens_per_forward(self) -> float:
        """Ids for each pass over the layers; plain decoding has 1."""
        return self.generation_tokens / self.forward_passes if self.forward_passes else 0.0


def mlx_generate(
    model: Any,
    prompt_tokens: Sequence[int] | mx.array,
    eos_token_id: int | Collection[int],
    max_tokens: int = 256,
    temperature: float = 0.0,
    *,
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
) -> Generator[int, None, None]:
    """Yield token ids as they are decided, the end token last.

    Args:
        model: a model from `orthrus_mlx.load`.
        prompt_tokens: ids to continue, a list or a 1-D `mx.array`; never empty.
        eos_token_id: the id, or ids, that end the answer.
        max_tokens: ids to write at most; -1 for as many as the context holds.
        temperature: 0 is greedy.
        top_p: keep the likeliest tokens up to this total probability (1: all).
        top_k: keep the k likeliest tokens (0: all).
        min_p: drop tokens below this fraction of the top probability (0: none).
        seed: keys the sampling noise; None draws a fresh one, which the stats report.
        mode: "parallel" always drafts full blocks, "ar" never drafts, "auto" decides as it goes
            from what passes cost on this device (measured at first use, then kept on disk) and
            from how many drafts stand.
        cycle: "two-pass" (the paper's) or "one-pass" (ours: no pass drafts only; in mode="auto"
            not every pass drafts); "auto" leaves the choice to mode="auto", and is the paper's in
            mode="parallel".
        numerics: "fast" picks row counts by cost alone; "exact" keeps every pass within row counts
            that this device was found to compute bit-identically, so that every mode gives the
            same ids in any precision. The first exact call probes the device (some seconds, then
            kept on disk).
        prompt_cache: a cache from `mlx_lm.models.cache.make_prompt_cache(model)` to continue. When
            the iterator ends or is closed, it holds all ids but the last one handed out.
        logits_processors: as mlx-lm's: `processor(tokens, logits [1, vocab])` -> logits, called
            once for each token handed out, with the ids before it in this call.
        on_stats: called once with the `DecodeStats` of the run when the iterator ends.
        block_size: rows of the largest block to draft, anchor included; None for the checkpoint's.
        calibrate: measure costs at first use of mode="auto"; otherwise assume typical ones.
        prefill_step_size: prompt ids in one prefill pass.
        prompt_progress_callback: called with (prompt ids read, prompt ids in all).
        probe_progress_callback: called with (steps done, steps in all) while the first exact call
            probes the device.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
    """
    run = decode_request(
        model,
        prompt_tokens,
        [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id,
        max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        mode=mode,
        cycle=cycle,
        numerics=numerics,
        prompt_cache=prompt_cache,
        logits_processors=logits_processors,
        on_stats=on_stats,
        block_size=block_size,
        calibrate=calibrate,
        prefill_step_size=prefill_step_size,
        prompt_progress_callback=prompt_progress_callback,
        probe_progress_callback=probe_progress_callback,
    )

    def ids() -> Generator[int, None, None]:
        with contextlib.closing(run):
            for decided, _ in run:
                yield decided.token

    return ids()


def stream_generate(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int] | mx.array,
    max_tokens: int = 256,
    *,
    stop: str | Sequence[str] = (),
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
        options: everything else that `mlx_generate` takes.

    Yields:
        `GenerationResponse`, the last one with its `finish_reason`. The end token has no text.

    Raises:
        GenerationError: at once, before anything is computed, for an unusable request.
    """
    if isinstance(prompt, str):
        # mlx-lm's rule: special tokens are added unless the text already starts with one.
        bos = tokenizer.bos_token
        ids = tokenizer.encode(prompt, add_special_tokens=not bos or not prompt.startswith(bos))
    else:
        ids = prompt
    ends = frozenset(tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids)
    clock = _Clock(options.pop("prompt_progress_callback", None))
    run = decode_request(
        model, ids, ends, max_tokens, prompt_progress_callback=clock.progress, **options
    )
    stops = StopStrings([stop] if isinstance(stop, str) else stop)
    return _respond(model, run, tokenizer.detokenizer, ends, stops, clock)


class _Clock:
    """Notes when the prompt was read, and passes its progress on."""

    def __init__(self, on_progress: Progress | None):
        self.on_progress = on_progress
        self.prompt_read = 0.0

    def progress(self, done: int, total: int) -> None:
        """As `prompt_progress_callback`."""
        if done == total:
            self.prompt_read = time.perf_counter()
        if self.on_progress is not None:
            self.on_progress(done, total)


def _respond(
    model: Any,
    run: Generator[tuple[Decoded, DecodeStats], None, None],
    detokenizer: Any,
    ends: Collection[int],
    stops: StopStrings,
    clock: _Clock,
) -> Generator[GenerationResponse, None, None]:
    from mlx_lm.generate import wired_limit

    def response(text: str, finish_reason: str | None) -> GenerationResponse:
        return GenerationResponse(
            text=text,
            token=decided.token,
            logprobs=decided.logits - mx.logsumexp(decided.logits, keepdims=True),
            from_draft=decided.from_draft,
            prompt_tokens=stats.prompt_tokens,
            prompt_tps=stats.prompt_tokens / max(first - started, 1e-9),
            generation_tokens=stats.generation_tokens,
            generation_tps=stats.generation_tokens
            / max(time.perf_counter() - clock.prompt_read, 1e-9),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=finish_reason,
            forward_passes=stats.forward_passes,
            cycles=stats.cycles,
            drafted_tokens=stats.drafted_tokens,
            accepted_tokens=stats.accepted_tokens,
            seed=stats.seed,
            near_ties=stats.near_ties,
        )

    with wired_limit(model), contextlib.closing(run):
        started, first = time.perf_counter(), 0.0
        for decided, stats in run:
            first = first or time.perf_counter()
            text, finish_reason = "", stats.finish_reason
            if decided.token not in ends:
                detokenizer.add_token(decided.token)
                text = stops.feed(detokenizer.last_segment)
            if finish_reason is not None:
                detokenizer.finalize()
                text += stops.feed(detokenizer.last_segment) + stops.flush()
            if stops.found:
                finish_reason = "stop"
            yield response(text, finish_reason)
            if finish_reason is not None:
                return


class StopStrings:
    """Lets text through up to the first stop string, holding back what may become one."""

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The part of everything fed so far that is safe to show and was not shown yet."""
        if self.found:
            return ""
        self.held += text
        starts = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if starts:
            self.found = True
            shown, self.held = self.held[: min(starts)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        shown, self.held = self.held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)
