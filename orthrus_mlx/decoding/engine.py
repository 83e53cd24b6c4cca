"""One step of some sequences: draft, verify, accept, roll back.

Throughout, `s` tokens are in a sequence's KV cache and its anchor, the last committed token, is
not. A cycle runs AR rows [anchor, drafts...] at positions s, s+1, ...; row j's choice is for
position s+j+1. The drafts that equal the choices are accepted, the choice after them becomes the
next anchor, and the cache is rolled back to what was accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from ..rows import Cache, Prepared, Rows, Segment
from .cache import Fork, trim
from .choosers import Ids, known
from .cycle import Cycle, Guesses
from .interrupts import uninterrupted
from .plan import ANY_ROWS, AR_STEP, Plan, RowCounts, anchor_depths
from .sequence import Asked, Decoded, Outcome, Planner, Sequence


class Runner(Protocol):
    """What the engine needs of a model; `orthrus_mlx.model.Model` documents the methods."""

    @property
    def config(self) -> Any: ...  # noqa: D102
    def make_cache(self) -> Cache: ...  # noqa: D102
    def forward(self, rows: Rows) -> tuple[mx.array, mx.array]: ...  # noqa: D102
    def start(self, outputs: list[mx.array], waiting: Many[Prepared]) -> None: ...  # noqa: D102
    def first_not_finite(self) -> str | None: ...  # noqa: D102


class Alone:
    """Each sequence's own scheduler plans for it."""

    def plan(self, asked: Many[Asked]) -> list[Plan]:
        """One plan for each."""
        return [ask.sequence.scheduler.plan(ask.room, ask.at_hand) for ask in asked]

    def observe(self, outcomes: Many[Outcome]) -> None:
        """Tell each sequence's scheduler."""
        for sequence, plan, n_drafts, accepted, chances in outcomes:
            sequence.scheduler.observe(plan, n_drafts, accepted, chances)


ALONE = Alone()


def step(
    runner: Runner, sequences: Many[Sequence], planner: Planner = ALONE, ahead: bool = True
) -> list[list[Decoded]]:
    """Finish one cycle of each sequence, and start the next one.

    Rows of all sequences go through the model in one pass. What a sequence writes does not depend
    on the others. One whose processors, drafters or logits raise an error is done and keeps it;
    the others go on.

    Args:
        runner: the model.
        sequences: none of them done.
        planner: decides what each one's next cycle does.
        ahead: whether to start cycles that are not finished here.

    Returns:
        the tokens that each sequence's cycle decided, at least one where it has no error.
    """
    # 1. Start a cycle where none is in flight, and what was prepared for those that are.
    submit(runner, [s for s in sequences if s.in_flight is None], planner)

    _start_prepared(runner, [s for s in sequences if not s.done])

    # 2. An AR step behind an AR step can start before its input is known here.
    if ahead:
        _run_ahead(runner, [s for s in sequences if not s.done and s.budget > 1], planner)

    # 3. Learn how many drafts were accepted; this waits for the device.
    decided = [([] if s.done else _attempt(s, s.resolve)) or [] for s in sequences]
    planner.observe(
        [
            Outcome(
                sequence,
                cycle.plan,
                len(cycle.drafts),
                sequence.accepted,
                cycle.left_over(sequence.accepted).chances,
            )
            for sequence, tokens in zip(sequences, decided, strict=True)
            if tokens and (cycle := sequence.last)
        ]
    )

    # 4. Start the next cycles, so that the device works while the caller reads.
    if ahead:
        submit(runner, [s for s in sequences if not s.done and s.in_flight is None], planner)
    return decided


def submit(runner: Runner, sequences: Many[Sequence], planner: Planner = ALONE) -> None:
    """Start the next cycle of each sequence, as the planner has it."""
    asked = [ask for s in sequences if (ask := _attempt(s, partial(_ask, s))) is not None]
    plans = planner.plan([ask for ask, _ in asked])
    launches = [
        _Launch(ask.sequence, plan, ask.sequence.text[-1:], proposed.get(plan.source, []))
        for (ask, proposed), plan in zip(asked, plans, strict=True)
    ]
    for launch, cycle in zip(launches, _launch(runner, launches), strict=True):
        launch.sequence.in_flight = cycle


