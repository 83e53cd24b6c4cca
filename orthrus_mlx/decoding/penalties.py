"""Penalties and biases of tokens, as `mlx_lm.sample_utils.make_logits_processors` has them.

What a row is penalized for are the ids before it. In a pass over drafts these are known before the
pass: the text, then the anchor and the drafts. So all rows are penalized at once, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import SamplingError

CONTEXT = 20  # tokens that mlx-lm's penalties look back by default
LARGEST = 1e9  # of a penalty or bias: what float32 logits can bear


@dataclass(frozen=True)
class Penalties:
    """What is taken off logits before a token is chosen; each is mlx-lm's option of that name.

    Attributes:
        logit_bias: added to the logits of these token ids.
        repetition: logits of tokens said lately are divided by this, or multiplied where negative;
            None, 0 and 1 change nothing.
        presence: taken off the logit of each token said lately.
        frequency: taken off the logit of a token for each time that it was said lately.
        repetition_context, presence_context, frequency_context: how many tokens back "lately" is.

    Raises:
        SamplingError: for a value out of range.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repetition: float | None = None
    presence: float | None = None
    frequency: float | None = None
    repetition_context: int = CONTEXT
    presence_context: int = CONTEXT
    frequency_context: int = CONTEXT

    def __post_init__(self) -> None:
        bias = self.logit_bias
        if not isinstance(bias, Mapping) or not all(
            _is_token(t) and _is_number(b) for t, b in bias.items()
        ):
            raise SamplingError(
                f"logit_bias is {bias!r}; expected numbers from {-LARGEST:g} to {LARGEST:g} by "
                "token id, as in {151645: -5.0}."
            )
        for name in ("repetition", "presence", "frequency"):
            value, least = getattr(self, name), 0 if name == "repetition" else -LARGEST
            if value is not None and not (_is_number(value) and value >= least):
                raise SamplingError(
                    f"{name}_penalty is {value!r}; expected a number from {least:g} to "
                    f"{LARGEST:g}, or None."
                )
            context = getattr(self, f"{name}_context")
            if isinstance(context, bool) or not isinstance(context, int) or context < 1:
                raise SamplingError(
                    f"{name}_context_size is {context!r}; expected 1 token or more."
                )

    def __bool__(self) -> bool:
        return bool(self.logit_bias or self.repetition or self.presence or self.frequency)

    @property
    def context(self) -> int:
        """How many tokens back any of them looks."""
        return max(self.repetition_context, self.presence_context, self.frequency_context)

    def check_ids(self, vocab_size: int) -> None:
        """Refuse a bias of an id that the model does not have."""
        for token in self.logit_bias:
            if token >= vocab_size:
                raise SamplingError(
                    f"logit_bias names token {token}; this model's ids go from 0 to "
                    f"{vocab_size - 1}."
                )

    def apply(self, logits: mx.array, text: Sequence[int], before: Any) -> mx.array:
        """The penalized logits of consecutive rows.

        Args:
            logits: [n, vocab_size].
            text: ids before those of the rows.
            before: ids [n] of the rows, on the host or the device: row j has text + before[: j + 1]
                before it.
        """
        n, vocab_size = logits.shape
        if self.logit_bias:
            bias = np.zeros(vocab_size, np.float32)
            bias[list(self.logit_bias)] = list(self.logit_bias.values())
            logits = logits + mx.array(bias, logits.dtype)
        if self.repetition:
            tokens, _ = _window(text, before, n, self.repetition_context)
            said = mx.take_along_axis(logits, tokens, axis=1)
            said = mx.where(said < 0, said * self.repetition, said / self.repetition)
            logits = mx.put_along_axis(logits, tokens, said, axis=1)
        if self.presence:
            tokens, _ = _window(text, before, n, self.presence_context)
            said = mx.take_along_axis(logits, tokens, axis=1) - self.presence
            logits = mx.put_along_axis(logits, tokens, said, axis=1)
        if self.frequency:
            tokens, counted = _window(text, before, n, self.frequency_context)
            # Each time apart, as mlx-lm does it: one product would be rounded once.
            times = mx.where(counted, self.frequency, 0.0).astype(logits.dtype)
            logits = logits.at[mx.arange(n)[:, None], tokens].subtract(times)
        return logits


NO_PENALTIES = Penalties()


def _window(text: Sequence[int], before: Any, n: int, context: int) -> tuple[mx.array, mx.array]:
    """The last `context` ids before each row [n, width], and which of them count.

    Where there are fewer, the first one is repeated, which does not count.
    """
    tail = list(text[-(context - 1) :]) if context > 1 else []
    ids = mx.concatenate([mx.array(tail, mx.int32), mx.array(before, mx.int32)])
    width = min(context, len(tail) + n)
    places = mx.arange(n)[:, None] + (len(tail) + 1 - width) + mx.arange(width)
    return ids[mx.maximum(places, 0)], places >= 0


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= LARGEST
