"""/v1/messages: what goes into the prompt, the events of an answer, and what is refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from orthrus_mlx import stream_generate
from orthrus_mlx.batches import BatchEngine
from orthrus_mlx.errors import RequestError
from orthrus_mlx.server.fields import Fields
from orthrus_mlx.server.messages import read, read_prompt
from orthrus_mlx.server.messages_reply import read_input
from tests.structured.schemas import model as random_model

from .house import Actor, House, serving, tokenizer

ROME = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"name": "get_weather", "input_schema": ROME},
    {"name": "now", "description": "The time.", "input_schema": {"type": "object"}},
]
THINKS = {"thinking": {"type": "adaptive"}}
EVENTS: Any = TypeAdapter(RawMessageStreamEvent)


def body(text: str, **fields: Any) -> dict[str, Any]:
    """A request of one message."""
    messages = [{"role": "user", "content": text}]
    return {"model": "any", "max_tokens": 400, "messages": messages, **fields}


def whole(house: House, request: dict[str, Any]) -> dict[str, Any]:
    """The response as one object, which is what Anthropic's SDK expects."""
    response = house.post("/v1/messages?beta=true", request)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    Message.model_validate(found, strict=True)
    return found


def streamed(house: House, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed response, named by their types, and as the SDK expects them."""
    response = house.post("/v1/messages", {**request, "stream": True})
    assert response.status_code == 200, response.text
    events = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        if events[-1]["type"] not in ("ping", "error"):
            EVENTS.validate_python(events[-1], strict=True)
    return events


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that events amount to; their order is checked."""
    events = [event for event in events if event["type"] != "ping"]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    blocks: list[dict[str, Any]] = []
    open_ = False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not open_
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "text so far": ""})
            open_ = True
            continue
        assert open_
        assert event["index"] == len(blocks) - 1
        if event["type"] == "content_block_stop":
            open_ = False
            continue
        delta = event["delta"]
        kind = {"text": "text_delta", "tool_use": "input_json_delta", "thinking": "thinking_delta"}
        if delta["type"] == "signature_delta":
            blocks[-1]["signature"] = delta["signature"]
        else:
            assert delta["type"] == kind[blocks[-1]["type"]]
            value = next(value for name, value in delta.items() if name != "type")
            blocks[-1]["text so far"] += value
    assert not open_
    for block in blocks:
        text = block.pop("text so far")
        if block["type"] == "tool_use":
            block["input"] = text
        else:
            block[block["type"]] = text
    return blocks


def without_ids(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in b.items() if name != "id"} for b in blocks]


@pytest.mark.parametrize("text", ["think", "weather", "both", "think and call", "Hi, you.", "bad"])
def test_streamed_and_whole_say_the_same(house: House, text: str) -> None:
    request = body(text, tools=TOOLS, **THINKS)
    message, events = whole(house, request), streamed(house, request)
    blocks = put_together(events)
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = read_input(block["input"], cut=False)
    assert without_ids(blocks) == without_ids(message["content"])
    last = events[-2]
    assert last["delta"]["stop_reason"] == message["stop_reason"]
    assert last["usage"] == message["usage"]
    started = events[0]["message"]
    assert started["usage"]["input_tokens"] == message["usage"]["input_tokens"]
    assert started["model"] == message["model"] == "test-model"


def test_blocks_of_an_answer(house: House) -> None:
    message = whole(house, body("think", **THINKS))
    assert message["content"] == [
        {"type": "thinking", "thinking": "Well, let me see.", "signature": "unsigned"},
        {"type": "text", "text": "The answer is 4."},
    ]
    assert message["stop_reason"] == "end_turn"
    assert 0 < message["usage"]["output_tokens_details"]["thinking_tokens"] < 20
    message = whole(house, body("both", tools=TOOLS))
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use"]
    assert [block.get("input") for block in message["content"]] == [None, {"city": "Rome"}, {}]
    assert message["content"][1]["id"] != message["content"][2]["id"]
    assert message["stop_reason"] == "tool_use"


