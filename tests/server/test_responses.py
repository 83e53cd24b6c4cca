"""/v1/responses: items in, items out, and every event as strict clients read it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from orthrus_mlx.errors import RequestError
from orthrus_mlx.server.chat import read as read_chat
from orthrus_mlx.server.fields import Fields
from orthrus_mlx.server.responses import read

from .house import House

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ROME = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "get_weather", "parameters": ROME}
NOW = {"type": "function", "name": "now", "description": "The time."}
TOOLS = [WEATHER, NOW]
TEXTS = ["Hi, you.", "think", "weather", "both", "think and call", ""]


def respond(house: House, given: Any, **fields: Any) -> dict[str, Any]:
    """The response, which must be what OpenAI's client takes."""
    response = house.post("/v1/responses", {"input": given, **fields})
    assert response.status_code == 200, response.text
    Response.model_validate(response.json(), strict=True)
    return response.json()


def events(house: House, given: Any, **fields: Any) -> list[dict[str, Any]]:
    """The events of a streamed response, each of which must be what OpenAI's client takes."""
    response = house.post("/v1/responses", {"input": given, "stream": True, **fields})
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            assert type(EVENT.validate_python(event)).__name__ != "BaseModel"
            found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def put_together(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output that events amount to; each may speak of the item that is open alone."""
    output: list[dict[str, Any]] = []
    open_part: dict[str, Any] = {}
    for event in told:
        kind = event["type"].removeprefix("response.")
        if kind in ("created", "in_progress", "completed", "incomplete", "failed", "error"):
            continue
        assert event["output_index"] == len(output) - (kind != "output_item.added")
        if kind == "output_item.added":
            assert not output or output[-1]["status"] != "in_progress"
            output.append(event["item"])
            continue
        item = output[-1]
        assert item["status"] == "in_progress"
        if kind == "output_item.done":
            assert {**item, "status": event["item"]["status"]} == event["item"]
            item["status"] = event["item"]["status"]
            continue
        assert event["item_id"] == item["id"]
        if kind.endswith("part.added"):
            open_part = event["part"]
            where = "summary" if "summary" in kind else "content"
            assert item[where] == []
            item[where].append(open_part)
        elif kind.endswith("part.done"):
            assert event["part"] == open_part
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert (event["arguments"], event["name"]) == (item["arguments"], item["name"])
        elif kind.endswith("text.delta"):
            assert event["delta"]
            open_part["text"] += event["delta"]
            if "logprobs" in event:
                open_part["logprobs"] += event["logprobs"]
        else:
            assert kind.endswith("text.done")
            assert event["text"] == open_part["text"]
    return output


def without_ids(value: Any) -> Any:
    """A response without what differs from one to the next."""
    random = ("id", "call_id", "created_at", "completed_at", "orthrus")
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in random}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def kinds(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("more", [{}, {"reasoning": {"summary": "auto"}}, {"top_logprobs": 2}])
def test_streamed_and_whole_say_the_same(house: House, text: str, more: dict[str, Any]) -> None:
    given = [{"role": "user", "content": text}]
    whole = respond(house, given, tools=TOOLS, **more)
    told = events(house, given, tools=TOOLS, **more)
    types = [event["type"] for event in told]
    assert types[:2] == ["response.created", "response.in_progress"]
    assert types[-1] == "response.completed"
    assert put_together(told) == told[-1]["response"]["output"]
    assert without_ids(told[-1]["response"]) == without_ids(whole)
    assert told[0]["response"]["output"] == []
    assert len({event["response"]["id"] for event in told if "response" in event}) == 1


def test_text(house: House) -> None:
    response = respond(house, "Hello there.", metadata={"a": "b"}, instructions="Be brief.")
    assert Response.model_validate(response).output_text == "Hello there."
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert response["metadata"] == {"a": "b"}
    assert response["instructions"] == "Be brief."
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    [item] = response["output"]
    assert item["id"].startswith("msg_")
    assert item["content"][0]["annotations"] == item["content"][0]["logprobs"] == []


def test_an_answer_without_words_is_a_message(house: House) -> None:
    response = respond(house, [{"role": "user", "content": ""}])
    assert kinds(response) == ["message"]
    assert response["output"][0]["content"][0]["text"] == ""


def test_thinking_is_text_or_summary(house: House) -> None:
    thought = "Well, let me see."
    response = respond(house, "think")
    assert kinds(response) == ["reasoning", "message"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": thought}]
    assert response["output"][0]["summary"] == []
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    for asked in ({"summary": "auto"}, {"generate_summary": "concise"}):
        item = respond(house, "think", reasoning=asked)["output"][0]
        assert item["summary"] == [{"type": "summary_text", "text": thought}]
        assert "content" not in item


def test_effort_none_closes_the_thinking(house: House) -> None:
    one, other = (
        respond(house, "Hi.", reasoning={"effort": effort})["usage"]["input_tokens"]
        for effort in ("none", "high")
    )
    assert one > other  # by the closed tags


def test_calls(house: House) -> None:
    response = respond(house, "both", tools=TOOLS)
    assert kinds(response) == ["message", "function_call", "function_call"]
    assert response["status"] == "completed"
    calls = response["output"][1:]
    assert [(c["name"], c["arguments"]) for c in calls] == [
        ("get_weather", '{"city": "Rome"}'),
        ("now", "{}"),
    ]
    for call in calls:
        assert call["id"].startswith("fc_")
        assert call["call_id"].startswith("call_")
        assert call["status"] == "completed"
    assert len({c["id"] for c in calls} | {c["call_id"] for c in calls}) == 4
    one = respond(house, "both", tools=TOOLS, parallel_tool_calls=False)
    assert kinds(one) == ["message", "function_call"]


def test_tools_that_cannot_be_called_are_left_out(house: House) -> None:
    others = [{"type": "web_search"}, {"type": "custom", "name": "x"}, {"type": "mcp"}]
    response = respond(house, "weather", tools=[*others, WEATHER])
    assert response["tools"] == [WEATHER]
    assert kinds(response) == ["function_call"]
    assert any("tools.web_search" in line for line in house.log)
    assert respond(house, "Hi.", tools=others)["tools"] == []


def call(name: str, arguments: str = "{}") -> str:
    """What the scripted model is to be asked for it to call."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_tools_of_a_namespace(house: House) -> None:
    space: dict[str, Any] = {"type": "namespace", "name": "sky", "description": ""}
    space["tools"] = [*TOOLS, {"type": "custom", "name": "x"}]
    choices: list[Any] = [
        "auto",
        "required",
        {"type": "function", "name": "now", "namespace": "sky"},
        {"type": "function", "name": "sky.now"},
    ]
    for choice in choices:
        response = respond(house, call("sky.now"), tools=[space, NOW], tool_choice=choice)
        [made] = response["output"]
        assert (made["namespace"], made["name"]) == ("sky", "now")
        [told, _] = response["tools"]
        assert [tool["name"] for tool in told["tools"]] == ["get_weather", "now"]
    plain = respond(house, call("now"), tools=[space, NOW], tool_choice="required")
    assert plain["output"][0]["name"] == "now"
    assert "namespace" not in plain["output"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_choices(house: House, stream: bool) -> None:
    def output(choice: Any, text: str = "both") -> list[dict[str, Any]]:
        fields = {"tools": TOOLS, "tool_choice": choice, "max_output_tokens": 80}
        if stream:
            return put_together(events(house, text, **fields))
        return respond(house, text, **fields)["output"]

    def names(choice: Any, text: str = "both") -> list[str]:
        return [item["name"] for item in output(choice, text) if item["type"] == "function_call"]

    assert names("auto") == ["get_weather", "now"]
    assert names("none") == []
    assert output("none")[0]["content"][0]["text"].endswith("</tool_call>")
    two = f"{call('now')}\n{call('now')}"
    assert names("required", two) == ["now", "now"]
    now = {"type": "function", "name": "now"}
    assert names(now, two) == ["now"]
    # The model would call another, or none: it cannot.
    assert "get_weather" not in names(now, "weather")
    assert not [item for item in output("required", "Hi.") if item["type"] == "message"]
    assert names({"type": "allowed_tools", "mode": "required", "tools": [NOW]}, two) == [
        "now",
        "now",
    ]
    assert names({"type": "allowed_tools", "mode": "auto", "tools": [NOW]}, "Hi.") == []


def test_a_strict_tool_holds(house: House) -> None:
    tools = [{**WEATHER, "strict": True}]
    assert respond(house, "weather", tools=tools)["output"][0]["arguments"] == '{"city": "Rome"}'


@pytest.mark.parametrize(
    ("form", "valid"),
    [
        ({"type": "text"}, False),
        ({"type": "json_object"}, True),
        ({"type": "json_schema", "name": "x", "schema": ROME}, True),
        ({"type": "json_schema", "schema": ROME, "strict": None}, True),
    ],
)
def test_formats(house: House, form: dict[str, Any], valid: bool) -> None:
    response = respond(house, '{"city": "Rome"}', text={"format": form, "verbosity": "low"})
    assert Response.model_validate(response).output_text == '{"city": "Rome"}'
    free = respond(house, "No.", text={"format": form}, max_output_tokens=9)
    text = Response.model_validate(free).output_text
    assert text.startswith("{") if valid else text == "No."


@pytest.mark.parametrize(
    "text", [pytest.param("both", marks=pytest.mark.full), "think and call", "Grüße, 世界 🙂!"]
)
def test_cut_at_every_token(house: House, text: str) -> None:
    full = respond(house, text, tools=TOOLS)
    last = full["usage"]["output_tokens"]
    for cut in range(1, last + 1):
        told = events(house, text, tools=TOOLS, max_output_tokens=cut)
        output, whole = put_together(told), told[-1]["response"]
        assert output == whole["output"]
        assert all(item["status"] != "in_progress" for item in output)
        if cut == last:
            assert without_ids(output) == without_ids(full["output"])
            continue
        assert told[-1]["type"] == "response.incomplete"
        assert whole["status"] == "incomplete"
        assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
        assert kinds(whole) == kinds(full)[: len(whole["output"])]
        # Only the last item may be cut; all others are what they would have been.
        assert without_ids(output[:-1]) == without_ids(full["output"][: len(output[:-1])])
        for item in output[-1:]:
            if item["type"] == "function_call":
                ended = full["output"][len(output) - 1]["arguments"]
                assert ended.startswith(item["arguments"])
                assert (item["status"] == "completed") == (item["arguments"] == ended)


# ---- what comes in


def messages(given: Any, **fields: Any) -> list[dict[str, Any]]:
    """The messages that a body's items become."""
    found = read(Fields({"input": given, **fields})).messages
    assert found is not None
    return found


CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "now", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "Noon."}


def called(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": "c1", "function": function}


def test_items_become_messages() -> None:
    user = {"role": "user", "content": "Hi."}
    assert messages("Hi.") == [user]
    assert messages([user]) == [user]
    parts = [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i."}]
    assert messages([{"type": "message", "role": "user", "content": parts}]) == [user]
    system = {"role": "system", "content": "A\n\nB\n\nC"}
    developers = [{"role": "developer", "content": c} for c in ("B", "C")]
    assert messages([*developers, user], instructions="A") == [system, user]
    late = {"role": "developer", "content": "Z"}
    assert messages([user, late])[1] == {"role": "system", "content": "Z"}


def test_a_turn_is_one_message() -> None:
    user = {"role": "user", "content": "Hi."}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    thought["content"] = [{"type": "reasoning_text", "text": "Hm."}]
    text = {"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": None}
    said = {"type": "message", "role": "assistant", "id": "msg_1", "content": [text]}
    turn = {
        "role": "assistant",
        "reasoning_content": "Hm.",
        "content": "Wait.",
        "tool_calls": [called("now"), called("now")],
    }
    result = {"role": "tool", "content": "Noon.", "tool_call_id": "c1"}
    found = messages([user, thought, said, CALL, CALL, OUTPUT, OUTPUT])
    assert found == [user, turn, result, result]
    # The next turn is another message, and so is text behind a call.
    assert [m["role"] for m in messages([user, said, said, CALL, said])] == [
        "user",
        "assistant",
        "assistant",
        "assistant",
    ]
    short = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]}
    assert messages([user, short, CALL])[1]["reasoning_content"] == "So."
    nothing = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "xyz"}
    assert messages([user, nothing, CALL])[1:] == messages([user, CALL])[1:]


