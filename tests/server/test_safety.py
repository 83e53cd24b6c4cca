"""Who may ask: keys, hosts, pages of other sites, sizes; and errors that programs can read."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from .conftest import SCRIPT
from .house import Actor, House, serving

HELLO = {"messages": [{"role": "user", "content": "Hello."}]}


@pytest.fixture(scope="module")
def locked() -> Any:
    with serving(Actor(SCRIPT), settings={"keys": ["first key", "schlüssel"]}) as house:
        yield house


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "first key"}, 401),
        ({"x-api-key": "first"}, 401),
        ({"Authorization": "Bearer first key"}, 200),
        ({"authorization": "bearer first key"}, 200),
        ({"x-api-key": "first key"}, 200),
    ],
)
def test_a_key_is_needed(locked: House, headers: dict[str, str], status: int) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/metrics", "/nothing"):
        if path == "/v1/chat/completions":
            response = locked.post(path, HELLO, headers=headers)
        else:
            response = locked.http.get(path, headers=headers)
        if status == 401:
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
        else:
            assert response.status_code == (404 if path == "/nothing" else 200)
    assert locked.http.get("/health").status_code == 200  # of which a supervisor asks


def test_without_keys_any_key_and_any_model_do(house: House) -> None:
    headers = {"Authorization": "Bearer whatever"}
    response = house.post("/v1/chat/completions", {**HELLO, "model": "gpt-9"}, headers=headers)
    assert response.status_code == 200
    assert response.json()["model"] == "test-model"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "localhost.evil", "["])
def test_other_hosts_are_refused(house: House, host: str) -> None:
    """So that a name of an attacker's that leads here reaches nothing."""
    response = house.http.get("/v1/models", headers={"Host": host})
    assert response.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1", "[::1]:8080"])
def test_own_hosts_are_taken(house: House, host: str) -> None:
    assert house.http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_may_not_ask(house: House) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        response = house.post("/v1/chat/completions", HELLO, headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    own = house.post("/v1/chat/completions", HELLO, headers={"Origin": house.url})
    assert own.status_code == 200


def test_pages_that_were_allowed_may() -> None:
    page = "https://page.example"
    with serving(Actor(SCRIPT), settings={"origins": [page]}) as house:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        before = house.http.request("OPTIONS", "/v1/chat/completions", headers=asked)
        assert before.headers["access-control-allow-origin"] == page
        response = house.post("/v1/chat/completions", HELLO, headers={"Origin": page})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == page
        other = house.post("/v1/chat/completions", HELLO, headers={"Origin": "https://b.example"})
        assert other.status_code == 403


def test_bodies_have_a_limit(house: House) -> None:
    response = house.http.post("/v1/chat/completions", content=b"x" * ((32 << 20) + 1))
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "request_too_large"

    def chunks() -> Any:
        for _ in range(33):
            yield b" " * (1 << 20)

    assert house.http.post("/v1/chat/completions", content=chunks()).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/what", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
def test_every_error_is_an_object(house: House, method: str, path: str, status: int) -> None:
    response = house.http.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"] and error["type"]


def test_what_is_no_http_is_answered(house: House) -> None:
    host, port = house.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as link:
        link.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert b"400" in link.recv(4096)
    assert house.http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
        ({"logit_bias": {"99999": 1}}, None),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, None),
    ],
)
def test_what_cannot_be_honoured_is_named(
    house: House, fields: dict[str, Any], param: str | None
) -> None:
    response = house.post("/v1/chat/completions", {**HELLO, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


def test_null_is_as_good_as_absent(house: House) -> None:
    names = """max_tokens temperature top_p top_k min_p seed stop n stream stream_options logprobs
        top_logprobs logit_bias presence_penalty frequency_penalty repetition_penalty tools
        tool_choice parallel_tool_calls response_format reasoning_effort chat_template_kwargs
        enable_thinking prediction user metadata functions modalities"""
    answer = house.post("/v1/chat/completions", {**HELLO, **dict.fromkeys(names.split())})
    assert answer.json()["choices"][0]["message"]["content"] == "Hello."


def test_unknown_fields_are_counted_and_named_once() -> None:
    with serving(Actor(SCRIPT)) as house:
        for _ in range(3):
            house.chat("Hello.", colour="red")
        assert sum("colour" in line for line in house.log) == 1
        assert 'unknown_fields_total{field="colour"} 3' in house.http.get("/metrics").text


def test_bodies_that_are_no_json(house: House) -> None:
    for content in (b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"1" * 9999):
        response = house.http.post("/v1/chat/completions", content=content)
        assert response.status_code == 400, content[:20]
        assert response.json()["error"]["message"]
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    assert house.post("/v1/chat/completions", {**HELLO, "metadata": deep}).status_code == 400


def test_metrics_are_prometheus_text(house: House) -> None:
    house.chat("Hello.")
    text = house.http.get("/metrics").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values["orthrus_mlx_completion_tokens_total"] > 0
    assert values["orthrus_mlx_healthy"] == 1
    assert len(values) == len({*values})


def test_models_are_listed(house: House) -> None:
    listed = house.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["test-model"]
    assert house.http.get("/v1/models/test-model").json()["object"] == "model"
    assert json.dumps(listed)