def test_thinking_is_shown_to_those_who_ask(house: House) -> None:
    hidden = {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}
    message = whole(house, body("think", **hidden))
    assert [block.get("thinking") for block in message["content"]] == ["", None]
    for fields, thinks in (
        ({}, False),
        (THINKS, True),
        ({"thinking": {"type": "disabled"}}, False),
    ):
        ask = read(Fields(body("Hi", **fields)))
        assert ask.template == {"enable_thinking": thinks}


def test_an_answer_cut_at_every_token(house: House) -> None:
    request = body("all", tools=TOOLS, **THINKS)
    full = whole(house, request)
    for cut in range(full["usage"]["output_tokens"]):
        request["max_tokens"] = cut
        events = streamed(house, request)
        assert events[-2]["delta"]["stop_reason"] == "max_tokens"
        assert events[-2]["usage"]["output_tokens"] == cut
        blocks = put_together(events)
        for n, block in enumerate(blocks):
            if block["type"] == "tool_use":
                block["input"] = read_input(block["input"], cut=n == len(blocks) - 1)
        if cut % 4 == 1:
            assert without_ids(blocks) == without_ids(whole(house, request)["content"])
        for block, at_last in zip(blocks, full["content"], strict=False):
            for name in ("text", "thinking"):
                assert at_last.get(name, "").startswith(block.get(name, "").rstrip("\n"))
            assert block.get("name") == at_last.get("name")
            assert set(block.get("input", ())) <= set(at_last.get("input", ()))


@pytest.mark.parametrize(
    ("text", "whole_of_it"),
    [
        ('{"a": "x", "b": "y', {"a": "x"}),
        ('{"a": 12', {}),
        ('{"a": 12, ', {"a": 12}),
        ('{"a": tru', {}),
        ('{"a": "x\\"", "b', {"a": 'x"'}),
        ('{"a": [1, {"b": "c"}, {"d', {"a": [1, {"b": "c"}, {}]}),
        ('{"a": "x"', {"a": "x"}),
        ("{", {}),
        ("", {}),
        ('{"a": {"b": [', {"a": {"b": []}}),
    ],
)
def test_arguments_that_were_cut(text: str, whole_of_it: dict[str, Any]) -> None:
    assert read_input(text, cut=True) == whole_of_it


@pytest.mark.parametrize(
    "text", ["{city: 1}", "[1]", "3", '{"a": NaN}', '{"a": 1e999}', "[" * 9999]
)
def test_arguments_that_are_no_object(text: str) -> None:
    assert read_input(text, cut=False) == {"INVALID_JSON": text}
    assert isinstance(read_input(text, cut=True), dict)


def test_arguments_with_half_a_character_arrive(house: House) -> None:
    message = whole(house, body("half", tools=TOOLS))
    assert message["content"][0]["input"] == {"city": "\ud800"}


def test_how_answers_end(house: House) -> None:
    message = whole(house, body("think", stop_sequences=["answer", "never"], **THINKS))
    assert message["content"][-1]["text"] == "The "
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "answer")
    message = whole(house, body("Hi", max_tokens=0))
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")


def test_more_than_the_context_holds_is_no_mistake() -> None:
    with serving(Actor({"endless": "word " * 100}, max_positions=64)) as house:
        for most in (10**6, 10**300):
            message = whole(house, body("endless", max_tokens=most))
            assert message["stop_reason"] == "model_context_window_exceeded"
            usage = message["usage"]
            assert usage["input_tokens"] + usage["output_tokens"] == 64


