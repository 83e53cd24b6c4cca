"""The one rule of decoding: choose a token for a position; keep the drafts that equal the choices.

`choose` is a pure function of (logits, position, seed, sampling). Greedy is the argmax; sampling
is the argmax of (filtered logits / temperature + Gumbel noise keyed by seed and position), which
draws exactly from the filtered softmax (the Gumbel-max trick). A draft is only a guess at that
choice, so no rejection step and no residual distribution exist: whatever drafts, the output is
what plain decoding with the same seed would have written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..errors import SamplingError

MAX_SEED = (1 << 64) - 1
# Below this, noise no longer moves a float32 choice, and the division would overflow.
COLDEST = 1e-8


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits; filter semantics and order are mlx-lm's `make_sampler`.

    Attributes:
        temperature: 0 is greedy; the filters and the seed then play no part.
        top_p: keep the smallest set of tokens with this total probability; 0 and 1 keep all.
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: drop tokens below this fraction of the likeliest token's probability.
        seed: keys the noise, together with the position.

    Raises:
        SamplingError: for a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(name: str, value: object, expected: str) -> None:
            raise SamplingError(f"{name} is {value!r}; expected {expected}.")

        if not _is_real(self.temperature) or not 0 <= self.temperature < math.inf:
            refuse("temperature", self.temperature, "a number from 0 (greedy) upwards")
        if not _is_real(self.top_p) or not 0 <= self.top_p <= 1:
            refuse("top_p", self.top_p, "a number from 0 to 1 (0 and 1 keep every token)")
        if not _is_real(self.min_p) or not 0 <= self.min_p <= 1:
            refuse("min_p", self.min_p, "a number from 0 (off) to 1")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            refuse("top_k", self.top_k, "a whole number from 0 (off) upwards")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            refuse("seed", self.seed, "a whole number")
        if not 0 <= self.seed <= MAX_SEED:
            refuse("seed", self.seed, f"a whole number from 0 to {MAX_SEED}")

    @property
    def greedy(self) -> bool:
        """Whether the choice is the plain argmax."""
        return self.temperature < COLDEST


def choose(logits: mx.array, position: int, sampling: Sampling) -> mx.array:
    """Token ids [R] for logits [R, vocab_size]; row j is the choice for `position + j`."""
    return mx.argmax(scores(logits, position, sampling), axis=-1)


def scores(logits: mx.array, position: int, sampling: Sampling) -> mx.array:
    """What `choose` takes the argmax of: [R, vocab_size], float32 when sampling."""
    if sampling.greedy:
        return logits
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    rows, vocab_size = logits.shape
    words = mx.broadcast_to(seed_word(sampling.seed), (rows,))
    noise = gumbel_noise(words, mx.arange(position, position + rows), vocab_size)
    return filtered(logprobs, sampling) * (1.0 / sampling.temperature) + noise


def filtered(logprobs: mx.array, sampling: Sampling) -> mx.array:
    """Log-probabilities [R, vocab_size] with -inf for tokens that the filters drop."""
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    if 0 < sampling.top_p < 1:
        logprobs = apply_top_p(logprobs, sampling.top_p)
    if sampling.min_p > 0:
        logprobs = apply_min_p(logprobs, sampling.min_p)
    if 0 < sampling.top_k < logprobs.shape[-1]:
        logprobs = apply_top_k(logprobs, sampling.top_k)
    return logprobs


def gumbel_noise(seed_words: mx.array, positions: mx.array, vocab_size: int) -> mx.array:
    """Gumbel noise [R, vocab_size], row j keyed by its seed and position and nothing else.

    Each row has a Threefry key of its own, [seed word, position], so that a row's noise does not
    depend on which rows are drawn together. `seed_words` [R] are those of `seed_word`.
    """
    keys = mx.stack([seed_words, positions.astype(mx.uint32)], axis=1)
    # Whole vector lanes: elements at the ragged end of an array may take another code path.
    width = -(-vocab_size // 64) * 64
    noise = mx.vmap(lambda key: mx.random.gumbel((width,), key=key))(keys)
    return noise[:, :vocab_size]


def seed_word(seed: int) -> mx.array:
    """The 32 bits of a seed that key its noise."""
    return mx.random.split(mx.random.key(seed))[0, 0]


def top2_margin(scores: mx.array, best: mx.array, sampling: Sampling) -> mx.array:
    """How far, in logits, the best score [R] of each row of `scores` [R, vocab_size] leads."""
    others = mx.put_along_axis(scores, best[:, None], mx.array(-mx.inf, scores.dtype), axis=-1)
    lead = (scores.max(axis=-1) - others.max(axis=-1)).astype(mx.float32)
    return lead if sampling.greedy else lead * sampling.temperature


def count_accepted(drafts: Sequence[int], choices: Sequence[int]) -> int:
    """How many leading drafts equal the AR view's choices."""
    return common_prefix(drafts, choices)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids both start with."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)))


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