def test_calls_come_in_as_they_went_out() -> None:
    call = {**CALL, "namespace": "sky", "arguments": '{"a":1}'}
    assert messages([call])[0]["tool_calls"] == [called("sky.now", a=1)]
    broken = {**CALL, "arguments": '{"a":'}
    function = messages([broken])[0]["tool_calls"][0]["function"]
    assert function == {"name": "now", "arguments": '{"a":'}
    parts = [{"type": "input_text", "text": "No"}, {"type": "input_text", "text": "on."}]
    assert messages([CALL, {**OUTPUT, "output": parts}])[1]["content"] == "Noon."


def test_results_come_in_the_order_of_the_calls(house: House) -> None:
    names = ["a", "b", "c"]
    calls = [{**CALL, "call_id": name} for name in names]
    for order in (["c", "a", "b"], ["c", "?", "b", "a"]):
        results = [{**OUTPUT, "call_id": name, "output": name} for name in order]
        found = messages([USER, *calls, *results, USER, *calls, *results])
        expected = sorted(order, key="abc?".index)
        assert [m["content"] for m in found if m["role"] == "tool"] == expected * 2
    chat_calls = [{"id": n, "function": {"name": "now", "arguments": "{}"}} for n in names]
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "tool_calls": chat_calls},
        *[{"role": "tool", "tool_call_id": n, "content": n} for n in ("b", "c", "a")],
    ]
    found = read_chat(Fields({"messages": turns})).messages or []
    assert [m["content"] for m in found[2:]] == names


