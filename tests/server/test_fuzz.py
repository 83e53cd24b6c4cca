"""Any body gets a proper error or a result, and the server lives on. `--full` sends 10,000."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.amount import few

from .house import House
from .test_leaving import idle, until

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, 10**30, "", "x", "\ud800", "\x00\x1b[2J", [], {},
    [None], [[]], {"a": None}, "a" * 3000, ["a", "b"], [1, 2], {"type": "text"}, "auto", "none",
    {"type": "json_object"}, {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
GOOD: dict[str, list[Any]] = {
    "messages": [
        [{"role": "user", "content": "Hello."}],
        [{"role": "user", "content": "weather"}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text"}]}],
    ],
    "prompt": ["Hello", ["a", "b"], [5, 6, 7], [[5], [6]]],
    "input": ["Hello", [{"role": "user", "content": "Hello."}]],
    "max_tokens": [1, 5, 20],
    "temperature": [0, 0.7, 2],
    "top_p": [0.5, 1],
    "top_k": [0, 5],
    "seed": [1, -1, 2**63],
    "n": [1, 3],
    "stop": ["l", ["e", "o"]],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
    "logprobs": [True, False, 2],
    "top_logprobs": [0, 3],
    "logit_bias": [{"5": 3}],
    "frequency_penalty": [0.5],
    "presence_penalty": [-1],
    "repetition_penalty": [1.2],
    "tools": [[{"type": "function", "function": {"name": "now", "parameters": {}}}]],
    "tool_choice": ["auto", "none", "required"],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "text"}, {"type": "json_object"}],
    "prediction": [{"type": "content", "content": "Hello."}],
    "chat_template_kwargs": [{"enable_thinking": False}],
    "reasoning_effort": ["none", "high"],
    "system": ["Be brief.", [{"type": "text", "text": "x"}]],
    "instructions": ["Be brief."],
    "max_output_tokens": [5],
    "stop_sequences": [["l"]],
    "thinking": [{"type": "disabled"}],
    "echo": [True],
    "nonsense": [1],
}
PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
]
NEEDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}


def some_body(draw: random.Random, path: str) -> Any:
    """A body that is right in most things."""
    body = {name: draw.choice(GOOD[name]) for name in draw.sample(sorted(GOOD), draw.randint(0, 6))}
    needed = NEEDS.get(path, "messages")
    if draw.random() < 0.9:
        body[needed] = draw.choice(GOOD[needed])
        body.setdefault("max_tokens", 5)
    for _ in range(draw.choice([0, 1, 1, 2])):
        body = spoilt(draw, body)
    return body


def spoilt(draw: random.Random, value: Any) -> Any:
    """JSON with one thing in it replaced."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(sorted(value))
        return {**value, name: spoilt(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], spoilt(draw, value[at]), *value[at + 1 :]]
    return draw.choice(ODD)


def check(path: str, response: Any) -> None:
    """A result, or an error that clients can read."""
    assert response.status_code in (200, 400, 413), (path, response.status_code, response.text)
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.status_code == 200
        for line in response.text.split("\n"):
            if line.startswith("data: ") and line != "data: [DONE]":
                json.loads(line.removeprefix("data: "))
        return
    body = response.json()
    if response.status_code != 200:
        error = body["error"]
        assert error["message"] and error["type"] == "invalid_request_error"
        assert "\x1b" not in json.dumps(error)


@pytest.mark.parametrize("path", PATHS)
def test_any_body(house: House, path: str) -> None:
    draw = random.Random(path)
    assert path in house.paths
    taken = 0
    memory = 0.0
    for n in range(few(60, of=2000)):
        content = json.dumps(some_body(draw, path)).encode()
        if draw.random() < 0.05:
            at = draw.randrange(len(content))
            content = content[:at] + draw.randbytes(3) + content[at + 3 :]
        response = house.http.post(path, content=content)
        check(path, response)
        taken += response.status_code == 200
        assert house.http.get("/health").status_code == 200
        if n == few(30, of=1000):
            memory = resident()
    assert taken > few(5, of=200)  # what is refused as a whole tests nothing
    assert resident() < memory + 200e6
    until(lambda: idle(house))


def test_any_bodies_at_once(house: House) -> None:
    def some(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(few(10, of=100)):
                path = draw.choice(PATHS[:1])
                content = json.dumps(some_body(draw, path))
                check(path, house.http.post(path, content=content))
        except BaseException as error:
            failed.append(error)

    failed: list[BaseException] = []
    threads = [threading.Thread(target=some, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    until(lambda: idle(house))


def resident() -> float:
    """Bytes of memory of this process, where the system tells."""
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * 4096.0
    except OSError:
        return 0.0
