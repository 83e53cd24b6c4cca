"""Ctrl-C at any moment: the cache holds just what the caller received, all but its last token."""

from __future__ import annotations

import random
import signal
import time
from types import FrameType
from typing import Any

import pytest

from orthrus_mlx import mlx_generate, stream_generate
from tests.amount import few
from tests.api.texts import byte_tokenizer

from .fake_model import FakeModel, plain_decoding

PROMPT = [3, 1, 4, 1, 5]
TOKENS = 60
PATTERN = [True, True, False, True, True, True, True, False, False, True]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def receive(run: Any, received: list[int]) -> None:
    """A caller. What it was handed is in `received` before the next signal can strike."""
    for piece in run:
        received.append(piece if isinstance(piece, int) else piece.token)


class Interrupt:
    """A timer that raises as Ctrl-C does, while the caller waits for a piece and at no other time.

    Between two pieces the caller notes what it was handed: there the interrupt waits. What strikes
    when `receive` has returned is late, and is dropped: outside of it nobody expects it.
    """

    def __init__(self) -> None:
        self.armed = False

    def arm(self, seconds: float) -> None:
        """Strike in so many seconds."""
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        """Strike no more, not by a signal under way either."""
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def strike(self, signum: int, frame: FrameType | None) -> None:
        """As Python's own handler of Ctrl-C."""
        codes = []
        while frame is not None:
            codes.append(frame.f_code)
            frame = frame.f_back
        if not self.armed or receive.__code__ not in codes:
            return
        # What is raised in a callback of the garbage collector, such as Hypothesis's, is lost.
        if codes[0] is receive.__code__ or "hypothesis" in codes[0].co_filename:
            signal.setitimer(signal.ITIMER_REAL, 2e-5)
        else:
            raise KeyboardInterrupt


@pytest.mark.parametrize("cycle", ["two-pass", "one-pass", "alternating", "ar"])
@pytest.mark.parametrize("kind", ["ids", "text"])
def test_an_interrupt_at_any_moment(tokenizer: Any, kind: str, cycle: Any) -> None:
    draw = random.Random(f"{kind} {cycle}")
    model = FakeModel(vocab_size=40, block_size=6, layers=3)
    full = PROMPT + plain_decoding(model, PROMPT, TOKENS)
    options: Any = {"mode": "ar"} if cycle == "ar" else {"mode": "parallel", "cycle": cycle}
    options["prefill_step_size"] = 2

    def run(cache: Any, prompt: list[int], tokens: int) -> Any:
        model.script(full, PATTERN)
        if kind == "ids":
            return mlx_generate(model, prompt, (), tokens, prompt_cache=cache, **options)
        return stream_generate(
            model, tokenizer, prompt, tokens, prompt_cache=cache, eos_token_ids=(), **options
        )

    started = time.perf_counter()
    receive(run(model.make_cache(), PROMPT, TOKENS), [])
    seconds = time.perf_counter() - started
    interrupted = 0
    interrupt = Interrupt()
    before = signal.signal(signal.SIGALRM, interrupt.strike)
    try:
        for _ in range(few(12, of=125)):
            cache, received = model.make_cache(), list[int]()
            generator = run(cache, PROMPT, TOKENS)
            try:
                interrupt.arm(draw.uniform(1e-6, seconds))
                receive(generator, received)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                interrupt.disarm()
            generator.close()
            held = (PROMPT + received)[:-1] if received else PROMPT[: cache[0].offset]
            assert [layer.ids for layer in cache] == [held] * 3
            assert full[: len(PROMPT) + len(received)] == PROMPT + received
            # What follows is what would have followed.
            if 0 < len(received) < TOKENS:
                rest = list[int]()
                receive(run(cache, received[-1:], TOKENS - len(received)), rest)
                assert received + rest == full[len(PROMPT) :]
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted
