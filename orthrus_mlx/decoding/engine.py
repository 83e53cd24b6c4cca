"""Ids in, ids out: prefill, draft, verify, commit, roll back.

Throughout, `s` tokens are in the cache and the anchor, the last committed token, is not. A cycle
runs AR rows [anchor, drafts...] at positions s, s+1, ...; row j's choice is for position s+j+1.
The drafts that equal the choices stand, the choice after them becomes the next anchor, and the
cache is cut back to what stands.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..cuda.in_flight import PORTION, Ahead
from .consensus import Sampling, count_accepted, scores, top_gap
from .plan import ANY_ROWS, Plan, RowCounts, anchor_depths, reusable_block
from .scheduler import Scheduler

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
Progress = Callable[[int, int], None]

Ids = list[int] | mx.array  # [n]; an array where the device may still be computing them

# Bytes of MLX's unused buffers that are left to decoding, which would allocate them again in its
# first cycles. Where there are more, as behind a long prompt, all are given back.
KEPT = 64 << 20


class DualViewModel(Protocol):
    """What the engine needs of a model; `orthrus_mlx.model.Model` documents each method."""

    def make_cache(self) -> list[Any]: ...  # noqa: D102
    def hidden(self, ids: mx.array, cache: list[Any]) -> mx.array: ...  # noqa: D102
    def verify(self, ids: mx.array, cache: list[Any]) -> mx.array: ...  # noqa: D102
    def draft(self, ids: mx.array, cache: list[Any]) -> mx.array: ...  # noqa: D102
    def verify_and_draft(  # noqa: D102
        self, ids: mx.array, n_ar: int, depths: Sequence[int], cache: list[Any]
    ) -> tuple[mx.array, mx.array]: ...


@dataclass
class DecodeStats:
    """Totals of one run; every count is of decoding, prefill apart.

    Attributes:
        prompt_tokens: prompt ids of this call.
        cached_tokens: ids that the prompt cache held before it.
        generation_tokens: ids decided and handed out.
        forward_passes: passes over the layers (a two-pass cycle counts two).
        cycles: cycles of any kind; a plain step is one.
        drafted_tokens: drafts that were verified.
        accepted_tokens: drafts that stood.
        drafted_at: how often a draft was verified at each place of a block, first place first.
        accepted_at: how often it stood there.
        near_ties: tokens whose choice was so close that another row count could have chosen
            otherwise; None where that is not measured (exact numerics, or no probe).
        seed: the sampling seed used.
        finish_reason: "stop" or "length" once the last token is handed out.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    forward_passes: int = 0
    cycles: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    near_ties: int | None = None
    seed: int = 0
    finish_reason: str | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Tokens for each pass over the layers; plain decoding has 1."""
        return self.generation_tokens / self.forward_passes if self.forward_passes else 0.0

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens for each cycle, the paper's "acceptance length" where all cycles are two-pass.

        Of two alternating passes each counts as a cycle.
        """
        return self.generation_tokens / self.cycles if self.cycles else 0.0

    @property
    def acceptance(self) -> float:
        """Share of verified drafts that stood."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    def count(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Add one finished cycle."""
        self.cycles += 1
        self.forward_passes += 2 if plan.draft_rows else 1
        self.drafted_tokens += n_drafts
        self.accepted_tokens += accepted
        for totals, n in ((self.drafted_at, n_drafts), (self.accepted_at, accepted)):
            totals.extend([0] * (n - len(totals)))
            for place in range(n):
                totals[place] += 1


