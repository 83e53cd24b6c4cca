"""Ctrl-C in a moment that must be whole comes right behind it, whatever is to become of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import Sampling
from orthrus_mlx.decoding import interrupts
from orthrus_mlx.decoding.batch import Batch
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.decoding.interrupts import uninterrupted
from orthrus_mlx.decoding.scheduler import make_scheduler
from orthrus_mlx.decoding.sequence import Request
from orthrus_mlx.rows import Prepared

from .fake_model import FakeModel, plain_decoding

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_held_to_the_end_of_the_outermost_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("before", [signal.SIG_DFL, None])
def test_a_handler_that_is_not_pythons_gets_it(
    before: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SIG_DFL ends the process: here it is only seen to be raised, with that handler in place.
    raised: list[Any] = []
    now: list[Any] = [before]

    def set_handler(_: int, handler: Any) -> Any:
        assert handler is not None, "as signal.signal itself"
        now.append(handler)

    monkeypatch.setattr(interrupts.signal, "getsignal", lambda _: now[-1])
    monkeypatch.setattr(interrupts.signal, "signal", set_handler)
    monkeypatch.setattr(interrupts.signal, "raise_signal", lambda _: raised.append(now[-1]))
    with uninterrupted():
        if callable(now[-1]):
            now[-1](signal.SIGINT, None)
    assert now[-1] is before
    assert raised == ([] if before is None else [before])


class Struck(FakeModel):
    """Ctrl-C strikes whenever a prepared pass is started."""

    def start(self, outputs: list[mx.array], waiting: Sequence[Prepared]) -> None:
        signal.raise_signal(signal.SIGINT)
        super().start(outputs, waiting)


def test_a_batch_that_was_struck_goes_on() -> None:
    model = Struck()
    expected = plain_decoding(model, PROMPT, 30)
    model.script(PROMPT + expected, [True, True, False])
    request = Request(PROMPT, frozenset(), 30, Sampling(), model.config.mask_token_id)
    batch = Batch(model)
    scheduler = make_scheduler("parallel", "two-pass", model.config.block_size, lambda: NOMINAL)
    text, struck, written = batch.add(request, scheduler), 0, list[int]()
    while not text.done:
        try:
            for _, decided in batch.step():
                written += [one.token for one, _ in text.hand_out(decided)]
        except KeyboardInterrupt:
            struck += 1
            assert struck < 100
    assert text.error is None and struck > 5
    assert written == expected
