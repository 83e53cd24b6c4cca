"""Anthropic's own client, as it is, against a scripted server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel

from .house import Actor, House, serving

MODEL = "claude-sonnet-4-5"  # any name is taken
QUESTION: list[Any] = [{"role": "user", "content": "Hello there."}]
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


class Person(BaseModel):
    """What a test asks for."""

    name: str
    age: int


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[anthropic.Anthropic]:
    """A client of the scripted server."""
    with anthropic.Anthropic(base_url=house.url, api_key="any", max_retries=0) as found:
        yield found


def ask(text: str) -> list[Any]:
    """One message."""
    return [{"role": "user", "content": text}]


def test_create(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=4_000,
        messages=QUESTION,
        system="Be kind.",
        stop_sequences=["never"],
        metadata={"user_id": "me"},
        extra_body={"temperature": 0.0},
    )
    block = message.content[0]
    assert block.type == "text"
    assert block.text == "Hello there."
    assert message.stop_reason == "end_turn"
    assert message.model == "test-model"
    assert message.usage.output_tokens > 0


def test_raw_stream(client: anthropic.Anthropic) -> None:
    events = list(
        client.messages.create(model=MODEL, max_tokens=99, messages=QUESTION, stream=True)
    )
    assert [event.type for event in events][:2] == ["message_start", "content_block_start"]
    assert [event.type for event in events][-3:] == [
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_stream_helper(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "adaptive"}
    with client.messages.stream(
        model=MODEL, max_tokens=99, messages=ask("think"), thinking=thinking
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "The answer is 4."
    assert [block.type for block in message.content] == ["thinking", "text"]
    first = message.content[0]
    assert first.type == "thinking"
    assert (first.thinking, first.signature) == ("Well, let me see.", "unsigned")
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens > 0


def test_tools_whole_and_streamed(client: anthropic.Anthropic) -> None:
    messages = ask("weather")
    message = client.messages.create(model=MODEL, max_tokens=99, messages=messages, tools=TOOLS)
    with client.messages.stream(
        model=MODEL, max_tokens=99, messages=messages, tools=TOOLS
    ) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        same = stream.get_final_message()
    for found in (message, same):
        assert found.stop_reason == "tool_use"
        call = found.content[0]
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("get_weather", {"city": "Rome"})
    assert "".join(parts) == '{"city": "Rome"}'
    result = {"type": "tool_result", "tool_use_id": message.content[0].id, "content": "Sun."}
    messages += [message.to_param(), {"role": "user", "content": [result]}]
    answer = client.messages.create(model=MODEL, max_tokens=99, messages=messages, tools=TOOLS)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Sun."


def test_tool_runner(client: anthropic.Anthropic) -> None:
    """The client's own loop: it calls the function, and sends what it gives."""

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: its name.
        """
        return f"Sun in {city}."

    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=99, messages=ask("weather"), tools=[get_weather]
    )
    texts = [block.text for message in runner for block in message.content if block.type == "text"]
    assert texts == ["Sun in Rome."]


@pytest.mark.parametrize("cut", [8, 14, 17, 20, 23])
def test_a_stream_cut_within_a_call(client: anthropic.Anthropic, cut: int) -> None:
    options: Any = {"model": MODEL, "max_tokens": cut, "tools": TOOLS, "messages": ask("weather")}
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    whole = client.messages.create(**options)
    assert streamed.stop_reason == whole.stop_reason == "max_tokens"
    for one, other in zip(streamed.content, whole.content, strict=True):
        assert one.model_dump(exclude={"id"}) | {"parsed_output": None} == (
            other.model_dump(exclude={"id"}) | {"parsed_output": None}
        )


def test_counting(client: anthropic.Anthropic) -> None:
    options: Any = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, "system": "Be kind."}
    message = client.messages.create(max_tokens=9, **options)
    counted = client.messages.count_tokens(**options).input_tokens
    assert counted == message.usage.input_tokens
    assert client.beta.messages.count_tokens(**options).input_tokens == counted


def test_parse(client: anthropic.Anthropic) -> None:
    person = '{"name": "Ada", "age": 36}'
    found = client.messages.parse(
        model=MODEL, max_tokens=99, messages=ask(person), output_format=Person
    )
    assert found.parsed_output == Person(name="Ada", age=36)
    beta = client.beta.messages.parse(
        model=MODEL, max_tokens=99, messages=ask(person), output_format=Person
    )
    assert beta.parsed_output == Person(name="Ada", age=36)


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["test-model"]
    assert client.models.retrieve("test-model").display_name == "test-model"
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("another")
    assert caught.value.type == "not_found_error"


def test_errors(house: House, client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://x.example/a.png"}}
    content: Any = [image]
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(
            model=MODEL, max_tokens=9, messages=[{"role": "user", "content": content}]
        )
    assert caught.value.type == "invalid_request_error"
    assert "messages[0].content[0].type" in str(caught.value)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
        client.messages.create(model=MODEL, max_tokens=9, messages=ask("word " * 5000))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list()
    # A stream that has begun ends with an event, which the client raises.
    with client.messages.stream(model=MODEL, max_tokens=999, messages=ask("long")) as stream:
        next(stream.text_stream)
        house.model.broken = RuntimeError("oops")
        with pytest.raises(anthropic.APIStatusError, match="RuntimeError"):
            stream.until_done()
    assert client.messages.create(model=MODEL, max_tokens=99, messages=QUESTION).content


def test_keys() -> None:
    with serving(Actor({}), settings={"keys": ["right"]}) as house:
        for options in ({"api_key": "wrong"}, {"auth_token": "wrong"}):
            with (
                anthropic.Anthropic(base_url=house.url, max_retries=0, **options) as client,
                pytest.raises(anthropic.AuthenticationError) as caught,
            ):
                client.messages.create(model=MODEL, max_tokens=9, messages=QUESTION)
            assert caught.value.type == "authentication_error"
        for found in ({"api_key": "right"}, {"auth_token": "right"}):
            with anthropic.Anthropic(base_url=house.url, max_retries=0, **found) as client:
                assert client.messages.create(model=MODEL, max_tokens=9, messages=QUESTION).content


def test_the_asynchronous_client_can_leave(house: House) -> None:
    async def leave() -> None:
        client = anthropic.AsyncAnthropic(base_url=house.url, api_key="any")
        options: Any = {"model": MODEL, "max_tokens": 999, "messages": ask("long")}
        async with client, client.messages.stream(**options) as stream:
            await anext(stream.text_stream)

    cancelled = house.service.worker.totals.cancelled
    asyncio.run(leave())
    for _ in range(200):
        if house.service.worker.totals.cancelled > cancelled:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert house.service.worker.totals.cancelled == cancelled + 1
