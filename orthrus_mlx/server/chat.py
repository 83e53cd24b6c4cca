"""OpenAI's /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from ..errors import RequestError
from . import sse
from .answers import Answers
from .ask import Ask, Service
from .events import CallArguments, CallBegun, Ended, Event, Figures, Logprob, Said, Thought
from .fields import Fields
from .openai import (
    BOOKKEEPING,
    MOST_TOP,
    call_id,
    check_choice,
    error_body,
    extras,
    identify,
    order_results,
    read_arguments,
    read_prediction,
    read_response_format,
    read_sampling,
    read_template,
    read_text,
    read_tool,
    token_logprobs,
    usage,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
CANNOT = {
    "functions": "it was replaced by tools.",
    "function_call": "it was replaced by tool_choice.",
    "audio": "this model writes text alone.",
    "web_search_options": "this server does not search.",
}


def read(fields: Fields) -> Ask:
    """What a body asks for.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    messages = [_message(message) for message in fields.objects("messages")]
    ask = Ask(messages=order_results(messages))
    if not ask.messages:
        raise fields.refuse("messages", "is empty; send at least one message.")
    read_sampling(fields, ask)
    read_prediction(fields, ask)
    read_template(fields, ask)
    longest = fields.count("max_completion_tokens", 1)
    older = fields.count("max_tokens", 1)
    if longest is not None or older is not None:
        ask.options["max_tokens"] = longest if longest is not None else older
    top = fields.count("top_logprobs", 0, MOST_TOP)
    if fields.flag("logprobs"):
        ask.logprobs = top or 0
    elif top:
        raise fields.refuse("top_logprobs", "needs logprobs to be true.")
    _read_tools(fields, ask)
    read_response_format(fields, ask)
    modalities = fields.items("modalities")
    if modalities not in (None, ["text"]):
        raise fields.refuse("modalities", "can only be text.")
    fields.refuse_any(CANNOT)
    fields.skip(*BOOKKEEPING, "return_token_ids", "reasoning", "top_logprobs")
    return ask


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.needed("role", fields.one_of("role", ROLES))
    # Qwen3's template knows no developer, and would leave the message out.
    role = "system" if role == "developer" else role
    message: dict[str, Any] = {"role": role, "content": read_text(fields, "content") or ""}
    if role == "assistant":
        thinking = fields.text("reasoning_content") or fields.text("reasoning")
        if thinking:
            message["reasoning_content"] = thinking
        calls = []
        for call in fields.objects("tool_calls"):
            given = call.needed("function", call.object("function"))
            name = given.needed("name", given.text("name"))
            arguments = given.get("arguments")
            if not isinstance(arguments, dict):
                arguments = read_arguments(given.text("arguments") or "")
            function = {"name": name, "arguments": arguments}
            calls.append({"type": "function", "id": call.text("id") or "", "function": function})
        if calls:
            message["tool_calls"] = calls
        refusal = fields.text("refusal")
        message["content"] = message["content"] or refusal or ""
        fields.skip("audio", "function_call", "annotations")
    elif fields.get("content") is None:
        raise fields.refuse("content", "is missing.")
    if role == "tool":
        message["tool_call_id"] = fields.text("tool_call_id") or ""
    fields.skip("name")
    return message


def _read_tools(fields: Fields, ask: Ask) -> None:
    for given in fields.objects("tools"):
        kind = given.text("type")
        if kind not in (None, "function"):
            raise given.refuse("type", f"is {kind!r:.40}; only functions can be called here.")
        ask.tools.append(read_tool(given.needed("function", given.object("function"))))
    choice = fields.get("tool_choice")
    if isinstance(choice, dict):
        named = fields.object("tool_choice")
        assert named is not None
        named.one_of("type", ["function"])
        function = named.needed("function", named.object("function"))
        ask.tool_choice = function.needed("name", function.text("name"))
        if ask.tool_choice in ("auto", "none", "required"):
            raise fields.refuse("tool_choice", f"names {ask.tool_choice}, which is no tool.")
    elif choice is not None:
        ask.tool_choice = str(fields.one_of("tool_choice", ["auto", "none", "required"]))
    parallel = fields.flag("parallel_tool_calls")
    ask.parallel = True if parallel is None else parallel
    check_choice(fields, ask)