@dataclass(frozen=True)
class Request:
    """One run of the engine.

    Attributes:
        prompt: ids to continue, after whatever the cache holds; at least one.
        eos_token_ids: ids that end the run; the one found is handed out too.
        max_tokens: ids to write at most.
        sampling: how a token is chosen.
        mask_token_id: the id that stands for "to be drafted".
        logits_processors: mlx-lm's `processor(tokens, logits [1, vocab])`, called once for each
            token handed out, in order, with the ids that precede it in this call.
        row_counts: the row counts that decode forwards may use.
        near_tie: count choices whose two best scores are closer than this (in logits).
        prefill_step_size: prompt ids in one prefill pass.
        on_progress: called with (prompt ids read, prompt ids in all).
    """

    prompt: list[int]
    eos_token_ids: frozenset[int]
    max_tokens: int
    sampling: Sampling
    mask_token_id: int
    logits_processors: Sequence[LogitsProcessor] = ()
    row_counts: RowCounts = ANY_ROWS
    near_tie: float | None = None
    prefill_step_size: int = 2048
    on_progress: Progress | None = None


class Decoded(NamedTuple):
    """One decided token.

    Attributes:
        token: the id.
        logits: the AR view's logits [vocab_size] that it was chosen from, processors applied.
        from_draft: whether a draft had guessed it.
        near_tie: whether it was chosen by less than the request's `near_tie`.
    """

    token: int
    logits: mx.array
    from_draft: bool
    near_tie: bool = False


class Cycle(NamedTuple):
    """A cycle under way on the device.

    `logits` [n, vocab], `choices` [n] and `gaps` [n] belong to AR rows [anchor, drafts...] (and
    padding after them). `ahead` [blocks, length] are the guesses of the blocks beside them. `cache`
    is what the cache becomes, or empty once it has been taken over.
    """

    plan: Plan
    start: int
    drafts: Ids
    logits: mx.array
    choices: mx.array | None  # None where logits processors must choose one by one
    gaps: mx.array | None
    ahead: mx.array | None
    cache: list[Any]

    @property
    def outputs(self) -> list[mx.array]:
        """What the verify pass computes."""
        return [a for a in (self.logits, self.choices, self.gaps, self.ahead) if a is not None]


def decode(
    model: DualViewModel,
    request: Request,
    scheduler: Scheduler,
    cache: list[Any],
    on_stats: Callable[[DecodeStats], None] | None = None,
) -> Generator[tuple[Decoded, DecodeStats], None, None]:
    """Write tokens until an end token or the budget; yields each as soon as it is decided.

    However the iterator ends (exhausted, closed, interrupted), the cache is left holding
    everything committed but the last token handed out, which the next call's prompt starts with.
    """
    stats = DecodeStats(
        prompt_tokens=len(request.prompt),
        cached_tokens=cache[0].offset,
        near_ties=None if request.near_tie is None else 0,
        seed=request.sampling.seed,
    )
    end_of_prompt = cache[0].offset + len(request.prompt)
    try:
        if request.max_tokens == 0:
            return
        prefill(model, request, cache)
        run = _Run(model, request, cache)
        budget = request.max_tokens
        cycle = run.launch(scheduler.plan(budget, 0), request.prompt[-1:], [])
        while True:
            # 1. A plain step behind a plain step can start before its input is known here.
            follow = None
            if cycle.plan.is_ar and cycle.choices is not None and budget > 1:
                plan = scheduler.plan(budget - 1, 0)
                follow = run.launch(plan, cycle.choices, []) if plan.is_ar else None

            # 2. Learn how many drafts stood; this waits for the device.
            decided = run.finish(cycle)[:budget]
            accepted = sum(token.from_draft for token in decided)
            stats.count(cycle.plan, len(cycle.drafts), accepted)
            scheduler.observe(cycle.plan, len(cycle.drafts), accepted)
            budget -= len(decided)
            ended = decided[-1].token in request.eos_token_ids
            done = ended or budget == 0
            total = stats.generation_tokens + len(decided)

            # 3. Start the next cycle, so that the device works while the caller reads.
            if follow is None and not done:
                cut_cache(cache, cycle.start + 1 + accepted)
                pending = run.pending(cycle, accepted)
                plan = scheduler.plan(budget, len(pending))
                follow = run.launch(plan, [decided[-1].token], pending)

            # 4. Hand out.
            for token in decided:
                stats.generation_tokens += 1
                if stats.near_ties is not None:
                    stats.near_ties += token.near_tie
                if done and stats.generation_tokens == total:
                    stats.finish_reason = "stop" if ended else "length"
                yield token, stats
            if done:
                return
            assert follow is not None
            cycle = follow
    finally:
        committed = end_of_prompt + stats.generation_tokens - 1
        # An interrupt can strike between two layers: cut each to what all of them hold.
        cut_cache(cache, min([committed, *(layer.offset for layer in cache)]))
        if on_stats is not None:
            on_stats(stats)


