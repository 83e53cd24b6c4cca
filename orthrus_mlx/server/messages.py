"""Requests to Anthropic's /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from ..decoding.constraints import JsonSchema
from ..errors import RequestError
from .ask import Ask
from .fields import Fields
from .openai import (
    check_choice,
    order_results,
    read_effort,
    read_prediction,
    read_sampling,
    read_stops,
    read_template,
    read_tool,
)

ROLES = ("user", "assistant", "system")
# Fields that say who asks, or how to bill, cache and shorten it: they change no answer here.
BOOKKEEPING = (
    "model", "stream", "metadata", "service_tier", "speed", "inference_geo", "cache_control",
    "context_management", "diagnostics", "user_profile_id", "workspace_id", "billing_policy",
    "fallbacks", "fallback_credit_token", "betas", "anthropic_version", "anthropic_beta",
)  # fmt: skip
CANNOT = {
    "mcp_servers": "this server calls no tools; connect the MCP servers to the client.",
    "container": "this server runs no code.",
    "compaction": "the client has to summarize.",
}
# Tools that Anthropic's servers run. Nobody can do that here, so the model is not told of them.
SERVER_TOOLS = ("web_search", "web_fetch", "code_execution", "tool_search", "mcp_toolset")
# A line that Claude Code puts first, another one each time: no two prompts would start alike.
BILLING = "x-anthropic-billing-header"


def read(fields: Fields) -> Ask:
    """What a body asks for.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    ask = read_prompt(fields)
    ask.options["max_tokens"] = fields.needed("max_tokens", fields.count("max_tokens"))
    read_sampling(fields, ask)
    if ask.n > 1:
        raise fields.refuse("n", "can only be 1: a message is one answer.")
    ask.stops += read_stops(fields, "stop_sequences")
    read_prediction(fields, ask)
    return ask