def test_an_answer_that_has_begun(house: House) -> None:
    request = body("think", stop_sequences=["4"])
    request["messages"].append({"role": "assistant", "content": "<think>\nWell, let me"})
    request["messages"][0]["content"] = "Hello, my friend there."
    request["messages"][1]["content"] = "Hello, my"
    message = whole(house, request)
    assert message["content"] == [{"type": "text", "text": " friend there."}]
    # Nothing to go on with is no beginning.
    request["messages"][1]["content"] = []
    assert whole(house, request)["content"][0]["text"] == "Hello, my friend there."


def test_what_goes_into_the_prompt() -> None:
    messages = [
        {"role": "user", "content": "What is the weather?"},
        {"role": "user", "content": [{"type": "text", "text": "In Rome.", "cache_control": {}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "thinking", "thinking": "Let me look.", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "b", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Here."},
                {"type": "tool_result", "tool_use_id": "b", "content": "late", "is_error": True},
                {
                    "type": "tool_result",
                    "tool_use_id": "a",
                    "content": [{"type": "text", "text": "Sun."}, {"type": "text", "text": "Hot."}],
                },
            ],
        },
        {"role": "system", "content": "Be brief."},
    ]
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; a=54d;"},
        {"type": "text", "text": "You are kind."},
        {"type": "text", "text": "And short."},
    ]
    ask = read(Fields(body("", messages=messages, system=system, tools=TOOLS)))
    assert not ask.unfinished
    assert ask.messages is not None
    found = [{k: v for k, v in m.items() if k != "tool_call_id"} for m in ask.messages]
    calls = found[2].pop("tool_calls")
    assert found == [
        {"role": "system", "content": "You are kind.\nAnd short."},
        {"role": "user", "content": "What is the weather?\nIn Rome."},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Let me look."},
        {"role": "tool", "content": "Sun.\nHot."},
        {"role": "tool", "content": "Error: late"},
        {"role": "user", "content": "Here."},
        {"role": "system", "content": "Be brief."},
    ]
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": {"city": "Rome"}},
        {"name": "now", "arguments": {}},
    ]
    same = read(Fields(body("", messages=messages, system=system[1:])))
    assert same.messages == ask.messages


def test_a_conversation_with_a_tool(house: House) -> None:
    request = body("weather", tools=TOOLS)
    message = whole(house, request)
    result = {"type": "tool_result", "tool_use_id": message["content"][0]["id"], "content": "Sun."}
    request["messages"] += [
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [result]},
    ]
    assert whole(house, request)["content"] == [{"type": "text", "text": "Sun."}]


def test_choices_of_tools() -> None:
    def chosen(**choice: Any) -> tuple[str, bool]:
        ask = read(Fields(body("Hi", tools=TOOLS, tool_choice=choice)))
        return ask.tool_choice, ask.parallel

    assert chosen(type="auto") == ("auto", True)
    assert chosen(type="any", disable_parallel_tool_use=True) == ("required", False)
    assert chosen(type="tool", name="now", disable_parallel_tool_use=None) == ("now", True)
    assert chosen(type="none") == ("none", True)
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    ask = read(
        Fields(body("Hi", tools=[search, *TOOLS, {**TOOLS[0], "name": "c", "strict": True}]))
    )
    assert [tool["function"]["name"] for tool in ask.tools] == ["get_weather", "now", "c"]
    assert ask.tools[2]["function"]["strict"] is True


def test_tools_are_chosen(house: House) -> None:
    only = {"type": "any", "disable_parallel_tool_use": True}
    message = whole(house, body("both", tools=TOOLS, tool_choice=only, max_tokens=60))
    assert [block.get("name") for block in message["content"]] == ["get_weather"]
    message = whole(house, body("weather", tools=TOOLS, tool_choice={"type": "none"}))
    assert message["content"][0]["type"] == "text"
    named = {"type": "tool", "name": "now"}
    message = whole(house, body("weather", tools=TOOLS, tool_choice=named, max_tokens=60))
    assert {block.get("name") for block in message["content"]} == {"now"}


