"""Responses of Anthropic's /v1/messages, and its errors."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from ..errors import ContextLengthError, RequestError
from . import sse
from .answers import Answers
from .ask import Ask, Service
from .events import CallArguments, CallBegun, CallEnded, Ended, Event, Figures, Said, Thought
from .fields import Fields
from .openai import extras, identify

REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
CUT = ("max_tokens", "model_context_window_exceeded")
# Thinking needs no signature to be sent back here. Some clients drop what has an empty one.
SIGNATURE = "unsigned"
INVALID = "INVALID_JSON"


class Reply:
    """The response to one request, streamed or whole: the same events, sent or put together."""

    def __init__(self, service: Service, fields: Fields, ask: Ask) -> None:
        self._with_ids = bool(fields.flag("return_token_ids"))
        self._most = ask.options["max_tokens"]
        thinking = fields.object("thinking")
        self._shows_thinking = thinking is None or thinking.text("display") != "omitted"
        self._fingerprint = identify(service, ask)
        self._model = service.name
        self._index = -1  # of the last block
        self._open = ""  # the type of the block that is not over yet

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The response as one object."""
        message: dict[str, Any] = {}
        content: list[dict[str, Any]] = []
        async for event in self._events(answers):
            kind = event["type"]
            if kind == "message_start":
                message = {**event["message"], "content": content}
            elif kind == "content_block_start":
                block = event["content_block"]
                content.append({**block, "input": ""} if "input" in block else dict(block))
            elif kind == "content_block_delta":
                names = {"partial_json": "input"}
                for name, text in event["delta"].items():
                    if name != "type":
                        content[-1][names.get(name, name)] += text
            elif kind == "message_delta":
                message |= {**event["delta"], "usage": event["usage"], "orthrus": event["orthrus"]}
        for n, block in enumerate(content, start=1):
            if "input" in block:
                cut = n == len(content) and message["stop_reason"] in CUT
                block["input"] = read_input(block["input"], cut)
        return message

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""
        async for event in self._events(answers):
            yield sse.named(event)

    def failed(self, error: RequestError, kind: str) -> str:
        """The event that ends a stream before its time."""
        return sse.named(error_body(error, kind))

    async def _events(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # How much of the prompt was cached is not known yet.
            "usage": usage(Figures(prompt_tokens=len(answers.jobs[0].prompt))),
        }
        yield {"type": "message_start", "message": message}
        async for _, event in answers:
            if event is None:
                yield {"type": "ping"}
            elif isinstance(event, Ended):
                for end in self._close():
                    yield end
                yield self._delta(event)
                yield {"type": "message_stop"}
            else:
                for part in self._parts(event):
                    yield part

    def _parts(self, event: Event) -> Iterator[dict[str, Any]]:
        """What an event of the answer is in the stream."""
        if isinstance(event, Thought):
            yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
            if self._shows_thinking:
                yield self._more({"type": "thinking_delta", "thinking": event.text})
        elif isinstance(event, Said) and event.text:
            yield from self._begin({"type": "text", "text": ""})
            yield self._more({"type": "text_delta", "text": event.text})
        elif isinstance(event, CallBegun):
            yield from self._close()
            call = {"id": f"toolu_{secrets.token_hex(12)}", "name": event.name, "input": {}}
            yield from self._begin({"type": "tool_use", **call})
            yield self._more({"type": "input_json_delta", "partial_json": ""})
        elif isinstance(event, CallArguments):
            yield self._more({"type": "input_json_delta", "partial_json": event.text})
        elif isinstance(event, CallEnded):
            yield from self._close()

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begin a block, unless one of its type is open."""
        if self._open == block["type"]:
            return
        yield from self._close()
        self._index += 1
        self._open = block["type"]
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        """End the block that is open."""
        if self._open == "thinking":
            yield self._more({"type": "signature_delta", "signature": SIGNATURE})
        if self._open:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = ""

    def _more(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _delta(self, ended: Ended) -> dict[str, Any]:
        """How the answer ended, and what it came to."""
        figures = ended.figures
        reason = "stop_sequence" if ended.stop else REASONS[ended.reason]
        if reason == "max_tokens" and figures.completion_tokens < self._most:
            reason = "model_context_window_exceeded"
        ids = {"token_ids": figures.ids} if self._with_ids else {}
        return {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": ended.stop or None},
            "usage": usage(figures),
            "orthrus": {**extras([figures]), "system_fingerprint": self._fingerprint, **ids},
        }


def usage(figures: Figures) -> dict[str, Any]:
    """Anthropic's usage: a prompt is what was cached of it and what was not."""
    return {
        "input_tokens": figures.prompt_tokens - figures.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": figures.cached_tokens,
        "output_tokens": figures.completion_tokens,
        "output_tokens_details": {"thinking_tokens": figures.reasoning_tokens},
        "service_tier": "standard",
    }


def read_input(text: str, cut: bool) -> dict[str, Any]:
    """The arguments of a call as an object.

    Args:
        text: their JSON.
        cut: whether the answer ended within: what is whole of them is taken.

    Returns:
        the object; {"INVALID_JSON": text} where the model wrote no object.
    """
    closes, last, in_string, escaped = list[str](), 0, False, False
    for at, character in enumerate(text if cut else ""):
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "{[":
            closes.append("}" if character == "{" else "]")
            last = at + 1
        elif character in "}]":
            closes = closes[:-1]
            last = at + 1
        elif character == ",":
            last = at
    ending = "".join(reversed(closes))
    # A number at the cut may have had more digits.
    whole = [] if in_string or text[-1:].isdigit() else [text + ending]
    for attempt in [text or "{}", *whole, text[:last] + ending] if cut else [text or "{}"]:
        try:
            found = json.loads(attempt)
            json.dumps(found, allow_nan=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {INVALID: text}


def error_body(error: RequestError, kind: str) -> Mapping[str, Any]:
    """An error as Anthropic's clients read it."""
    message = str(error)
    cause = error.args[0] if error.args else None
    if isinstance(cause, ContextLengthError) and cause.limit:
        # Claude Code tells by these words that it has to shorten the conversation.
        message = f"prompt is too long: {cause.tokens} tokens > {cause.limit} maximum"
    details = {"details": {"error_code": error.code}} if error.code else {}
    return {"type": "error", "error": {"type": kind, "message": message, **details}}
