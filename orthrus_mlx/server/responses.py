"""OpenAI's /v1/responses, without memory: each request brings the whole conversation."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ..errors import RequestError
from . import sse
from .answers import Answers
from .ask import Ask, Service
from .events import Ended, Figures
from .fields import Fields, kind
from .items import SUMMARY, THINKING, Items, Json
from .openai import (
    BOOKKEEPING,
    FORMATS,
    MOST_TOP,
    check_choice,
    error_body,
    extras,
    identify,
    order_results,
    read_arguments,
    read_effort,
    read_format,
    read_prediction,
    read_sampling,
    read_template,
    read_text,
    read_tool,
)

ROLES = ("user", "assistant", "system", "developer")
CHOICES = ("auto", "none", "required")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
STATELESS = "this server keeps no conversations; send all earlier items in input."
CANNOT = {
    "previous_response_id": STATELESS,
    "conversation": STATELESS,
    "background": "answers are written while the client waits.",
    "prompt": "there are no stored prompts here.",
    "messages": "this API calls them input.",
}


@dataclass
class Wanted(Ask):
    """What a request of this API asks for.

    Attributes:
        names: (namespace, name) of each tool that has a namespace, by what the model calls it.
        given_tools: the tools as this API has them, without those that cannot be called here.
        metadata: what the response is to bear.
    """

    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    given_tools: list[Json] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)


def read(fields: Fields) -> Wanted:
    """What a body asks for.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    fields.refuse_any(CANNOT)
    ask = Wanted()
    ask.messages = order_results(_Conversation(fields, ask).messages)
    read_sampling(fields, ask)
    if ask.n != 1:
        raise fields.refuse("n", "cannot be honoured: a response is one answer.")
    read_prediction(fields, ask)
    reasoning = fields.object("reasoning")
    if reasoning is not None:
        read_effort(reasoning, "effort", ask)
        for name in ("summary", "generate_summary"):
            reasoning.one_of(name, ["auto", "concise", "detailed"])
    read_template(fields, ask)
    longest = fields.count("max_output_tokens", 1)
    if longest is not None:
        ask.options["max_tokens"] = longest
    top = fields.count("top_logprobs", 0, MOST_TOP)
    include = fields.items("include") or []
    if top or "message.output_text.logprobs" in include:
        ask.logprobs = top or 0
    for tool in fields.objects("tools"):
        _read_tool(fields, tool, ask)
    _read_choice(fields, ask)
    _read_format(fields, ask)
    metadata = fields.object("metadata")
    if metadata is not None:
        ask.metadata = {name: metadata.text(name) or "" for name in metadata.raw}
    fields.one_of("truncation", ["auto", "disabled"])
    fields.skip(*BOOKKEEPING, "return_token_ids", "max_tool_calls")
    return ask