def test_json_by_a_schema(house: House) -> None:
    form = {"type": "json_schema", "schema": ROME}
    for fields in ({"output_config": {"format": form, "effort": "low"}}, {"output_format": form}):
        message = whole(house, body('{"city": "Rome"}', **fields))
        assert json.loads(message["content"][0]["text"]) == {"city": "Rome"}
        assert message["stop_reason"] == "end_turn"


def test_tokens_are_counted(house: House) -> None:
    request = body("Hi", system="Be kind.", tools=TOOLS)
    counted = house.post("/v1/messages/count_tokens?beta=true", request)
    assert counted.json() == {"input_tokens": whole(house, request)["usage"]["input_tokens"]}
    del request["max_tokens"], request["model"]
    assert house.post("/v1/messages/count_tokens", request).json() == counted.json()


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}
                        ],
                    }
                ]
            },
            "messages[0].content[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "now", "input": {}}],
                    }
                ]
            },
            "messages",
        ),
        ({"system": 3}, "system"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_k": "3"}, "top_k"),
        ({"n": 2}, "n"),
        ({"stop_sequences": 3}, "stop_sequences"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {}}, "thinking.type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"mcp_servers": [{"type": "url", "url": "x", "name": "y"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
    ],
)
def test_what_is_refused(house: House, fields: dict[str, Any], where: str) -> None:
    response = house.post("/v1/messages", body("Hi", **fields))
    assert response.status_code == 400, response.text
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["message"].startswith(where)


def test_null_is_as_good_as_absent() -> None:
    known = {*read_names(body("Hi"))} - {"max_tokens", "messages"}
    assert len(known) > 30
    plain = read(Fields(body("Hi")))
    assert read(Fields(body("Hi", **dict.fromkeys(known)))) == plain


def read_names(request: dict[str, Any]) -> list[str]:
    """The fields that reading a body looks at."""
    fields = Fields(request)
    read(fields)
    return sorted(fields._read)


def test_any_wrong_type_is_an_answer_or_named(house: House) -> None:
    """Whatever stands in a field: read, or refused as a request."""
    wrong: list[Any] = [0, -1, 1.5, 10**30, True, "", "x", [], [None], [{}], ["x"], {}, {"type": 3}]
    wrong += [{"type": "x"}, {"x": {"y": []}}, [[]], "\ud800", ["\ud800"]]
    for name in read_names(body("Hi")):
        for value in wrong:
            try:
                read(Fields(body("Hi", **{name: value})))
            except Exception as error:
                assert isinstance(error, ValueError), (name, value, error)  # GenerationError
                house_error = isinstance(error, RequestError) and error.param
                assert house_error or "schema" in str(error).lower(), (name, value, error)
    parts: list[Any] = [None, *wrong]
    blocks = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "x")
    for role in ("user", "assistant", "system"):
        for kind in blocks:
            for field in (
                "text",
                "input",
                "id",
                "name",
                "content",
                "thinking",
                "source",
                "is_error",
            ):
                for value in parts:
                    block = {"type": kind, field: value}
                    messages = [
                        {"role": role, "content": [block]},
                        {"role": "user", "content": "."},
                    ]
                    try:
                        read_prompt(Fields(body("", messages=messages)))
                    except RequestError as error:
                        assert error.param is not None
                        assert error.param.startswith("messages")


