"""/v1/completions: text goes on as it stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from .house import TURN, House, tokenizer

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def prompt(text: str) -> str:
    """What the scripted model answers `text` to."""
    return f"<|im_start|>user\n{text}<|im_end|>\n{TURN}"


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(prompt(text)))


def complete(house: House, given: Any, **fields: Any) -> dict[str, Any]:
    """The response, which must be what OpenAI's client takes."""
    response = house.post("/v1/completions", {"prompt": given, "max_tokens": 200, **fields})
    assert response.status_code == 200, response.text
    Completion.model_validate(response.json())
    return response.json()


def streamed(house: House, given: Any, **fields: Any) -> dict[int, dict[str, Any]]:
    """The choices that chunks put together, by their index."""
    body = {"prompt": given, "max_tokens": 200, "stream": True, **fields}
    response = house.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    found: dict[int, dict[str, Any]] = {}
    for line in lines[:-1]:
        chunk = json.loads(line.removeprefix("data: "))
        for choice in chunk["choices"]:
            assert choice["index"] not in found or not found[choice["index"]]["finish_reason"]
            own = found.setdefault(choice["index"], {"text": "", "logprobs": {}})
            own["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                own["logprobs"].setdefault(name, []).extend(values)
            own["finish_reason"] = choice["finish_reason"]
            own["token_ids"] = choice.get("token_ids")
    return found


@pytest.mark.parametrize("text", ["Hello there.", "think", "weather", "Grüße, 世界 🙂!"])
def test_what_a_model_writes_is_text(house: House, text: str) -> None:
    from .conftest import SCRIPT

    expected = SCRIPT.get(text, text)
    choice = complete(house, prompt(text), return_token_ids=True)["choices"][0]
    assert choice["text"] == expected
    assert choice["finish_reason"] == "stop"
    found = streamed(house, prompt(text), return_token_ids=True)[0]
    assert (found["text"], found["finish_reason"]) == (expected, "stop")
    assert found["token_ids"] == choice["token_ids"]
    assert tokenizer().decode(choice["token_ids"][:-1]) == expected


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (prompt("One."), ["One."]),
        ([prompt("One.")], ["One."]),
        ([prompt("One."), prompt("Two.")], ["One.", "Two."]),
        (ids("One."), ["One."]),
        ([ids("One."), ids("Two.")], ["One.", "Two."]),
    ],
    ids=["text", "one text", "texts", "ids", "lists of ids"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_prompts(house: House, given: Any, texts: list[str], n: int) -> None:
    answer = complete(house, given, n=n)
    expected = [text for text in texts for _ in range(n)]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    # Each prompt counts once.
    assert answer["usage"]["prompt_tokens"] == sum(len(ids(text)) for text in texts)
    assert [streamed(house, given, n=n)[i]["text"] for i in range(len(expected))] == expected
    echoed = complete(house, given, n=n, echo=True, max_tokens=0)["choices"]
    assert [c["text"] for c in echoed] == [prompt(text) for text in texts for _ in range(n)]


def test_sixteen_tokens_if_none_are_asked_for(house: House) -> None:
    response = house.post("/v1/completions", {"prompt": prompt("long")}).json()
    assert response["usage"]["completion_tokens"] == 16
    assert response["choices"][0]["finish_reason"] == "length"


def test_usage_comes_last_in_a_stream(house: House) -> None:
    body = {"prompt": prompt("Hi."), "stream": True, "stream_options": {"include_usage": True}}
    lines = house.post("/v1/completions", body).text.strip().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == len(ids("Hi."))


def test_echo(house: House) -> None:
    whole = complete(house, ids("Hi."), echo=True)["choices"][0]["text"]
    assert whole == prompt("Hi.") + "Hi."
    assert streamed(house, prompt("Hi."), echo=True)[0]["text"] == whole


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_logprobs(house: House, count: int) -> None:
    text = "Grüße, 世界 🙂!"
    told = complete(house, prompt(text), logprobs=count)["choices"][0]["logprobs"]
    tokens = told["tokens"]
    raw = b"".join(
        bytes.fromhex(t.removeprefix("bytes:").replace("\\x", ""))
        if t.startswith("bytes:")
        else t.encode()
        for t in tokens
    )
    assert raw.decode() == text
    assert any(t.startswith("bytes:") for t in tokens)
    assert len(told["token_logprobs"]) == len(told["text_offset"]) == len(tokens)
    for token, offset in zip(tokens, told["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)
    for token, value, top in zip(tokens, told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == value
        assert len(top) <= max(count, 1)
    assert streamed(house, prompt(text), logprobs=count)[0]["logprobs"] == told


def test_stop(house: House) -> None:
    for stop in ("the", ["zzz", "the"]):
        for found in (
            complete(house, prompt("When in the course of"), stop=stop)["choices"][0],
            streamed(house, prompt("When in the course of"), stop=stop)[0],
        ):
            assert (found["text"], found["finish_reason"]) == ("When in ", "stop")


def test_a_form_is_kept(house: House) -> None:
    """As chat has it: other servers take it here too."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER}}
    text = complete(house, prompt('{"city": "Rome"}'), response_format=form)["choices"][0]["text"]
    assert json.loads(text) == {"city": "Rome"}
    told = complete(house, prompt("No."), response_format=form, max_tokens=30)["choices"][0]
    assert told["text"].startswith('{"city": "')


def test_cut_at_every_token(house: House) -> None:
    text = "Grüße, 世界 🙂!"
    full = complete(house, prompt(text))["usage"]["completion_tokens"]
    for cut in range(full):
        choice = complete(house, prompt(text), max_tokens=cut)["choices"][0]
        assert text.startswith(choice["text"].rstrip("\ufffd"))
        assert choice["finish_reason"] == "length"
        found = streamed(house, prompt(text), max_tokens=cut)[0]
        assert (found["text"], found["finish_reason"]) == (choice["text"], "length")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [10**400]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [["a"]]}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": ["a", ""]}, None),
        ({"prompt": [[1], []]}, None),
        ({"prompt": [99999]}, "prompt"),  # no id of the vocabulary
        ({"prompt": [[5], [99999]], "echo": True}, "prompt"),
        ({"prompt": ["a"] * 100}, None),  # more than can ever wait
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**400}, None),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 0}, "n"),
        ({"n": 33}, "n"),
        ({"stream": 1}, "stream"),
        ({"tools": [{}]}, "tools"),
        ({"stop": [1]}, "stop"),
    ],
)
def test_refused(house: House, fields: dict[str, Any], param: str | None) -> None:
    for stream in ({}, {"stream": True}):
        response = house.post("/v1/completions", {"prompt": prompt("a"), **stream, **fields})
        if fields.get("max_tokens", 0) > 10**9:  # as many as the context holds
            assert response.status_code == 200
            continue
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param


def test_null_is_absent(house: House) -> None:
    names = "suffix echo n logprobs best_of stop stream stream_options seed temperature top_p user"
    fields = dict.fromkeys(names.split())
    assert complete(house, prompt("Hi."), **fields)["choices"][0]["text"] == "Hi."
    assert complete(house, prompt("Hi."), suffix="", best_of=1)["choices"][0]["text"] == "Hi."
