"""/v1/chat/completions: thinking, tools, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .house import House

ROME = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": ROME}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]


def streamed(house: House, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed response."""
    response = house.post("/v1/chat/completions", {**body, "stream": True})
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that chunks of one answer amount to."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", []):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"name": "", "arguments": "", "id": call["id"]})
                own = message["tool_calls"][call["index"]]
                own["name"] += call["function"].get("name", "")
                own["arguments"] += call["function"].get("arguments", "")
            message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
    return message


def test_plain_text(house: House) -> None:
    answer = house.chat("Hello there.")
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "Hello there."
    assert choice["finish_reason"] == "stop"
    assert (
        answer["usage"]["completion_tokens"]
        == answer["usage"]["total_tokens"] - (answer["usage"]["prompt_tokens"])
    )


@pytest.mark.parametrize("text", ["think", "weather", "both", "think and call", "Hi, you."])
def test_streamed_and_whole_say_the_same(house: House, text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}], "tools": TOOLS}
    whole = house.chat(text, tools=TOOLS)["choices"][0]
    message = put_together(streamed(house, body))
    assert message["content"] == (whole["message"]["content"] or "")
    assert message["reasoning_content"] == whole["message"].get("reasoning_content", "")
    calls = [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert [{k: c[k] for k in ("name", "arguments")} for c in message["tool_calls"]] == calls
    assert message["finish_reason"] == whole["finish_reason"]


def test_thinking_is_apart(house: House) -> None:
    message = house.chat("think")["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "Well, let me see."
    assert message["content"] == "The answer is 4."


def test_calls_are_apart(house: House) -> None:
    choice = house.chat("both", tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert calls == [
        {"name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"name": "now", "arguments": "{}"},
    ]


def test_one_call_at_a_time(house: House) -> None:
    choice = house.chat("both", tools=TOOLS, parallel_tool_calls=False)["choices"][0]
    assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["get_weather"]
    assert choice["finish_reason"] == "tool_calls"


def test_without_tools_tags_are_text(house: House) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = house.chat("weather", **more)["choices"][0]
        assert choice["message"]["content"].startswith("<tool_call>")
        assert choice["finish_reason"] == "stop"


def test_a_call_cut_at_every_token(house: House) -> None:
    full = house.chat("both", tools=TOOLS)["usage"]["completion_tokens"]
    for cut in range(1, full):
        body: dict[str, Any] = {"tools": TOOLS, "max_tokens": cut}
        choice = house.chat("both", **body)["choices"][0]
        message = put_together(
            streamed(house, {"messages": [{"role": "user", "content": "both"}], **body})
        )
        assert choice["finish_reason"] == message["finish_reason"] == "length"
        assert "Let me look.\n".startswith(choice["message"]["content"] or "")
        assert (choice["message"]["content"] or "") == message["content"]
        for call, streamed_call in zip(
            choice["message"].get("tool_calls", []), message["tool_calls"], strict=True
        ):
            assert call["function"]["arguments"] == streamed_call["arguments"]
            assert '{"city": "Rome"}'.startswith(call["function"]["arguments"]) or (
                call["function"]["arguments"] in ("{", "{}")
            )


def test_numbers_of_any_size_are_refused_by_name(house: House) -> None:
    for field in ("max_tokens", "temperature", "seed", "n", "top_p"):
        for number in (-(10**400), 10**400) if field != "max_tokens" else (-(10**400),):
            messages = [{"role": "user", "content": "Hi"}]
            response = house.post("/v1/chat/completions", {"messages": messages, field: number})
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == field
            assert len(response.json()["error"]["message"]) < 200


def test_half_a_character_can_be_said(house: House) -> None:
    """A client may write it, and so may the model: neither is UTF-8."""
    tool = {"type": "function", "function": {"name": "\\ud800"}}
    named = {"type": "function", "function": {"name": "x"}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool], "tool_choice": named}
    content = json.dumps(body).replace("\\\\", "\\")
    response = house.http.post("/v1/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    message = house.chat("half a name", tools=TOOLS)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "\ud800"


def test_a_form_beside_tools(house: House) -> None:
    """Calls, or text of that form, whatever the model would say."""
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
    choice = house.chat("weather", tools=TOOLS, response_format=form)["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    choice = house.chat("Hello.", tools=TOOLS, response_format=form)["choices"][0]
    assert choice["message"]["content"] in ('"yes"', '"no"') or "tool_calls" in choice["message"]


def test_required_and_named_calls_are_made(house: House) -> None:
    """Of a model that would say something else; a name that is not offered is impossible."""
    for choice in ("required", {"type": "function", "function": {"name": "now"}}):
        body = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 60}
        found = house.chat("Hello.", enable_thinking=False, **body)["choices"][0]
        calls = [call["function"]["name"] for call in found["message"].get("tool_calls", [])]
        assert found["finish_reason"] in ("tool_calls", "length")
        if isinstance(choice, dict):
            assert set(calls) <= {"now"}
        else:
            assert set(calls) <= {"now", "get_weather"}
        assert calls
