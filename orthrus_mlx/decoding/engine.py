"""Ids in, ids out: prefill, draft, verify, accept, roll back.

Throughout, `s` tokens are in a sequence's KV cache and its anchor, the last committed token, is
not. A cycle runs AR rows [anchor, drafts...] at positions s, s+1, ...; row j's choice is for
position s+j+1. The drafts that equal the choices are accepted, the choice after them becomes the
next anchor, and the cache is rolled back to what was accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..errors import LogitsError
from ..rows import Cache, Rows, Segment
from .cache import Fork, settle, trim
from .choosers import Ids, known
from .drafters import BlockDrafter
from .plan import ANY_ROWS, AR_STEP, Plan, anchor_depths
from .scheduler import Scheduler
from .sequence import (
    Cycle,
    Decoded,
    DecodeStats,
    Drafter,
    Guesses,
    ModelLogitsError,
    Request,
    Sequence,
)

# Bytes of MLX's unused buffers that prefill leaves to decoding, which would allocate them again in
# its first cycles. Where there are more, as after a long prompt, all are given back.
RETAINED_CACHE_BYTES = 64 << 20


class Runner(Protocol):
    """What the engine needs of a model; `orthrus_mlx.model.Model` documents the methods."""

    @property
    def config(self) -> Any: ...  # noqa: D102
    def make_cache(self) -> Cache: ...  # noqa: D102
    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]: ...  # noqa: D102
    def start(self, outputs: list[mx.array], cache: Cache) -> None: ...  # noqa: D102
    def first_not_finite(self) -> str | None: ...  # noqa: D102


def step(runner: Runner, sequences: Many[Sequence]) -> list[list[Decoded]]:
    """Finish one cycle of each sequence, and start the next one.

    Rows of all sequences go through the model in one pass. What a sequence writes does not depend
    on the others.

    Returns:
        the tokens that each sequence's cycle decided, at least one.
    """
    # 1. Start a cycle where none is in flight.
    submit(runner, [s for s in sequences if s.in_flight is None])

    # 2. An AR step behind an AR step can start before its input is known here.
    ahead = [s for s in sequences if s.may_run_ahead()]
    for sequence, cycle in zip(ahead, _launch(runner, [_behind(s) for s in ahead]), strict=True):
        sequence.ahead = cycle

    # 3. Learn how many drafts were accepted; this waits for the device.
    decided = [sequence.resolve(runner.start) for sequence in sequences]

    # 4. Start the next cycles, so that the device works while the caller reads.
    submit(runner, [s for s in sequences if not s.done and s.in_flight is None])
    return decided


def submit(runner: Runner, sequences: Many[Sequence]) -> None:
    """Start the next cycle of each sequence, as its scheduler plans it."""
    cycles = _launch(runner, [_next(sequence) for sequence in sequences])
    for sequence, cycle in zip(sequences, cycles, strict=True):
        sequence.in_flight = cycle


@dataclass
class Receipt:
    """How many tokens of a run have reached the caller."""

    tokens: int = 0


@dataclass
class _Launch:
    """A cycle on its way to the device."""

    sequence: Sequence
    plan: Plan
    anchor: Ids  # [1]
    drafts: Ids
    fork: Fork | None = None

    @property
    def cache(self) -> Cache:
        return self.fork.layers if self.fork else self.sequence.cache


def _next(sequence: Sequence) -> _Launch:
    """The next cycle, whose input is known here."""
    if sequence.request.quantization is not None:
        sequence.request.quantization.apply(sequence.cache)
    room = sequence.room()
    proposed = sequence.propose(room - 1)
    at_hand = {source: len(ids) for source, ids in proposed.items()}
    plan = sequence.scheduler.plan(room, at_hand)
    return _Launch(sequence, plan, sequence.text[-1:], proposed.get(plan.source, []))


def _behind(sequence: Sequence) -> _Launch:
    """An AR step behind the one in flight."""
    assert sequence.in_flight is not None and sequence.in_flight.choices is not None
    return _Launch(sequence, AR_STEP, sequence.in_flight.choices.tokens, [])


def _launch(runner: Runner, launches: Many[_Launch]) -> list[Cycle]:
    """Run the passes of these cycles, all sequences in one pass where row counts are free."""
    if any(launch.sequence.request.row_counts != ANY_ROWS for launch in launches):
        return [cycle for launch in launches for cycle in _launch_together(runner, [launch])]
    return _launch_together(runner, launches) if launches else []


def _launch_together(runner: Runner, launches: Many[_Launch]) -> list[Cycle]:
    """Start a draft pass for those that plan one, then the verify pass for all."""
    drafting = [launch for launch in launches if launch.plan.draft_rows]
    if drafting:
        _draft(runner, drafting)
    for launch in launches:
        most = launch.sequence.request.row_counts.most(launch.plan.block_rows)
        n = launch.plan.n_drafts if most is None else min(launch.plan.n_drafts, most - 1)
        launch.drafts = launch.drafts[:n]

    starts = [launch.cache[0].offset for launch in launches]
    segments = [_verify_segment(launch) for launch in launches]
    logits, block_logits = runner.forward(Rows(segments))
    blocks = iter(_guesses(block_logits, segments, launches))
    if any(segment.n_diff for segment in segments):
        # A copy, as a view would keep the logits of the blocks for as long as a choice is known.
        logits = mx.take(logits, mx.arange(len(logits)), axis=0)
    cycles, row = [], 0
    for launch, segment, start in zip(launches, segments, starts, strict=True):
        n = 1 + len(launch.drafts)
        if segment.n_ar > n:  # rows that only fill the pass up
            trim(launch.cache, start + n)
        mine, row = logits[row : row + n], row + segment.n_ar
        chooser = launch.sequence.chooser
        choices = beside = None
        if not chooser.reads_text:
            assert segment.ar is not None
            choices = chooser.choose(mine, start + 1, segment.ar[:n])
        if segment.blocks is not None:
            # In a block of the trained length the last row is untrained.
            beside = next(blocks).of_blocks(segment.blocks.shape, runner.config.block_size - 1)
        cycles.append(Cycle(launch.plan, start, launch.drafts, mine, choices, beside, launch.fork))
    if all(launch.fork is None for launch in launches):  # else the verify pass waits on its forks
        mx.async_eval([cycle.outputs for cycle in cycles])
    return cycles


def _draft(runner: Runner, launches: Many[_Launch]) -> None:
    """Start a draft pass; the verify pass behind it is prepared on forks of the caches.

    Where a grammar has to pick the drafts, this waits for the pass.
    """
    segments = [_draft_segment(launch) for launch in launches]
    _, logits = runner.forward(Rows(segments))
    guesses = _guesses(logits, segments, launches)
    mx.async_eval([own.ids if own.logits is None else own.logits for own in guesses])
    for launch, own in zip(launches, guesses, strict=True):
        grammar = launch.sequence.grammar
        if grammar is None or own.logits is None:
            launch.drafts, launch.fork = own.ids, Fork(launch.sequence.cache)
        else:
            launch.drafts = grammar.guess(np.asarray(own.logits)[: launch.plan.n_drafts])


def _draft_segment(launch: _Launch) -> Segment:
    """The block [anchor, mask, ...] of a draft pass."""
    masks = [launch.sequence.request.mask_token_id] * (launch.plan.draft_rows - 1)
    return Segment(launch.cache, blocks=_join(launch.anchor, masks)[None])


def _verify_segment(launch: _Launch) -> Segment:
    """AR rows [anchor, drafts...], padded where row counts ask for it, and the blocks beside."""
    request, plan, drafts = launch.sequence.request, launch.plan, launch.drafts
    mask, n = request.mask_token_id, 1 + len(drafts)
    n_ar, length = request.row_counts.fit_fused(n, plan.block_rows, plan.blocks)
    ar = _join(launch.anchor, drafts, [mask] * (n_ar - n))
    if not length:
        return Segment(launch.cache, ar)
    depths = anchor_depths(len(drafts), plan.blocks)
    anchors = [drafts[depth - 1 : depth] if depth else launch.anchor for depth in depths]
    blocks = _join(*(part for anchor in anchors for part in (anchor, [mask] * (length - 1))))
    return Segment(launch.cache, ar, blocks.reshape(len(depths), length), depths)


def _guesses(logits: mx.array, segments: Many[Segment], launches: Many[_Launch]) -> list[Guesses]:
    """The guesses of each segment that has blocks, from the block logits of all."""
    found, row = [], 0
    for segment, launch in zip(segments, launches, strict=True):
        if segment.n_diff:
            own, row = logits[row : row + segment.n_diff], row + segment.n_diff
            found.append(Guesses.of(own, picked=launch.sequence.grammar is not None))
    return found


def _join(*parts: Ids) -> mx.array:
    """All ids in one array; those known here need no operation on the device."""
    if not any(isinstance(part, mx.array) for part in parts):
        return mx.array([i for part in parts for i in known(part)], mx.int32)
    filled = [
        mx.array(part, mx.int32) if isinstance(part, list) else part for part in parts if len(part)
    ]
    return filled[0] if len(filled) == 1 else mx.concatenate(filled)


def decode(
    runner: Runner,
    request: Request,
    scheduler: Scheduler,
    cache: Cache,
    on_stats: Callable[[DecodeStats], None] | None = None,
    drafters: Many[Drafter] = (),
    receipt: Receipt | None = None,
) -> Generator[tuple[Decoded, DecodeStats], None, None]:
    """Write one sequence until an end token or the budget; yields each token once it is decided.

    However the iterator ends (exhausted, closed, interrupted), the cache is left holding
    everything committed but the last token handed out, which the next call's prompt starts with.
    A token counts once the caller has it. Where another generator hands it on, that one counts it
    in `receipt`.
    """
    received = Receipt() if receipt is None else receipt
    sequence = Sequence(request, scheduler, cache, [BlockDrafter(), *drafters])
    stats, end_of_prompt = sequence.stats, cache[0].offset + len(request.prompt)
    try:
        if request.max_tokens == 0:
            stats.finish_reason = "length"
            return
        prefill(runner, request, cache)
        while not sequence.done:
            decided = step(runner, [sequence])[0]
            for n, token in enumerate(decided, start=1):
                stats.generation_tokens += 1
                if stats.near_ties is not None:
                    stats.near_ties += token.near_tie
                if sequence.done and n == len(decided):
                    stats.finish_reason = "stop" if sequence.ended else "length"
                item = token, stats
                try:  # nothing can fail in here before the caller has the item
                    yield item
                finally:
                    if receipt is None:
                        received.tokens += 1
    except ModelLogitsError as error:
        where = runner.first_not_finite()
        raise LogitsError(
            f"{error}, at token {stats.generation_tokens + 1} of the answer: "
            + (f"{where} holds NaN or infinite values." if where else "the computation overflows.")
            + " Convert or download the checkpoint again; `orthrus-mlx verify` tests it."
        ) from None
    finally:
        stats.generation_tokens = received.tokens
        try:
            settle(cache, end_of_prompt + received.tokens - 1)
        except BaseException:  # a second interrupt
            settle(cache, end_of_prompt + received.tokens - 1)
            raise
        if on_stats is not None:
            on_stats(stats)


def prefill(runner: Runner, request: Request, cache: Cache) -> None:
    """Read all of the prompt but its last id, the first anchor, into the cache."""
    prompt, total = mx.array(request.prompt), len(request.prompt)
    progress = request.on_progress or (lambda done, total: None)
    progress(0, total)
    for start in range(0, total - 1, request.prefill_step_size):
        chunk = prompt[start : min(start + request.prefill_step_size, total - 1)]
        runner.forward(Rows.verify(chunk, cache))
        # Only the cache is evaluated: no logits are computed, nor the last layer's MLP.
        if request.quantization is not None:
            request.quantization.apply(cache)
        mx.eval([layer.state for layer in cache])
        if mx.get_cache_memory() > RETAINED_CACHE_BYTES:
            mx.clear_cache()
        progress(start + chunk.size, total)
    progress(total, total)
