"""What an answer under way consists of. The worker makes these; each API writes them its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Logprob(NamedTuple):
    """How likely a token was to the AR view, before penalties, masks and temperature.

    Attributes:
        token: its text; one that is part of a character has a replacement character.
        bytes: its bytes; None where the tokenizer does not tell.
        logprob: its log-probability.
        top: the likeliest tokens at that place, likeliest first.
    """

    token: str
    bytes: list[int] | None
    logprob: float
    top: tuple[Logprob, ...] = ()


class Begun(NamedTuple):
    """The engine has taken the request up; a prompt may be left to read."""


class Thought(NamedTuple):
    """More of the thinking before the answer."""

    text: str


class Said(NamedTuple):
    """More of the answer's text."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


class CallBegun(NamedTuple):
    """A call of a tool whose name is known now; calls of an answer are counted from 0."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments, as JSON text."""

    call: int
    text: str


class CallEnded(NamedTuple):
    """A call is whole."""

    call: int


@dataclass
class Figures:
    """What an answer came to.

    Attributes:
        prompt_tokens: ids of the prompt.
        cached_tokens: those of them whose KV cache an earlier request had left.
        completion_tokens: ids written, an end token included.
        reasoning_tokens: those of them that are thinking.
        accepted_prediction_tokens: drafts from the caller's prediction that were accepted.
        rejected_prediction_tokens: those that were not.
        drafted_tokens: drafts verified.
        accepted_tokens: drafts accepted.
        forward_passes: passes over the layers.
        seconds: of writing; the reading of the prompt and waiting come before.
        seed: keyed the sampling noise.
        numerics: "exact" or "fast".
        ids: the ids written.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    forward_passes: int = 0
    seconds: float = 0.0
    seed: int = 0
    numerics: str = "fast"
    ids: list[int] = field(default_factory=list)


class Ended(NamedTuple):
    """The answer is over.

    Attributes:
        reason: "stop", "length" or "tool_calls".
        stop: the stop string that ended it; "" for none.
        figures: what it came to.
    """

    reason: str
    stop: str
    figures: Figures


class Failed(NamedTuple):
    """The answer is over before its time."""

    error: Exception


Event = Begun | Thought | Said | CallBegun | CallArguments | CallEnded | Ended | Failed


def joined(events: list[Event]) -> list[Event]:
    """Fewer events that say the same: texts of one kind behind each other become one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Said) and isinstance(last, Said):
            found[-1] = Said(last.text + event.text, last.logprobs + event.logprobs)
        elif isinstance(event, Thought) and isinstance(last, Thought):
            found[-1] = Thought(last.text + event.text)
        elif (
            isinstance(event, CallArguments)
            and isinstance(last, CallArguments)
            and event.call == last.call
        ):
            found[-1] = CallArguments(event.call, last.text + event.text)
        else:
            found.append(event)
    return found
