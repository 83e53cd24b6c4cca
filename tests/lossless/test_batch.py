"""Many texts at once: each is what it would have been alone, whoever comes, goes or fails."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orthrus_mlx import GenerationError, Sampling
from orthrus_mlx.decoding.batch import BESIDE, Batch, Text
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.decoding.drafters import CopyDrafter
from orthrus_mlx.decoding.plan import DIFFUSION, Plan, RowCounts
from orthrus_mlx.decoding.scheduler import make_scheduler
from orthrus_mlx.decoding.sequence import Request
from orthrus_mlx.rows import Rows
from tests.amount import few

from .fake_model import FakeModel, plain_decoding
from .scenarios import WAYS, held


class Penalty:
    """A processor with a state of its own: what it does depends on every id that it was shown."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("a processor fails")
        shift = np.roll(np.arange(logits.shape[1]), int(tokens.sum().item()) + self.calls)
        return logits + 0.1 * mx.array(shift.astype(np.float32))


@dataclass
class Wish:
    """A text to be written, and what may befall it."""

    request: Request
    full: list[int]  # prompt and answer
    arrives: int  # after so many steps
    scheduler: Any
    fails_at: int | None = None  # token of its answer
    cancelled_at: int | None = None  # step
    written: list[int] = field(default_factory=list)
    text: Text | None = None

    @property
    def answer(self) -> list[int]:
        return self.full[len(self.request.prompt) :]


def any_wish(model: FakeModel, draw: random.Random) -> Wish:
    vocab = model.config.vocab_size
    prompt = [draw.randrange(vocab) for _ in range(draw.randint(1, 9))]
    budget, processors, fails_at = draw.randint(1, 24), [], None
    sampling = Sampling()
    if draw.random() < 0.5:
        top_k = draw.choice([0, 4])
        sampling = Sampling(draw.choice([0.5, 0.8, 3.0]), 0.9, top_k, 0.0, draw.randrange(1 << 40))
    if draw.random() < 0.3:
        processors = [Penalty]
        if draw.random() < 0.4:
            fails_at = draw.randint(1, budget)
    endless = plain_decoding(
        model, prompt, budget, sampling=sampling, processors=[make() for make in processors]
    )
    ends = frozenset({draw.choice(endless)} if draw.random() < 0.5 else ())
    n = next((n for n, token in enumerate(endless, start=1) if token in ends), len(endless))
    mode, cycle = draw.choice(WAYS)
    block = model.config.block_size
    return Wish(
        Request(
            prompt,
            ends,
            budget,
            sampling,
            model.config.mask_token_id,
            logits_processors=[Penalty(fails_at) for _ in processors],
            row_counts=RowCounts((4, 8)) if draw.random() < 0.1 else RowCounts(),
            prefill_step_size=draw.choice([1, 2, 3, 2048]),
        ),
        prompt + endless[:n],
        arrives=draw.choice([0, 0, draw.randint(0, 12)]),
        scheduler=make_scheduler(mode, cycle, block, lambda: NOMINAL),  # type: ignore[arg-type]
        fails_at=fails_at,
        cancelled_at=draw.randint(0, 20) if draw.random() < 0.2 else None,
    )


def serve(model: FakeModel, batch: Batch, wishes: list[Wish]) -> None:
    """Run a schedule to its end, as a server would."""
    for step in itertools.count():
        for wish in wishes:
            if wish.text is None and wish.arrives <= step:
                cache = model.make_cache()
                cache[0].truth = wish.full
                wish.text = batch.add(wish.request, wish.scheduler, cache, [CopyDrafter()])
        of = {id(wish.text): wish for wish in wishes}
        for text, decided in batch.step():
            of[id(text)].written += [item.token for item, _ in text.hand_out(decided)]
            if text.done:
                batch.retire(text, text.stats.generation_tokens)
        for wish in wishes:
            if wish.cancelled_at == step and wish.text is not None and not wish.text.done:
                batch.retire(wish.text, wish.text.stats.generation_tokens)
        if not len(batch) and all(wish.text is not None for wish in wishes):
            return
        assert step < 1000


def test_any_schedule_of_arrivals_cancels_and_errors() -> None:
    failed = cancelled = shared = 0
    for seed in range(few(200, of=2000)):
        draw = random.Random(seed)
        model = FakeModel(vocab_size=11, block_size=draw.randint(2, 6), salt=seed)
        model.script([], [draw.random() < 0.8 for _ in range(7)])
        wishes = [any_wish(model, draw) for _ in range(draw.randint(2, 5))]
        widths = []
        forward = model.forward

        def noted(rows: Rows, forward: Any = forward, widths: list[int] = widths) -> Any:
            widths.append(len(rows.segments))
            return forward(rows)

        model.forward = noted  # type: ignore[method-assign]
        ticks = itertools.count()
        serve(model, Batch(model, clock=lambda ticks=ticks: float(next(ticks))), wishes)
        shared += max(widths) > 1
        for wish in wishes:
            assert wish.text is not None and wish.text.done
            error, n = wish.text.error, len(wish.written)
            assert wish.written == wish.answer[:n]
            if wish.fails_at is not None and error is not None:
                assert str(error) == "a processor fails" and n < wish.fails_at
                failed += 1
            elif n < len(wish.answer):
                assert error is None and wish.cancelled_at is not None
                cancelled += 1
            else:
                assert error is None
            if n:
                cache = wish.text.sequence.cache  # type: ignore[union-attr]
                assert held(cache) == wish.full[: len(wish.request.prompt) + n - 1]
    assert failed > 10 and cancelled > 10 and shared > few(130, of=1300)