class _Conversation:
    """Items of a request, as the messages that chat templates take.

    The reasoning, text and calls of one turn are several items and one message.

    Attributes:
        messages: what came of the items.
    """

    def __init__(self, fields: Fields, ask: Wanted) -> None:
        """Read the items of a body; tools among them go to `ask`."""
        self._fields, self._ask = fields, ask
        self.messages: list[Json] = []
        # Texts that are lists of parts until all are there: (message, field, what parts them).
        self._parted: list[tuple[Json, str, str]] = []
        instructions = fields.text("instructions")
        if instructions:
            self._add("system", instructions)
        given = fields.needed("input", fields.get("input"))
        if not isinstance(given, str | list):
            raise fields.refuse("input", f"is {kind(given)}; expected text, or an array of items.")
        if not given:
            raise fields.refuse("input", "is empty.")
        if isinstance(given, str):
            self._add("user", given)
        else:
            for item in fields.objects("input"):
                self._take(item)
        if not self.messages:
            raise fields.refuse("input", "has no message.")
        for message, name, by in self._parted:
            message[name] = by.join(message[name])

    def _take(self, item: Fields) -> None:
        what = item.text("type") or "message"
        if what == "message":
            role = item.needed("role", item.one_of("role", ROLES))
            text = item.needed("content", read_text(item, "content"))
            if role == "assistant":
                self._turn("content", "tool_calls")["content"] = text
            else:
                # Qwen3's template knows no developer, and would leave the message out.
                self._add("system" if role == "developer" else role, text)
        elif what == "reasoning":
            thought = _thought(item)
            if thought:
                turn = self._turn("content", "tool_calls")
                self._part(turn, "reasoning_content", "").append(thought)
        elif what == "function_call":
            name = item.needed("name", item.text("name"))
            arguments = read_arguments(item.text("arguments") or "")
            function = {"name": _full_name(item, name), "arguments": arguments}
            calls = self._turn().setdefault("tool_calls", [])
            id = item.text("call_id") or ""
            calls.append({"type": "function", "id": id, "function": function})
        elif what == "function_call_output":
            self._add("tool", item.needed("output", read_text(item, "output")))
            self.messages[-1]["tool_call_id"] = item.text("call_id") or ""
        elif what == "additional_tools":
            for tool in item.objects("tools"):
                _read_tool(self._fields, tool, self._ask)
        elif what == "item_reference":
            raise item.refuse("type", f"is 'item_reference': {STATELESS}")
        else:
            raise item.refuse(
                "type",
                f"is {what!r:.40}; this server takes messages, reasoning, function calls and "
                "their outputs.",
            )

    def _add(self, role: str, text: str) -> None:
        """Add a message; instructions behind each other at the start become one.

        Templates know one system message.
        """
        if role == "system" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self._part(self.messages[0], "content", "\n\n").append(text)
        else:
            self.messages.append({"role": role, "content": text})

    def _part(self, message: Json, name: str, by: str) -> list[str]:
        """The parts of a text so far, which is put together in the end."""
        if not isinstance(message.get(name), list):
            message[name] = [message[name]] if name in message else []
            self._parted.append((message, name, by))
        parts: list[str] = message[name]
        return parts

    def _turn(self, *without: str) -> Json:
        """The assistant's message under way; a new one if it has any of these already."""
        last = self.messages[-1] if self.messages else {"role": ""}
        if last["role"] != "assistant" or any(last.get(field) for field in without):
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        return last


def _thought(item: Fields) -> str:
    """The thinking of a reasoning item: its text, else its summary."""
    for where in ("content", "summary"):
        parts = [part.text("text") or "" for part in item.objects(where)]
        if any(parts):
            return "\n\n".join(parts)
    return ""


def _full_name(item: Fields, name: str) -> str:
    """What the model calls a function, which may have a namespace."""
    namespace = item.text("namespace")
    return f"{namespace}.{name}" if namespace else name


def _read_tool(fields: Fields, given: Fields, ask: Wanted) -> None:
    what = given.needed("type", given.text("type"))
    if what == "function":
        tool = read_tool(given)
        ask.given_tools.append({"type": "function", **tool["function"]})
        ask.tools.append(tool)
    elif what == "namespace":
        namespace = given.needed("name", given.text("name"))
        described = {"name": namespace, "description": given.text("description") or ""}
        functions: list[Json] = []
        ask.given_tools.append({"type": "namespace", **described, "tools": functions})
        for inner in given.objects("tools"):
            if inner.text("type") != "function":
                fields.ignore("tools.namespace.tools")
                continue
            tool = read_tool(inner)
            name = tool["function"]["name"]
            functions.append({"type": "function", **tool["function"]})
            tool["function"]["name"] = f"{namespace}.{name}"
            ask.names[f"{namespace}.{name}"] = (namespace, name)
            ask.tools.append(tool)
    else:  # what the client's maker would run: this server has no such thing
        fields.ignore(f"tools.{what}")


def _read_choice(fields: Fields, ask: Wanted) -> None:
    given = fields.get("tool_choice")
    if isinstance(given, dict):
        choice = fields.object("tool_choice")
        assert choice is not None
        if choice.one_of("type", ["function", "allowed_tools"]) == "allowed_tools":
            _allow(choice, ask)
        else:
            name = choice.needed("name", choice.text("name"))
            ask.tool_choice = _full_name(choice, name)
            if ask.tool_choice in CHOICES:
                raise fields.refuse("tool_choice", f"names {name}, which is no tool.")
    elif given is not None:
        ask.tool_choice = str(fields.one_of("tool_choice", CHOICES))
    parallel = fields.flag("parallel_tool_calls")
    ask.parallel = True if parallel is None else parallel
    check_choice(fields, ask)


def _allow(choice: Fields, ask: Wanted) -> None:
    """Leave those tools that are allowed."""
    known = {tool["function"]["name"] for tool in ask.tools}
    allowed = set()
    for tool in choice.objects("tools"):
        if tool.needed("type", tool.text("type")) == "function":
            name = _full_name(tool, tool.needed("name", tool.text("name")))
            if name not in known:
                raise tool.refuse("name", f"is {name!r:.80}, which is none of the tools.")
            allowed.add(name)
    ask.tools = [tool for tool in ask.tools if tool["function"]["name"] in allowed]
    ask.tool_choice = choice.one_of("mode", ["auto", "required"]) or "auto"


