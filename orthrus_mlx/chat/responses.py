"""Decided tokens as pieces of text, each with the totals so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..decoding.sequence import Decoded
from ..decoding.stats import DecodeStats
from .requests import TextWork


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


class Responder:
    """Turns the decided tokens of one text into responses."""

    def __init__(self, model: Any, work: TextWork):
        self._context = model.config.max_position_embeddings
        self._work = work
        work.watch.start()

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
        watch = self._work.watch
        return GenerationResponse(
            text=text,
            token=decided.token,
            logprobs=decided.logits - mx.logsumexp(decided.logits, keepdims=True)
            if decided.logits.size
            else decided.logits,
            from_draft=decided.from_draft,
            prompt_tokens=stats.prompt_tokens,
            prompt_tps=stats.prompt_tokens / watch.read_seconds if stats.prompt_tokens > 1 else 0.0,
            generation_tokens=stats.generation_tokens,
            generation_tps=stats.generation_tokens / watch.write_seconds,
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