def read_prompt(fields: Fields) -> Ask:
    """What a body has in it that goes into the prompt.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    messages = _merged([m for message in fields.objects("messages") for m in _messages(message)])
    messages = order_results(messages)
    if not messages:
        raise fields.refuse("messages", "is empty; send at least one message.")
    system = [] if fields.get("system") is None else _blocks(fields, "system")
    texts = [text for text in map(_text, system) if not text.startswith(BILLING)]
    if texts:
        messages.insert(0, {"role": "system", "content": "\n".join(texts)})
    ask = Ask(messages=messages, unfinished=messages[-1]["role"] == "assistant")
    if ask.unfinished and "tool_calls" in messages[-1]:
        raise fields.refuse("messages", "ends with a call of a tool; send its result too.")
    if ask.unfinished and not messages[-1]["content"]:  # nothing to go on with
        ask.messages, ask.unfinished = messages[:-1], False
    _read_tools(fields, ask)
    read_template(fields, ask)
    thinking = fields.object("thinking")
    kinds = ("disabled", "enabled", "adaptive", "between_tools")
    kind = thinking.needed("type", thinking.one_of("type", kinds)) if thinking else "disabled"
    # Clients that did not ask for thinking read content[0] as the answer.
    ask.template.setdefault("enable_thinking", kind != "disabled")
    output = fields.object("output_config")
    if output is not None:
        read_effort(output, "effort", ask)
    for holder, name in ((output, "format"), (fields, "output_format")):
        form = holder.object(name) if holder is not None else None
        if form is not None and holder is not None:
            form.needed("type", form.one_of("type", ["json_schema"]))
            ask.constraint = JsonSchema(form.needed("schema", form.object("schema")).raw)
            if ask.unfinished:
                raise holder.refuse(name, "cannot be combined with the start of an answer.")
    if fields.get("thread") is not None:  # Anthropic's client goes on without one by this code
        why = "thread cannot be honoured: conversations are not kept here; send all messages."
        raise RequestError(why, "thread", code="thread_unsupported_request")
    fields.refuse_any(CANNOT)
    fields.skip(*BOOKKEEPING, "return_token_ids")
    return ask


def _blocks(fields: Fields, name: str) -> list[Fields]:
    """Content: blocks, or a string, which is a block of text."""
    given = fields.needed(name, fields.get(name))
    if isinstance(given, str):
        return [Fields({"type": "text", "text": given}, fields.name(name))]
    return fields.objects(name)


def _text(block: Fields) -> str:
    """The text of a block that is to be read."""
    kind = block.needed("type", block.text("type"))
    if kind == "document":
        source = block.needed("source", block.object("source"))
        source.needed("type", source.one_of("type", ["text"]))
        return str(source.needed("data", source.text("data")))
    name = {"text": "text", "tool_reference": "tool_name"}.get(kind)
    if name is None:
        raise block.refuse("type", f"is {kind!r:.40}; this model reads text alone.")
    return str(block.needed(name, block.text(name)))


def _messages(fields: Fields) -> Iterator[dict[str, Any]]:
    """A message as chat templates take it: each result of a tool is one of its own."""
    role = fields.needed("role", fields.one_of("role", ROLES))
    thoughts, texts, calls = list[str](), list[str](), list[Any]()
    for block in _blocks(fields, "content"):
        kind = block.text("type")
        if role == "assistant" and kind == "thinking":
            thoughts.append(block.text("thinking") or "")
        elif role == "assistant" and kind == "redacted_thinking":
            pass  # only who wrote it can read it
        elif role == "assistant" and kind == "tool_use":
            name = block.needed("name", block.text("name"))
            arguments = block.object("input")
            function = {"name": name, "arguments": arguments.raw if arguments else {}}
            calls.append({"type": "function", "id": block.text("id"), "function": function})
        elif role == "user" and kind == "tool_result":
            # Results stand behind the calls at once, as the API wants them; then all text.
            yield _result(block)
        else:
            texts.append(_text(block))
    message: dict[str, Any] = {"role": role, "content": "\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    if texts or role == "assistant":
        yield message


def _result(block: Fields) -> dict[str, Any]:
    parts = [] if block.get("content") is None else _blocks(block, "content")
    text = "\n".join(map(_text, parts))
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "content": text, "tool_call_id": block.text("tool_use_id")}


def _merged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages behind each other of one role become one, but for results."""
    found: list[dict[str, Any]] = []
    for role, run in groupby(messages, itemgetter("role")):
        if role == "tool":
            found += run
            continue
        parts, merged = list(run), {"role": role, "content": ""}
        for name in ("content", "reasoning_content"):
            texts = [text for part in parts if (text := part.get(name))]
            merged |= {name: "\n".join(texts)} if texts else {}
        calls = [call for part in parts for call in part.get("tool_calls", ())]
        found.append(merged | ({"tool_calls": calls} if calls else {}))
    return found


def _read_tools(fields: Fields, ask: Ask) -> None:
    for given in fields.objects("tools"):
        kind = given.text("type") or "custom"
        if kind == "custom":
            given.needed("input_schema", given.get("input_schema"))
            ask.tools.append(read_tool(given, "input_schema"))
        elif not kind.startswith(SERVER_TOOLS):
            raise given.refuse(
                "type", f"is {kind!r:.40}, which this model does not know: give it an input_schema."
            )
    choice = fields.object("tool_choice")
    if choice is not None:
        kinds = {"auto": "auto", "any": "required", "none": "none", "tool": ""}
        kind = choice.needed("type", choice.one_of("type", kinds))
        ask.tool_choice = kinds[kind] or choice.needed("name", choice.text("name"))
        if kind == "tool" and ask.tool_choice in kinds.values():
            raise choice.refuse("name", f"is {ask.tool_choice!r}, which is no tool.")
        ask.parallel = not choice.flag("disable_parallel_tool_use")
    check_choice(fields, ask)