def prefill(model: DualViewModel, request: Request, cache: list[Any]) -> None:
    """Read all of the prompt but its last id, the first anchor, into the cache."""
    prompt, total = mx.array(request.prompt), len(request.prompt)
    progress = request.on_progress or (lambda done, total: None)
    progress(0, total)
    for start in range(0, total - 1, request.prefill_step_size):
        chunk = prompt[start : min(start + request.prefill_step_size, total - 1)]
        model.hidden(chunk[None], cache)
        # The hidden states are not needed: evaluating the cache alone skips the last layer's MLP.
        mx.eval([layer.state for layer in cache])
        if mx.get_cache_memory() > KEPT:
            mx.clear_cache()
        progress(start + chunk.size, total)
    progress(total, total)


def cut_cache(cache: list[Any], length: int) -> None:
    """Roll every layer back to its first `length` tokens."""
    for layer in cache:
        layer.trim(max(0, layer.offset - length))


class _Run:
    """The cycles of one request over one cache."""

    def __init__(self, model: DualViewModel, request: Request, cache: list[Any]):
        self.model, self.request, self.cache = model, request, cache
        self.history = mx.array(request.prompt)  # for logits processors alone

    def launch(self, plan: Plan, anchor: Ids, pending: list[int]) -> Cycle:
        """Start `plan` on the device, from anchor [1]."""
        cache, start, mask = self.cache, self.cache[0].offset, self.request.mask_token_id
        most = self.request.row_counts.most(plan.block_rows)
        n_drafts = plan.n_drafts if most is None else min(plan.n_drafts, most - 1)
        drafts: Ids = pending[:n_drafts]
        if plan.draft_rows:
            block = _join(anchor, [mask] * (plan.draft_rows - 1))
            guesses = mx.argmax(self.model.draft(block, self.cache), axis=-1).astype(mx.int32)
            drafts = guesses[:n_drafts]
            mx.async_eval(drafts)
            # Prepared on copies, and taken over once it runs: a run that is closed before leaves
            # no pass in the cache that the next one would have to compute.
            cache = [_copy(layer) for layer in self.cache]
        n = 1 + len(drafts)
        n_ar, length = self.request.row_counts.fit_fused(n, plan.block_rows, plan.blocks)
        rows = [anchor, drafts, [mask] * (n_ar - n)]
        ahead = None
        if length:
            depths = anchor_depths(len(drafts), plan.blocks)
            anchors = [drafts[depth - 1 : depth] if depth else anchor for depth in depths]
            blocks = [part for block in anchors for part in (block, [mask] * (length - 1))]
            ids = _join(*rows, *blocks)
            logits, ahead = self.model.verify_and_draft(ids, n_ar, depths, cache)
            ahead = mx.argmax(ahead, axis=-1).astype(mx.int32)
        else:
            logits = self.model.verify(_join(*rows), cache)
        if n_ar > n:
            cut_cache(cache, start + n)
        choices = gaps = None
        if not self.request.logits_processors:
            ranked = scores(logits, start + 1, self.request.sampling)
            best = mx.argmax(ranked, axis=-1).astype(mx.int32)
            choices = best[:n]
            if self.request.near_tie is not None:
                gaps = top_gap(ranked, best, self.request.sampling)[:n]
        cycle = Cycle(plan, start, drafts, logits, choices, gaps, ahead, cache)
        if not plan.draft_rows:
            mx.async_eval(cycle.outputs)
        return cycle

    def finish(self, cycle: Cycle) -> list[Decoded]:
        """The tokens that `cycle` decided, up to the first end token."""
        # Only once the draft pass is over can the verify pass write to the cache in place: MLX
        # would otherwise copy the whole cache. The verify graph was built while it ran.
        mx.eval(cycle.drafts)
        if cycle.cache is not self.cache:
            for layer, after in zip(self.cache, cycle.cache, strict=True):
                vars(layer).update(vars(after))
            cycle.cache.clear()  # arrays held twice cannot be written to in place
            ahead = Ahead()
            for layer in self.cache[PORTION // 2 :: PORTION]:
                ahead.hand_over(_arrays(layer))
            ahead.hand_over(cycle.outputs)
        drafts: Any = _known(cycle.drafts)
        if cycle.choices is None:
            return self._process(cycle, drafts)
        choices: Any = cycle.choices.tolist()
        accepted = count_accepted(drafts, choices)
        close = self._near_ties(cycle.gaps, accepted + 1)
        decided = [
            Decoded(choices[j], cycle.logits[j], j < accepted, close[j])
            for j in range(accepted + 1)
        ]
        ends = (n for n, d in enumerate(decided, start=1) if d.token in self.request.eos_token_ids)
        return decided[: next(ends, len(decided))]

    def _near_ties(self, gaps: mx.array | None, count: int) -> list[bool]:
        if gaps is None or self.request.near_tie is None:
            return [False] * count
        values: Any = gaps[:count].tolist()
        return [gap <= self.request.near_tie for gap in values]

    def pending(self, cycle: Cycle, accepted: int) -> list[int]:
        """The guesses of a finished one-pass cycle that lie beyond what it decided."""
        use = reusable_block(cycle.plan, len(cycle.drafts), accepted)
        if cycle.ahead is None or use is None:
            return []
        block, overtaken = use
        guesses: Any = cycle.ahead.tolist()
        return guesses[block][overtaken:]

    def _process(self, cycle: Cycle, drafts: list[int]) -> list[Decoded]:
        """Choose row by row through the logits processors, up to the first draft that falls.

        A processor sees each true history once and in order, exactly as in plain decoding, so
        even one that keeps state stays lossless.
        """
        decided: list[Decoded] = []
        for j, draft in enumerate([*drafts, None]):
            logits = cycle.logits[j : j + 1]
            for processor in self.request.logits_processors:
                logits = processor(self.history, logits)
            ranked = scores(logits, cycle.start + 1 + j, self.request.sampling)
            best = mx.argmax(ranked, axis=-1)
            token: Any = best.item()
            close = self._near_ties(top_gap(ranked, best, self.request.sampling), 1)
            decided.append(Decoded(token, logits[0], token == draft, close[0]))
            self.history = mx.concatenate([self.history, mx.array([token])])
            if token != draft or token in self.request.eos_token_ids:
                break
        return decided


def _copy(layer: Any) -> Any:
    """A layer of the cache to write to: one writes to the arrays of a layer in place."""
    other = copy.copy(layer)
    vars(other).update({name: held[...] for name, held in _arrays(layer).items()})
    return other


def _arrays(layer: Any) -> dict[str, mx.array]:
    """What a layer of the cache holds."""
    return {name: held for name, held in vars(layer).items() if isinstance(held, mx.array)}


def _known(ids: Ids) -> list[int]:
    known: Any = ids.tolist() if isinstance(ids, mx.array) else ids
    return list(known)


def _join(*parts: Ids) -> mx.array:
    """All ids in one array; those known here need no operation on the device."""
    if not any(isinstance(part, mx.array) for part in parts):
        return mx.array([i for part in parts for i in _known(part)], mx.int32)
    filled = [
        mx.array(part, mx.int32) if isinstance(part, list) else part for part in parts if len(part)
    ]
    return filled[0] if len(filled) == 1 else mx.concatenate(filled)