def test_output_is_input_again(house: House) -> None:
    """What a response holds can be sent back as it is."""
    given: list[Any] = [{"role": "user", "content": "think and call"}]
    first = respond(house, given, tools=TOOLS)
    call = first["output"][-1]
    given += first["output"]
    given.append({"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."})
    second = respond(house, given, tools=TOOLS)
    assert second["output"][0]["content"][0]["text"] == "Sunny."
    given += second["output"]
    given.append({"role": "user", "content": "Thanks."})
    assert respond(house, given, tools=TOOLS)["output"][0]["content"][0]["text"] == "Thanks."


def test_tools_among_the_items(house: House) -> None:
    more = {"type": "additional_tools", "role": "developer", "tools": [WEATHER]}
    response = respond(house, [more, {"role": "user", "content": "weather"}])
    assert kinds(response) == ["function_call"]


IMAGE = {"type": "input_image", "image_url": "data:,"}
USER = {"role": "user", "content": "Hi."}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": 0}, "input"),
        ({"input": {}}, "input"),
        ({"input": [None]}, "input[0]"),
        ({"input": ["Hi."]}, "input[0]"),
        ({"input": [{}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "input[0].content[0].type"),
        ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "input[1].type"),
        ({"input": [USER, {"type": "computer_call"}]}, "input[1].type"),
        ({"input": [USER, {**CALL, "name": None}]}, "input[1].name"),
        ({"input": [USER, {**CALL, "arguments": {}}]}, "input[1].arguments"),
        ({"input": [USER, {**OUTPUT, "output": None}]}, "input[1].output"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "additional_tools", "tools": 5}]}, "input[0].tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"tools": {}}, "tools"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "namespace", "tools": TOOLS}]}, "tools[0].name"),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "tools": [WEATHER]}},
            "tool_choice.tools[0].name",
        ),
        ({"text": "json"}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "9"}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 10**400}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": "all"}, "include"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"truncation": "some"}, "truncation"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "text", "strict": "yes"}}}, "text.format.strict"),
        ({"instructions": ["x"]}, "instructions"),
    ],
)
def test_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(Fields({"input": "Hi.", **fields}))
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_a_refusal_is_sent_before_a_stream_begins(house: House) -> None:
    for fields in ({"background": True}, {"input": "word " * 5000}):
        response = house.post("/v1/responses", {"input": "Hi.", "stream": True, **fields})
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_null_is_absent(house: House) -> None:
    names = """instructions tools tool_choice parallel_tool_calls text reasoning max_output_tokens
        temperature top_p seed stream include store previous_response_id background conversation
        metadata truncation user top_logprobs prompt service_tier stream_options"""
    response = respond(house, "Hi.", **dict.fromkeys(names.split()))
    assert Response.model_validate(response).output_text == "Hi."
    inner = {"text": {"format": None}, "reasoning": {"effort": None, "summary": None}}
    respond(house, [{**USER, "type": None, "id": None}], **inner, tools=[], include=[])


def test_logprobs(house: House) -> None:
    text = "Grüße!"
    response = respond(house, text, top_logprobs=2)
    told = response["output"][0]["content"][0]["logprobs"]
    assert bytes(b for token in told for b in token["bytes"]).decode() == text
    assert all(len(token["top_logprobs"]) == 2 for token in told)
    told = respond(house, text, include=["message.output_text.logprobs"])
    assert told["output"][0]["content"][0]["logprobs"][0]["top_logprobs"] == []


def test_the_engine_fails_in_a_stream(house: House) -> None:
    house.model.broken = RuntimeError("out of order")
    told = events(house, "Hi.")
    assert [event["type"] for event in told[-2:]] == ["error", "response.failed"]
    assert re.match("The engine failed", told[-2]["message"])
    assert told[-1]["response"]["status"] == "failed"
    assert told[-1]["response"]["error"]["code"] == "server_error"
    respond(house, "Hi.")