def _read_format(fields: Fields, ask: Wanted) -> None:
    text = fields.object("text")
    form = text.object("format") if text is not None else None
    if form is not None:
        what = form.needed("type", form.one_of("type", FORMATS))
        form.text("name")
        form.text("description")
        form.flag("strict")
        ask.constraint = read_format(what, lambda: form.needed("schema", form.object("schema")).raw)


class Reply:
    """The response to one request, streamed or whole."""

    def __init__(self, service: Service, fields: Fields, ask: Ask) -> None:
        assert isinstance(ask, Wanted)
        raw = fields.raw
        reasoning = raw.get("reasoning") or {}
        # A summary is the thinking itself: nothing here could write a shorter one.
        summarize = reasoning.get("summary") or reasoning.get("generate_summary")
        self._items = Items(SUMMARY if summarize else THINKING, ask.names)
        self._number = 0
        self._with_ids = bool(fields.flag("return_token_ids"))
        options = service.options | ask.options
        effort = reasoning.get("effort")
        form = (raw.get("text") or {}).get("format") or {"type": "text"}
        form = {"name": "answer", **form} if form.get("type") == "json_schema" else form
        self._common: Json = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.name,
            "instructions": raw.get("instructions"),
            "max_output_tokens": ask.options.get("max_tokens"),
            "metadata": ask.metadata,
            "parallel_tool_calls": ask.parallel,
            "previous_response_id": None,
            "reasoning": {"effort": effort if effort in EFFORTS else None, "summary": summarize},
            "store": False,
            "temperature": options.get("temperature", 1.0),
            "text": {"format": form},
            "tool_choice": raw.get("tool_choice") or "auto",
            "tools": ask.given_tools,
            "top_logprobs": ask.logprobs or 0,
            "top_p": options.get("top_p", 1.0),
            "truncation": "disabled",
            "system_fingerprint": identify(service, ask),
        }

    async def whole(self, answers: Answers) -> Json:
        """The response as one object."""
        async for _, event in answers:
            if event is not None:
                for _ in self._items.take(event):
                    pass
                if isinstance(event, Ended):
                    ended = event
        return self._over(ended)

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""
        for stage in ("response.created", "response.in_progress"):
            yield self._event({"type": stage, "response": self._response("in_progress")})
        async for _, event in answers:
            if event is None:
                yield sse.comment(answers.reading)
                continue
            for told in self._items.take(event):
                yield self._event(told)
            if isinstance(event, Ended):
                response = self._over(event)
                yield self._event({"type": f"response.{response['status']}", "response": response})

    def failed(self, error: RequestError, kind: str) -> str:
        """The events that end a stream before its time."""
        body = error_body(error, kind)["error"]
        # Some clients read the fields, some the object.
        told = {"message": body["message"], "param": body["param"], "code": body["code"]}
        codes = {429: "rate_limit_exceeded"}
        why = "server_error" if error.status >= 500 else "invalid_prompt"
        failure = {"code": codes.get(error.status, why), "message": body["message"]}
        response = {**self._response("failed"), "error": failure}
        return "".join(
            [
                self._event({"type": "error", **told, "error": body}),
                self._event({"type": "response.failed", "response": response}),
            ]
        )

    def _event(self, body: Json) -> str:
        number, self._number = self._number, self._number + 1
        return sse.named({**body, "sequence_number": number})

    def _response(self, status: str) -> Json:
        return {
            **self._common,
            "status": status,
            "output": self._items.output,
            "error": None,
            "incomplete_details": None,
            "usage": None,
        }

    def _over(self, ended: Ended) -> Json:
        """The response, now that it is over."""
        figures, cut = ended.figures, ended.reason == "length"
        ids = {"token_ids": figures.ids} if self._with_ids else {}
        return {
            **self._response("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": int(time.time()),
            "usage": usage(figures),
            "orthrus": extras([figures]),
            **ids,
        }


def usage(figures: Figures) -> Json:
    """What an answer came to."""
    return {
        "input_tokens": figures.prompt_tokens,
        "input_tokens_details": {"cached_tokens": figures.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": figures.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": figures.reasoning_tokens},
        "total_tokens": figures.prompt_tokens + figures.completion_tokens,
    }
