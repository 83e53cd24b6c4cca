"""Hypothesis strategies: a fake model, a request, and what plain decoding makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from orthrus_mlx import Sampling, mlx_generate
from orthrus_mlx.decoding.choosers import LogitsProcessor
from orthrus_mlx.decoding.sequence import Request

from .fake_model import FakeCache, FakeModel, plain_decoding

CYCLES = ("two-pass", "one-pass", "alternating")
WAYS = [("ar", "auto"), ("auto", "auto"), *(("parallel", cycle) for cycle in CYCLES)]


@dataclass(frozen=True)
class Scenario:
    """A request to a fake model, and the ids that plain decoding answers with."""

    model: FakeModel
    prompt: list[int]
    max_tokens: int
    eos: frozenset[int]
    sampling: Sampling
    prefill_step_size: int
    pattern: list[bool]
    expected: list[int]

    @property
    def full(self) -> list[int]:
        return self.prompt + self.expected

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `mlx_generate` that this scenario fixes."""
        s = self.sampling
        return {
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "min_p": s.min_p,
            "seed": s.seed,
            "prefill_step_size": self.prefill_step_size,
        }

    def generate(
        self, prompt: Sequence[int] | None = None, max_tokens: int | None = None, **more: Any
    ) -> Any:
        """`mlx_generate` on this scenario, or on another prompt and budget."""
        self.model.script(self.full, self.pattern)
        return mlx_generate(
            self.model,
            self.prompt if prompt is None else prompt,
            self.eos,
            self.max_tokens if max_tokens is None else max_tokens,
            **{"mode": "parallel", "calibrate": False, **self.options(), **more},
        )

    def request(self, processors: Sequence[LogitsProcessor] = ()) -> Request:
        """The same for `engine.decode`."""
        self.model.script(self.full, self.pattern)
        return Request(
            prompt=self.prompt,
            eos_token_ids=self.eos,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            mask_token_id=self.model.config.mask_token_id,
            logits_processors=processors,
            prefill_step_size=self.prefill_step_size,
        )


def samplings() -> st.SearchStrategy[Sampling]:
    """Greedy half of the time, else any mix of temperature and filters."""
    sampled = st.builds(
        Sampling,
        temperature=st.sampled_from([0.5, 0.8, 1.0, 3.0]),
        top_p=st.sampled_from([1.0, 0.9, 0.5]),
        top_k=st.sampled_from([0, 1, 4]),
        min_p=st.sampled_from([0.0, 0.1]),
        seed=st.integers(0, (1 << 64) - 1),
    )
    return st.just(Sampling()) | sampled


@st.composite
def scenarios(draw: st.DrawFn, most_tokens: int = 40, least_tokens: int = 0) -> Scenario:
    """Any prompt, block, budget and acceptance pattern; end tokens anywhere in the answer."""
    model = FakeModel(
        vocab_size=draw(st.integers(5, 40)),
        block_size=draw(st.integers(2, 9)),
        layers=draw(st.integers(1, 3)),
        salt=draw(st.integers(0, 1 << 32)),
    )
    prompt = draw(st.lists(st.integers(0, model.config.vocab_size - 1), min_size=1, max_size=12))
    max_tokens = draw(st.integers(least_tokens, most_tokens))
    sampling = draw(samplings())
    endless = plain_decoding(model, prompt, max_tokens, sampling=sampling)
    places = draw(st.lists(st.integers(0, most_tokens), max_size=3))
    eos = frozenset(endless[place] for place in places if place < len(endless))
    end = next((n for n, token in enumerate(endless, start=1) if token in eos), len(endless))
    # Long runs of right guesses, lone ones, none at all: mostly right, so that blocks are taken.
    chance = draw(st.sampled_from([(True,), (True, True, True, False), (True, False), (False,)]))
    pattern = draw(st.lists(st.sampled_from(chance), min_size=1, max_size=24))
    return Scenario(
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        eos=eos,
        sampling=sampling,
        prefill_step_size=draw(st.sampled_from([1, 2, 3, 5, 2048])),
        pattern=pattern,
        expected=endless[:end],
    )


def held(cache: list[FakeCache]) -> list[int]:
    """The ids that a cache holds, the same in every layer."""
    layers = [layer.ids for layer in cache]
    assert all(layer == layers[0] for layer in layers), "layers hold different ids"
    return layers[0]