def test_errors_are_as_anthropic_has_them() -> None:
    with serving(
        Actor({}, max_positions=64),
        settings={"keys": ["secret"], "origins": ["http://a.example"]},
        concurrency=1,
        queue=1,
    ) as house:
        key = {"x-api-key": "secret"}

        def error(status: int, path: str = "/v1/messages", **options: Any) -> tuple[str, str]:
            response = house.http.post(path, **options)
            assert response.status_code == status, response.text
            found = response.json()
            assert found["type"] == "error"
            assert set(found["error"]) - {"details"} == {"type", "message"}
            return found["error"]["type"], found["error"]["message"]

        request = body("Hi")
        assert error(401, json=request)[0] == "authentication_error"
        assert error(401, "/v1/messages/count_tokens", json=request)[0] == "authentication_error"
        evil = {**key, "host": "evil.example"}
        assert error(403, headers=evil, json=request)[0] == "permission_error"
        foreign = {**key, "origin": "http://b.example"}
        assert error(403, headers=foreign, json=request)[0] == "permission_error"
        assert error(404, "/v1/messages/batches", headers=key)[0] == "not_found_error"
        speaks = {**key, "anthropic-version": "2023-06-01"}
        assert error(404, "/v1/complete", headers=speaks)[0] == "not_found_error"
        assert error(400, headers=key, content=b"{")[0] == "invalid_request_error"
        assert error(400, headers=key, json=[])[0] == "invalid_request_error"
        large = HTTPConnection(house.url.removeprefix("http://"))
        large.putrequest("POST", "/v1/messages")
        for name, value in (*key.items(), ("content-length", str(33 << 20))):
            large.putheader(name, value)
        large.endheaders()
        with large.getresponse() as response:
            assert response.status == 413
            assert json.loads(response.read())["error"]["type"] == "request_too_large"
        kind, text = error(400, headers=key, json=body("word " * 100))
        assert kind == "invalid_request_error"
        assert text.startswith("prompt is too long: ")
        assert text.endswith(" tokens > 63 maximum")
        assert house.post("/v1/messages", request, headers=key).status_code == 200
        # One is being answered, another one waits, and that is all that may.
        house.model.slow.clear()
        with ThreadPoolExecutor() as pool:
            for load in (1, 2):
                pool.submit(house.http.post, "/v1/messages", headers=key, json=request)
                assert eventually(lambda load=load: sum(house.service.worker.load) == load)
            assert error(429, headers=key, json=request)[0] == "rate_limit_error"
            house.model.slow.set()


def eventually(found: Callable[[], bool]) -> bool:
    """Whether something comes true before long."""
    ends = time.monotonic() + 10
    while not found() and time.monotonic() < ends:
        time.sleep(0.01)
    return found()


def test_an_error_ends_a_stream(house: House) -> None:
    house.model.broken = RuntimeError("oops")
    with house.http.stream("POST", "/v1/messages", json=body("long", stream=True)) as response:
        text = "".join(response.iter_text())
    if response.status_code == 200:
        assert text.endswith(
            'event: error\ndata: {"type": "error", "error": {"type": "api_error", "message": '
            '"The engine failed: RuntimeError."}}\n\n'
        )
    else:
        assert (response.status_code, json.loads(text)["error"]["type"]) == (500, "api_error")
    assert whole(house, body("Hello again."))["content"][0]["text"] == "Hello again."


def test_a_stream_says_that_it_lives(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from orthrus_mlx.server import answers

    monkeypatch.setattr(answers, "PATIENCE", 0.02)
    house.model.slow.clear()
    threading.Timer(0.3, house.model.slow.set).start()
    events = streamed(house, body("Hello."))
    assert events[1] == {"type": "ping"}
    assert put_together(events)[0]["text"] == "Hello."


def test_ids_are_those_of_stream_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchEngine, "prepare", lambda engine, progress: False)
    model = random_model(3, 6)
    request = body("Any question.", temperature=0.8, seed=7, max_tokens=24, return_token_ids=True)
    with serving(model) as house:
        message, events = whole(house, request), streamed(house, request)
        prompt = house.service.encode(read(Fields(request)))[0]
    expected = stream_generate(
        model, tokenizer(), prompt, max_tokens=24, seed=7, temperature=0.8, mode="ar"
    )
    ids = [response.token for response in expected]
    assert message["orthrus"]["token_ids"] == events[-2]["orthrus"]["token_ids"] == ids
    assert message["orthrus"]["seed"] == events[-2]["orthrus"]["seed"] == 7
    assert put_together(events) == message["content"]