def _run_ahead(runner: Runner, sequences: Many[Sequence], planner: Planner) -> None:
    """Start an AR step behind that of each sequence, if all of them can have one.

    If only some could, their next passes and those of the others would be two passes.
    """
    asked = [_attempt(s, s.ask_ahead) for s in sequences]
    ready = [ask for ask in asked if ask is not None]
    if len(ready) < len(asked) or not all(plan.is_ar for plan in planner.plan(ready)):
        return
    for sequence, cycle in zip(
        sequences, _launch(runner, [_behind(s) for s in sequences]), strict=True
    ):
        sequence.ahead = cycle


def _start_prepared(runner: Runner, sequences: Many[Sequence]) -> None:
    """Hand the device the verify passes that were prepared on forks.

    Only once the draft pass is over can they write to the caches in place. Their graph was built
    while it ran.
    """
    in_flight = [s.in_flight for s in sequences if s.in_flight]
    # A step that Ctrl-C struck may have started them.
    prepared = [cycle for cycle in in_flight if cycle.fork and not cycle.fork.committed]
    for cycle in prepared:
        known(cycle.drafts)
    if not prepared:
        return
    with uninterrupted():  # a cache must not show a pass that never starts
        waiting = [cycle.fork.commit() for cycle in prepared if cycle.fork is not None]
        runner.start(
            [a for cycle in prepared for a in cycle.outputs],
            [place for place in waiting if place is not None],
        )


T = TypeVar("T")


def _attempt(sequence: Sequence, work: Callable[[], T]) -> T | None:
    """What `work` returns; an error in it ends this sequence alone."""
    try:
        return work()
    except Exception as error:
        sequence.fail(error)
        return None


@dataclass
class _Launch:
    """A cycle on its way to the device."""

    sequence: Sequence
    plan: Plan
    anchor: Ids  # [1]
    drafts: Ids
    fork: Fork | None = None
    shared_rows: int = 0  # AR rows of an exact pass that it shares; 0 where any do

    @property
    def cache(self) -> Cache:
        return self.fork.layers if self.fork else self.sequence.cache


def _ask(sequence: Sequence) -> tuple[Asked, dict[str, list[int]]]:
    """What a plan for the next cycle depends on, and the drafts at hand for it."""
    if sequence.request.quantization is not None:
        sequence.request.quantization.apply(sequence.cache)
    room = sequence.room()
    proposed = sequence.propose(room - 1)
    return Asked(sequence, room, {source: len(ids) for source, ids in proposed.items()}), proposed


def _behind(sequence: Sequence) -> _Launch:
    """An AR step behind the one in flight."""
    assert sequence.in_flight is not None and sequence.in_flight.choices is not None
    return _Launch(sequence, AR_STEP, sequence.in_flight.choices.tokens, [])


def _launch(runner: Runner, launches: Many[_Launch]) -> list[Cycle]:
    """Run the passes of these cycles: as few as their row counts allow."""
    cycles: dict[int, Cycle] = {}
    for group in _groups(launches):
        for launch, cycle in zip(group, _launch_together(runner, group), strict=True):
            cycles[id(launch)] = cycle
    return [cycles[id(launch)] for launch in launches]


def _groups(launches: Many[_Launch]) -> list[list[_Launch]]:
    """The launches that can share a pass."""
    free, alone = list[_Launch](), list[list[_Launch]]()
    sharing: dict[RowCounts, list[list[_Launch]]] = {}
    for launch in launches:
        counts, n = launch.sequence.request.row_counts, 1 + launch.plan.n_drafts
        fitted = counts.fit_shared(n)
        if counts == ANY_ROWS:
            free.append(launch)
        elif fitted is None or launch.plan.block_rows:
            alone.append([launch])
        else:
            launch.shared_rows = fitted
            groups = sharing.setdefault(counts, [[]])
            if sum(other.shared_rows for other in groups[-1]) + fitted > counts.totals[-1]:
                groups.append([])
            groups[-1].append(launch)
    shared = [group for groups in sharing.values() for group in groups if group]
    return ([free] if free else []) + alone + shared


def _launch_together(runner: Runner, launches: Many[_Launch]) -> list[Cycle]:
    """Start a draft pass for those that plan one, then the verify pass for all."""
    drafting = [launch for launch in launches if launch.plan.draft_rows]
    if drafting:
        _draft(runner, drafting)
    for launch in launches:
        most = launch.sequence.request.row_counts.most(launch.plan.block_rows)
        n = launch.plan.n_drafts if most is None else min(launch.plan.n_drafts, most - 1)
        launch.drafts = launch.drafts[:n]

    prepared = any(launch.fork is not None for launch in launches)
    if prepared:  # a pass that never starts must leave no cache as if it had
        for launch in launches:
            launch.fork = launch.fork or Fork(launch.sequence.cache)
    starts = [launch.cache[0].offset for launch in launches]
    segments = [_verify_segment(launch, len(launches) > 1) for launch in launches]
    rows = Rows([*segments, *_filler(runner, launches, segments)], prepared)
    logits, block_logits = runner.forward(rows)
    blocks = iter(_guesses(block_logits, segments, launches))
    if any(segment.n_diff for segment in segments):
        # A copy, as a view would keep the logits of the blocks for as long as a choice is known.
        logits = mx.take(logits, mx.arange(len(logits)), axis=0)
    cycles, row = [], 0
    for place, (launch, segment, start) in enumerate(zip(launches, segments, starts, strict=True)):
        n = 1 + len(launch.drafts)
        if launch.fork is not None:
            launch.fork.place = Prepared(rows, place)
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
    if not prepared:  # else the verify pass waits on its forks
        mx.async_eval([cycle.outputs for cycle in cycles])
    return cycles


def _filler(runner: Runner, launches: Many[_Launch], segments: Many[Segment]) -> list[Segment]:
    """Rows of nobody that bring a shared pass to a total that is exact."""
    request, rows = launches[0].sequence.request, sum(segment.n_ar for segment in segments)
    if len(launches) < 2 or not request.row_counts.totals:
        return []
    missing = request.row_counts.fit_total(rows) - rows
    ids = mx.full((missing,), request.mask_token_id, mx.int32)
    return [Segment(runner.make_cache(), ids)] if missing else []


def _draft(runner: Runner, launches: Many[_Launch]) -> None:
    """Start a draft pass; the verify pass behind it is prepared on forks of the caches.

    Where a grammar has to pick the drafts, this waits for the pass.
    """
    segments = [_draft_segment(launch) for launch in launches]
    _, logits = runner.forward(Rows(segments))
    guesses = _guesses(logits, segments, launches)
    mx.async_eval([own.used[0] for own in guesses])
    for launch, own in zip(launches, guesses, strict=True):
        grammar = launch.sequence.grammar
        if grammar is None or own.logits is None:
            launch.drafts, launch.fork = own.ids, Fork(launch.sequence.cache)
        else:
            rows = np.asarray(own.logits)[: launch.plan.n_drafts]
            launch.drafts = _attempt(launch.sequence, partial(grammar.guess, rows)) or []


def _draft_segment(launch: _Launch) -> Segment:
    """The block [anchor, mask, ...] of a draft pass."""
    masks = [launch.sequence.request.mask_token_id] * (launch.plan.draft_rows - 1)
    return Segment(launch.cache, blocks=_join(launch.anchor, masks)[None])


def _verify_segment(launch: _Launch, shared: bool) -> Segment:
    """AR rows [anchor, drafts...], padded where row counts ask for it, and the blocks beside."""
    request, plan, drafts = launch.sequence.request, launch.plan, launch.drafts
    mask, n = request.mask_token_id, 1 + len(drafts)
    n_ar, length = request.row_counts.fit_fused(n, plan.block_rows, plan.blocks)
    if shared and launch.shared_rows:
        n_ar = launch.shared_rows
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
