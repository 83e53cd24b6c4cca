"""The output of OpenAI's Responses API: items, put together and told of while they are written."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from .events import CallArguments, CallBegun, CallEnded, Ended, Event, Logprob, Said, Thought
from .openai import call_id, token_logprobs

Json = dict[str, Any]


@dataclass(frozen=True)
class _Form:
    """What an item that is text looks like, and what the events about it are called.

    Attributes:
        prefix: of its id.
        item: its own fields.
        within: the field that holds its text's part.
        part: the part, without text.
        part_events: the events about the part.
        text_events: the events about the text.
        index: how the events count parts.
    """

    prefix: str
    item: Mapping[str, Any]
    within: str
    part: Mapping[str, Any]
    part_events: str
    text_events: str
    index: str


MESSAGE = _Form(
    "msg",
    {"type": "message", "role": "assistant", "content": []},
    "content",
    {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    "response.content_part",
    "response.output_text",
    "content_index",
)
THINKING = _Form(
    "rs",
    {"type": "reasoning", "summary": [], "content": []},
    "content",
    {"type": "reasoning_text", "text": ""},
    "response.content_part",
    "response.reasoning_text",
    "content_index",
)
SUMMARY = _Form(
    "rs",
    {"type": "reasoning", "summary": []},
    "summary",
    {"type": "summary_text", "text": ""},
    "response.reasoning_summary_part",
    "response.reasoning_summary_text",
    "summary_index",
)


class Items:
    """The items of one response.

    Attributes:
        output: the items so far; all but the last are over.
    """

    def __init__(
        self, thinking: _Form = THINKING, names: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        """Set up for an answer that has not begun.

        Args:
            thinking: how thinking is told.
            names: (namespace, name) of each tool that has a namespace, by what the model calls it.
        """
        self._thinking, self._names = thinking, names or {}
        self._open: Json | None = None
        self._form: _Form | None = None  # of the open item, if it is text
        self.output: list[Json] = []

    def take(self, event: Event) -> Iterator[Json]:
        """Take the next event; give back what a client is to be told, without its number."""
        if isinstance(event, Thought):
            yield from self._text(self._thinking, event.text)
        elif isinstance(event, Said):
            # Log-probabilities alone, of what was left out, open no message.
            if event.text or self._form is MESSAGE:
                yield from self._text(MESSAGE, event.text, event.logprobs)
        elif isinstance(event, CallBegun):
            yield from self._close()
            namespace, name = self._names.get(event.name, ("", event.name))
            call: Json = {"type": "function_call", "call_id": call_id(), "name": name}
            call |= {"namespace": namespace} if namespace else {}
            yield self._begin("fc", {**call, "arguments": ""})
        elif isinstance(event, CallArguments):
            assert self._open is not None
            self._open["arguments"] += event.text
            yield self._about("response.function_call_arguments.delta", delta=event.text)
        elif isinstance(event, CallEnded):
            yield from self._close()
        elif isinstance(event, Ended):
            yield from self._close(cut=event.reason == "length")
            answered = any(item["type"] != "reasoning" for item in self.output)
            if not answered and event.reason != "length":  # an answer without words is one too
                yield from self._text(MESSAGE, "")
                yield from self._close()

    def _text(self, form: _Form, text: str, logprobs: Sequence[Logprob] = ()) -> Iterator[Json]:
        """More text of an item, which may begin with it."""
        if self._form is not form:
            yield from self._close()
            yield self._begin(form.prefix, form.item)
            assert self._open is not None
            self._form = form
            self._open[form.within].append(deepcopy(dict(form.part)))
            yield self._about_part("added")
        part = self._part
        part["text"] += text
        told: Json = {}
        if form is MESSAGE:
            written = _written(logprobs)
            part["logprobs"] += written
            told["logprobs"] = written
        if text:
            yield self._about(f"{form.text_events}.delta", **{form.index: 0}, delta=text, **told)

    def _begin(self, prefix: str, fields: Mapping[str, Any]) -> Json:
        item = {"id": f"{prefix}_{secrets.token_hex(16)}", **deepcopy(dict(fields))}
        item["status"] = "in_progress"
        self._open, self._form = item, None
        self.output.append(item)
        return self._about_item("added")

    def _close(self, cut: bool = False) -> Iterator[Json]:
        """End the open item; `cut` if more would have come."""
        item, form = self._open, self._form
        if item is None:
            return
        if form is not None:
            told = {"logprobs": self._part["logprobs"]} if form is MESSAGE else {}
            done = f"{form.text_events}.done"
            yield self._about(done, **{form.index: 0}, text=self._part["text"], **told)
            yield self._about_part("done")
        else:
            done = "response.function_call_arguments.done"
            yield self._about(done, name=item["name"], arguments=item["arguments"])
            cut = not _is_json(item["arguments"])
        item["status"] = "incomplete" if cut else "completed"
        yield self._about_item("done")
        self._open = self._form = None

    @property
    def _part(self) -> Json:
        assert self._open is not None and self._form is not None
        part: Json = self._open[self._form.within][0]
        return part

    def _about(self, kind: str, **fields: Any) -> Json:
        assert self._open is not None
        index = len(self.output) - 1
        return {"type": kind, "item_id": self._open["id"], "output_index": index, **fields}

    def _about_part(self, what: str) -> Json:
        assert self._form is not None
        index = {self._form.index: 0}
        return self._about(f"{self._form.part_events}.{what}", **index, part=deepcopy(self._part))

    def _about_item(self, what: str) -> Json:
        index = len(self.output) - 1
        kind = f"response.output_item.{what}"
        return {"type": kind, "output_index": index, "item": deepcopy(self._open)}


def _written(logprobs: Sequence[Logprob]) -> list[Json]:
    """Log-probabilities as this API has them: every token has bytes."""
    found = token_logprobs(logprobs)
    for token in found:
        for one in (token, *token["top_logprobs"]):
            if one["bytes"] is None:
                one["bytes"] = list(one["token"].encode())
    return found


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
