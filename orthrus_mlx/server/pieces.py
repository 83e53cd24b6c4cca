"""Ids in, events out: tells thinking, text and calls of tools apart while an answer is written.

Where the tokenizer has a tag as a single id, that id is the tag and text never is, so a tag cannot
be split, quoted or leak. Tags that are several ids are found in the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import mlx.core as mx

from ..chat.stop_strings import StopStrings, overlap
from .events import CallArguments, CallBegun, CallEnded, Event, Logprob, Said, Thought

CALL_BEGINS, CALL_ENDS = "<tool_call>", "</tool_call>"
LONGEST_HEAD = 4096  # characters in which a call names its tool
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class Tags:
    """The tags that a model marks its answers with.

    Attributes:
        thinks: what opens the thinking; "" where the tokenizer has no such tag.
        answers: what closes it.
        ids: the tags that are single ids.
    """

    thinks: str
    answers: str
    ids: dict[int, str]

    @classmethod
    def of(cls, tokenizer: Any) -> Tags:
        """The tags of a tokenizer."""
        thinks, answers = tokenizer.think_start or "", tokenizer.think_end or ""
        vocab = tokenizer.get_vocab()
        tags = (thinks, answers, CALL_BEGINS, CALL_ENDS)
        return cls(thinks, answers, {vocab[tag]: tag for tag in tags if tag in vocab})

    def open_in(self, tokenizer: Any, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within the thinking."""
        if not self.thinks:
            return False
        ids = list(prompt)
        return bool(tokenizer.rfind_think_start(ids) > tokenizer.rfind_think_end(ids))


class _Kind(Enum):
    """What the next text is part of."""

    start = auto()  # white space, before anything is known
    thinking = auto()
    text = auto()
    call = auto()


