"""OpenAI's own client, unmodified, against a server that answers by a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from .conftest import SCRIPT, WEATHER
from .house import House
from .test_completions import prompt

ROME = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ROME["additionalProperties"] = False
FUNCTION = {"name": "get_weather", "parameters": ROME, "strict": True}
CHAT_TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
TOOLS: list[Any] = [{"type": "function", **FUNCTION}]
ARGUMENTS = '{"city": "Rome"}'


class GetWeather(BaseModel):
    """Arguments of a tool."""

    city: str


class Place(BaseModel):
    """A form of an answer."""

    city: str
    country: Literal["Italy", "France"]


PLACE = '{"city": "Rome", "country": "Italy"}'


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{house.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "test-model"


# ---- chat


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="any", messages=user("think"), n=2, seed=3)
    assert [choice.message.content for choice in answer.choices] == ["The answer is 4."] * 2
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens


def test_chat_stream(client: openai.OpenAI) -> None:
    options: Any = {"stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(
            model="any", messages=user("Hello there."), stream=True, **options
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there."
    assert chunks[-1].usage is not None


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="any", messages=user("both"), tools=CHAT_TOOLS, parallel_tool_calls=False
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"content.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.content == "Let me look."
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == {"city": "Rome"}


def test_chat_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="any", messages=user(PLACE), response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="Rome", country="Italy")
    with client.chat.completions.stream(
        model="any", messages=user(PLACE), response_format=Place
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == Place(city="Rome", country="Italy")


def test_chat_parse_tools(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    answer = client.chat.completions.parse(model="any", messages=user("weather"), tools=[tool])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.function.parsed_arguments == GetWeather(city="Rome")
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    more: Any = [*user("weather"), choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.parse(model="any", messages=more, tools=[tool])
    assert answer.choices[0].message.content == "Sunny."


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=user("Hi."), logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == "Hi."


# ---- completions


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="any", prompt=[prompt("One."), prompt("think")], max_tokens=100, n=2, logprobs=2
    )
    assert [c.text for c in answer.choices] == ["One.", "One.", SCRIPT["think"], SCRIPT["think"]]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens
    # Text and its own going on: an exact hit in a server's prompt cache.
    longer = prompt("One.") + "One."
    assert client.completions.create(model="any", prompt=longer).choices[0].text == ""


def test_completions_stream(house: House) -> None:
    # Its types know no chunk before the last, whose finish_reason is null, and OpenAI sends those.
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key="any") as client:
        chunks = list(client.completions.create(model="any", prompt=prompt("One."), stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "One."
    assert chunks[-1].choices[0].finish_reason == "stop"


# ---- responses


def test_responses(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="any",
        input="think",
        instructions="Be brief.",
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        extra_body={"seed": 3},
    )
    assert response.output_text == "The answer is 4."
    assert response.output[0].type == "reasoning"
    assert response.output[0].summary[0].text == "Well, let me see."
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_responses_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="any", input="Hello there.", stream=True))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there."
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello there."


@pytest.mark.parametrize("text", ["both", "think and call"])
def test_responses_stream_helper(client: openai.OpenAI, text: str) -> None:
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    flat: Any = {"type": "function", **tool["function"]}
    with client.responses.stream(
        model="any", input=text, tools=[flat], parallel_tool_calls=False
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 1
    call = response.output[-1]
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Rome"}
    assert call.id != call.call_id
    more: Any = [*user(text), *response.output]
    more.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."})
    assert client.responses.create(model="any", input=more, tools=TOOLS).output_text == "Sunny."


def test_responses_parse(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="any", input=PLACE, text_format=Place)
    assert response.output_parsed == Place(city="Rome", country="Italy")
    with client.responses.stream(model="any", input=PLACE, text_format=Place) as stream:
        assert stream.get_final_response().output_parsed == Place(city="Rome", country="Italy")


def test_responses_parse_tools(client: openai.OpenAI) -> None:
    space: Any = {"type": "namespace", "name": "sky", "description": "", "tools": TOOLS}
    text = WEATHER.replace("get_weather", "sky.get_weather")
    response = client.responses.parse(model="any", input=text, tools=[space])
    call = response.output[0]
    assert call.type == "function_call"
    assert (call.namespace, call.name) == ("sky", "get_weather")
    assert call.parsed_arguments == {"city": "Rome"}


def test_a_cut_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="any", input="long", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


# ---- errors


def test_errors(client: openai.OpenAI, house: House) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="any", input="Hi.", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="any", messages=[])
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="any", prompt="")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.BadRequestError, match="context"):
        client.responses.create(model="any", input="word " * 5000, stream=True)


@pytest.mark.parametrize("api", ["chat", "completions", "responses"])
def test_the_engine_fails_in_a_stream(client: openai.OpenAI, house: House, api: str) -> None:
    calls: dict[str, Any] = {
        "chat": lambda: client.chat.completions.create(
            model="any", messages=user("Hi."), stream=True
        ),
        "completions": lambda: client.completions.create(model="any", prompt="a", stream=True),
        "responses": lambda: client.responses.create(model="any", input="Hi.", stream=True),
    }
    house.model.broken = RuntimeError("out of order")
    with pytest.raises(openai.APIError, match="engine failed"):
        list(calls[api]())
    assert house.http.get("/health").status_code == 200
    assert Response.model_validate(house.post("/v1/responses", {"input": "Hi."}).json()).output_text


def test_asynchronous(house: House) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="any") as client:

            async def one(n: int) -> str:
                response = await client.responses.create(model="any", input=f"Number {n}.")
                return response.output_text

            return list(await asyncio.gather(*[one(n) for n in range(12)]))

    assert asyncio.run(ask()) == [f"Number {n}." for n in range(12)]