class Scripted:
    """Drafts a whole block beside its AR row, verifies it, and so on."""

    def plan(self, budget: int, at_hand: Mapping[str, int]) -> Plan:
        n = min(at_hand.get(DIFFUSION, 0), 5, budget - 1)
        return Plan(n_drafts=n) if n else Plan(block_rows=6)

    def observe(self, plan: Plan, n_drafts: int, accepted: int, chances: Any = ()) -> None:
        pass


def test_every_combination_of_accepted_drafts() -> None:
    """Three sequences, none to all of five drafts accepted in each: 216 passes."""
    seen = set()
    model = FakeModel(vocab_size=13, block_size=7)
    texts = [[n, *plain_decoding(model, [n], 14)] for n in range(3)]
    for combination in itertools.product(range(6), repeat=3):
        model.script([], [True])
        batch, members = Batch(model), []
        for text, accepted in zip(texts, combination, strict=True):
            cache = model.make_cache()
            # The drafts are for positions 2 to 6: right up to the first that is not.
            wrong = 2 + accepted
            cache[0].truth = [*text[:wrong], *((i + 1) % 13 for i in text[wrong:])]
            request = Request(text[:1], frozenset(), 14, Sampling(), model.config.mask_token_id)
            members.append(batch.add(request, Scripted(), cache))
        written = {id(member): text[:1] for member, text in zip(members, texts, strict=True)}
        for _ in range(40):
            for member, decided in batch.step():
                written[id(member)] += [item.token for item, _ in member.hand_out(decided)]
                if member.stats.cycles == 2:
                    seen.add((combination, members.index(member), member.stats.accepted_tokens))
            if not len(batch):
                break
        assert [written[id(member)] for member in members] == texts
    assert seen == {(c, n, c[n]) for c in itertools.product(range(6), repeat=3) for n in range(3)}


def request(model: FakeModel, prompt: list[int], tokens: int, **more: Any) -> Request:
    return Request(prompt, frozenset(), tokens, Sampling(), model.config.mask_token_id, **more)


def plain() -> Any:
    return make_scheduler("ar", "auto", 4, lambda: NOMINAL)


def test_prompts_are_read_at_most_half_of_the_time_while_others_are_written() -> None:
    """By a clock on which only passes take time, one second for each row."""
    model, now = FakeModel(), [0.0]
    spent = {"reading": 0.0, "writing": 0.0}
    forward = model.forward

    def timed(rows: Rows) -> Any:
        reading = len(rows.segments) == 1 and rows.starts[0] < 1400 and rows.n_ar > 1
        now[0] += rows.n_ar
        if alone[0].sequence is not None and len(batch.writing):
            spent["reading" if reading else "writing"] += rows.n_ar
        return forward(rows)

    model.forward = timed  # type: ignore[method-assign]
    batch = Batch(model, clock=lambda: now[0])
    alone = [batch.add(request(model, [1, 2], 3000), plain())]
    batch.step()
    late = batch.add(request(model, [i % 7 for i in range(1400)], 4), plain())
    longest = 0.0
    while not late.done:
        before = dict(spent)
        batch.step()
        longest = max(longest, spent["reading"] - before["reading"])
    assert longest == BESIDE  # one chunk, then it is the others' turn
    assert spent["writing"] >= spent["reading"] - BESIDE
    assert spent["reading"] == 1399


def test_what_does_not_fit_waits_and_what_never_would_is_refused() -> None:
    model = FakeModel()
    batch = Batch(model, room=100)
    first, second, third = (
        batch.add(request(model, [n], 5), plain(), needs=needs)
        for n, needs in enumerate((60, 50, 30))
    )
    assert list(batch.waiting) == [second, third]  # first come first served
    order = []
    while len(batch):
        running = sum(text.needs for text in [*batch.reading, *batch.writing])
        assert running <= 100
        for text, _ in batch.step():
            if text.done:
                order.append(text)
                batch.retire(text, 5)
    assert order[0] is first and set(order) == {first, second, third}
    with pytest.raises(GenerationError, match=r"may need 0\.00 GB"):
        batch.add(request(model, [1], 5), plain(), needs=101)


def test_nothing_to_write_is_done_at_once() -> None:
    model = FakeModel()
    batch = Batch(model)
    text = batch.add(request(model, [1, 2], 0), plain())
    assert batch.step() == [(text, [])]
    assert text.done and text.stats.finish_reason == "length" and model.log == []
    batch.retire(batch.add(request(model, [1, 2], 0), plain()), 0)
    assert not batch.step()  # nothing comes of one that was cancelled before it was told


def test_a_callback_that_fails_while_reading_ends_its_text_alone() -> None:
    def fails(done: int, total: int) -> None:
        raise RuntimeError("nobody listens")

    model = FakeModel()
    batch = Batch(model)
    bad = batch.add(request(model, [1, 2, 3], 5, on_progress=fails), plain())
    good = batch.add(request(model, [3, 1], 5), plain())
    written = []
    while len(batch):
        for text, decided in batch.step():
            if text is good:
                written += [item.token for item, _ in text.hand_out(decided)]
            if text.done:
                batch.retire(text, text.stats.generation_tokens)
    assert str(bad.error) == "nobody listens" and bad.sequence is not None
    assert written == plain_decoding(model, [3, 1], 5)