class Reply:
    """The response to one request, streamed or whole."""

    def __init__(self, service: Service, fields: Fields, ask: Ask) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._with_ids = bool(fields.flag("return_token_ids"))
        stream = fields.object("stream_options")
        self._with_usage = bool(stream and stream.flag("include_usage"))
        self._logprobs = ask.logprobs is not None
        self._common = {
            "id": self.id,
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": identify(service, ask),
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The response as one object."""
        choices = [_Choice(n, self._logprobs) for n in range(len(answers.jobs))]
        async for n, event in answers:
            if event is not None:
                choices[n].take(event)
        figures = [choice.figures for choice in choices]
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice.whole(self._with_ids) for choice in choices],
            "usage": usage(figures, answers.ask.n),
            "orthrus": extras(figures),
        }

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""
        figures = {}
        calls: dict[tuple[int, int], str] = {}
        for n in range(len(answers.jobs)):
            yield self._chunk(n, {"role": "assistant", "content": ""})
        async for n, event in answers:
            if event is None:
                yield sse.comment(answers.reading)
            elif isinstance(event, Said):
                logprobs = written(event.logprobs) if self._logprobs else None
                yield self._chunk(n, {"content": event.text}, logprobs=logprobs)
            elif isinstance(event, Thought):
                yield self._chunk(n, {"reasoning_content": event.text, "reasoning": event.text})
            elif isinstance(event, CallBegun):
                calls[n, event.call] = call_id()
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call, "id": calls[n, event.call], "type": "function"}
                yield self._chunk(n, {"tool_calls": [{**call, "function": function}]})
            elif isinstance(event, CallArguments):
                call = {"index": event.call, "function": {"arguments": event.text}}
                yield self._chunk(n, {"tool_calls": [call]})
            elif isinstance(event, Ended):
                figures[n] = event.figures
                ids = {"token_ids": event.figures.ids} if self._with_ids else {}
                # Of what made the answers the last chunk with a choice tells.
                last = len(figures) == len(answers.jobs)
                more = {"orthrus": extras([figures[n] for n in sorted(figures)])} if last else {}
                yield self._chunk(n, {}, event.reason, ids, more)
        if self._with_usage:
            totals = usage([figures[n] for n in sorted(figures)], answers.ask.n)
            body = {"object": "chat.completion.chunk", "choices": [], "usage": totals}
            yield sse.data({**self._common, **body})
        yield sse.DONE

    def failed(self, error: RequestError, kind: str) -> str:
        """The event that ends a stream before its time."""
        return sse.data(error_body(error, kind))

    def _chunk(
        self,
        n: int,
        delta: dict[str, Any],
        reason: str | None = None,
        ids: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
        logprobs: Any = None,
    ) -> str:
        choice = {"index": n, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        body = {"object": "chat.completion.chunk", "choices": [{**choice, **(ids or {})}]}
        totals = {"usage": None} if self._with_usage else {}
        return sse.data({**self._common, **body, **totals, **(more or {})})


class _Choice:
    """One answer, collected."""

    def __init__(self, number: int, with_logprobs: bool) -> None:
        self._number = number
        self._text, self._thought = "", ""
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Logprob] | None = [] if with_logprobs else None
        self._reason = ""
        self.figures = Figures()

    def take(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Said):
            self._text += event.text
            if self._logprobs is not None:
                self._logprobs += event.logprobs
        elif isinstance(event, Thought):
            self._thought += event.text
        elif isinstance(event, CallBegun):
            self._calls[event.call] = {"name": event.name, "arguments": ""}
        elif isinstance(event, CallArguments):
            self._calls[event.call]["arguments"] += event.text
        elif isinstance(event, Ended):
            self._reason, self.figures = event.reason, event.figures

    def whole(self, with_ids: bool) -> dict[str, Any]:
        """The answer as a choice of a response."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text, "refusal": None}
        if self._thought:
            message |= {"reasoning_content": self._thought, "reasoning": self._thought}
        if self._calls:
            message["content"] = self._text or None
            message["tool_calls"] = [
                {"id": call_id(), "type": "function", "function": function}
                for function in self._calls.values()
            ]
        ids = {"token_ids": self.figures.ids} if with_ids else {}
        logprobs = None if self._logprobs is None else written(tuple(self._logprobs))
        choice = {"index": self._number, "message": message, "finish_reason": self._reason}
        return {**choice, "logprobs": logprobs, **ids}


def written(logprobs: tuple[Logprob, ...]) -> dict[str, Any]:
    """Log-probabilities as the chat API has them."""
    return {"content": token_logprobs(logprobs), "refusal": None}