class Pieces:
    """One answer's ids, as they come.

    Attributes:
        done: whether the answer is over by what it says: a stop string, or the one call allowed.
        reasoning_tokens: ids of the thinking so far.
        stops: the stop strings; they are looked for in the answer's text alone.
        calls: how many calls have begun.
    """

    def __init__(
        self,
        tokenizer: Any,
        tags: Tags | None,
        *,
        ends: frozenset[int],
        thinks: bool = False,
        tools: bool = False,
        one_call: bool = False,
        stops: Sequence[str] = (),
        logprobs: Callable[[int, mx.array], Logprob] | None = None,
    ) -> None:
        """Set up for an answer that has not begun.

        Args:
            tokenizer: mlx-lm's `TokenizerWrapper`.
            tags: the tokenizer's; None to take all ids for text.
            ends: ids that end an answer, and have no text.
            thinks: whether the prompt ends within the thinking.
            tools: whether there are tools to call.
            one_call: whether the answer is over with its first call.
            stops: stop strings.
            logprobs: tells how likely an id was, given log-probabilities [vocab_size].
        """
        self._detokenizer = tokenizer.detokenizer
        self._tags, self._ends, self._tools, self._one_call = tags, ends, tools, one_call
        self._kind = _Kind.thinking if thinks and tags else _Kind.start
        self._held = ""  # may become a tag
        self._blank = ""  # white space that may be left out
        self._thought = False  # whether there was thinking
        self._said = False  # whether there was anything of the kind at hand
        self._call: _Call | None = None
        self._logprobs, self._waiting = logprobs, list[Logprob]()
        self._events: list[Event] = []
        self.stops = StopStrings(stops)
        self.reasoning_tokens = self.calls = 0
        self.done = False

    def feed(self, token: int, logprobs: mx.array) -> list[Event]:
        """Take the next id; give back what is known by now."""
        self._events = []
        if self._kind is _Kind.thinking:
            self.reasoning_tokens += 1
        tag = self._tags.ids.get(token) if self._tags else None
        if tag is not None and tag in self._relevant():
            self._flush()
            self._tag(tag)
            self.reasoning_tokens += self._tags is not None and tag == self._tags.thinks
        elif token not in self._ends:
            if self._logprobs and self._kind in (_Kind.start, _Kind.text):
                self._waiting.append(self._logprobs(token, logprobs))
            self._detokenizer.add_token(token)
            self._take(self._detokenizer.last_segment)
        return self._events

    def finish(self) -> list[Event]:
        """Give back what was held, at the end of the answer."""
        self._events = []
        if not self.done:
            self._flush()
            if self._call is not None:
                ended = self._call.end() or []
                self._events += ended
                self.calls += bool(ended)
                self._call = None
            if self._kind is _Kind.start:
                self._say(self._blank)
            elif self._kind is _Kind.text:
                self._say(self.stops.flush())
                self._say("", last=True)
        if self._waiting:
            self._events.append(Said("", self._logprobs_so_far()))
        return self._events

    def _relevant(self) -> tuple[str, ...]:
        """Tags that mean something at this place."""
        tags = self._tags
        if tags is None:
            return ()
        call = (CALL_BEGINS,) if self._tools else ()
        return {
            _Kind.start: (*call, tags.thinks) if tags.thinks and not self._thought else call,
            _Kind.thinking: (tags.answers,),
            _Kind.text: call,
            _Kind.call: (CALL_ENDS,),
        }[self._kind]

    def _flush(self) -> None:
        """Take all text that stands before this place."""
        self._detokenizer.finalize()
        self._take(self._detokenizer.last_segment)
        held, self._held = self._held, ""
        self._put(held)

    def _take(self, text: str) -> None:
        """Take text, which may hold tags that are no ids."""
        self._held += text
        while not self.done:
            ids = self._tags.ids.values() if self._tags else ()
            tags = [tag for tag in self._relevant() if tag not in ids]
            found = min((at, tag) for tag in [*tags, ""] if (at := self._find(tag)) >= 0)
            if not found[1]:
                cut = len(self._held) - max((overlap(self._held, t) for t in tags), default=0)
                text, self._held = self._held[:cut], self._held[cut:]
                self._put(text)
                return
            before, _, self._held = self._held.partition(found[1])
            self._put(before)
            if found[1] in self._relevant():
                self._tag(found[1])
            else:  # as it is no longer behind text
                self._put(found[1])

    def _find(self, tag: str) -> int:
        return self._held.find(tag) if tag else len(self._held)

    def _tag(self, tag: str) -> None:
        """Go on behind a tag."""
        if tag == CALL_BEGINS:
            self._say(self.stops.flush())
            self._blank, self._kind = "", _Kind.call
            self._call = _Call(self.calls)
        elif tag == CALL_ENDS:
            assert self._call is not None
            ended = self._call.end()
            if ended is None:
                self._kind = _Kind.text
                self._say(f"{CALL_BEGINS}{self._call.text}{CALL_ENDS}")
            else:
                self._events += ended
                self._kind, self._said = _Kind.text, False
                self.calls += 1
                self.done = self._one_call
            self._call = None
        elif self._kind is _Kind.thinking:
            self._blank, self._kind, self._thought, self._said = "", _Kind.text, True, False
        else:
            self._blank, self._kind, self._said = "", _Kind.thinking, False
            self._waiting.clear()

    def _put(self, text: str) -> None:
        """Take text without tags in it."""
        if not text or self.done:
            return
        if self._kind is _Kind.start:
            self._blank += text
            if text.isspace():
                return
            text, self._blank, self._kind = self._blank, "", _Kind.text
        if self._kind is _Kind.call and self._call is not None:
            self._events += self._call.feed(text)
        elif self._kind is _Kind.thinking:
            self._events += [Thought(part) for part in [self._trimmed(text)] if part]
        else:
            self._say(self.stops.feed(text))
            self.done = self.stops.found

    def _say(self, text: str, last: bool = False) -> None:
        """Hand on text of the answer."""
        # Blank lines between the thinking, the answer and its calls belong to none of them.
        if self._thought or self._tools:
            text = self._blank + text if last else self._trimmed(text)
        if text:
            self._events.append(Said(text, self._logprobs_so_far()))

    def _logprobs_so_far(self) -> tuple[Logprob, ...]:
        found, self._waiting = tuple(self._waiting), []
        return found

    def _trimmed(self, text: str) -> str:
        """Text without line breaks at its start, and with those at its end held back."""
        text = self._blank + text
        if not self._said and (self._thought or self.calls or self._kind is _Kind.thinking):
            text = text.lstrip("\n")
        kept = text.rstrip("\n")
        self._blank = text[len(kept) :]
        self._said = self._said or bool(kept)
        return kept


class _Call:
    """The text between a call's tags: {"name": ..., "arguments": {...}}.

    Attributes:
        text: all of it.
    """

    def __init__(self, number: int) -> None:
        self.text = ""
        self._number = number
        self._begun = self._whole = False
        self._depth, self._in_string, self._escaped = 0, False, False

    def feed(self, text: str) -> list[Event]:
        """Take more text; give back what is known by now."""
        self.text += text
        if self._begun:
            return self._arguments(text)
        match = _HEAD.match(self.text) if len(self.text) <= LONGEST_HEAD else None
        if match is None:
            return []
        try:
            name = str(json.loads(match[1]))
        except ValueError:  # such as a control character in the name
            return []
        self._begun = True
        return [CallBegun(self._number, name), *self._arguments(self.text[match.end() :])]

    def end(self) -> list[Event] | None:
        """What the end brings, be it the closing tag or a cut; None if this is no call."""
        if self._begun:
            return [CallEnded(self._number)]
        try:
            call = json.loads(self.text)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str):
            return None
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return [
            CallBegun(self._number, name),
            CallArguments(self._number, arguments),
            CallEnded(self._number),
        ]

    def _arguments(self, text: str) -> list[Event]:
        """The part of the text that belongs to the arguments."""
        end = 0
        for end, character in enumerate(text, start=1):
            if self._whole:
                end -= 1
                break
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._whole = self._depth == 0
        return [CallArguments(self._number, text[:end])] if end else []
