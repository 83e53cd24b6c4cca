"""Bodies that no client should send: each gets an answer or an error that names what is wrong."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.amount import few

from .house import House

ROME = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"type": "function", "name": "now", "description": "The time.", "parameters": ROME}
SPACE = {"type": "namespace", "name": "sky", "description": "", "tools": [FUNCTION]}
FORM = {"type": "json_schema", "name": "x", "schema": ROME, "strict": True}
CHAT_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": ROME}}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "now", "arguments": "{}"}
TURNS: list[Any] = [
    {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {**CALL, "namespace": "sky"},
    {"type": "function_call_output", "call_id": "c", "output": "Noon."},
]
SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "seed": 1,
    "stop": ["x"],
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "n": 1,
    "stream": False,
    "user": "me",
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "Hi."},
    "return_token_ids": True,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **SAMPLING,
        "prompt": [[5, 6], [7]],
        "max_tokens": 3,
        "logprobs": 2,
        "echo": False,
        "suffix": "",
        "best_of": 1,
        "response_format": CHAT_FORM,
        "stream_options": {"include_usage": True},
    },
    "/v1/chat/completions": {
        **SAMPLING,
        "messages": [
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]},
            {"role": "tool", "content": "Noon.", "tool_call_id": "c"},
        ],
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [{"type": "function", "function": {**FUNCTION, "type": None}}],
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "response_format": CHAT_FORM,
        "chat_template_kwargs": {"a": 1},
    },
    "/v1/responses": {
        **SAMPLING,
        "input": TURNS,
        "instructions": "Be brief.",
        "max_output_tokens": 3,
        "tools": [FUNCTION, SPACE, {"type": "web_search"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [FUNCTION]},
        "parallel_tool_calls": True,
        "text": {"format": FORM},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "truncation": "auto",
    },
}
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e308, 10**400, -(2**63), 2**64, "", "x", "\x00", "\ud800",
    "auto", "required", "function", "namespace", [], {}, [[]], [{}], [None], {"": None},
    {"type": "function"}, {"type": []}, "<|im_end|>", "é" * 500, [0] * 300, {"a": {"b": [1]}},
]  # fmt: skip
TYPES: dict[str, Any] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
    "/v1/responses": Response,
}


def changed(value: Any, draw: random.Random) -> Any:
    """A value with something odd somewhere in it."""
    if draw.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return draw.choice(ODD)
    if isinstance(value, list):
        found = list(value)
        at = draw.randrange(len(found))
        found[at] = changed(found[at], draw)
        return found
    name = draw.choice(list(value))
    return {**value, name: changed(value[name], draw)}


def odd_body(path: str, draw: random.Random) -> dict[str, Any]:
    """A body of some fields, one or two of which are odd."""
    fields = BODIES[path]
    first = next(name for name in ("prompt", "messages", "input") if name in fields)
    chosen = draw.sample(sorted(fields), draw.randint(1, 6))
    body = {name: fields[name] for name in (first, *chosen)}
    for _ in range(draw.randint(0, 2)):
        name = draw.choice(list(body))
        body[name] = changed(body[name], draw)
    longest = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    return {longest: 3, **body}


@pytest.mark.parametrize("path", BODIES)
def test_an_answer_or_an_error(house: House, path: str) -> None:
    answered = 0
    for seed in range(few(30, of=3000)):
        body = odd_body(path, random.Random(seed))
        response = house.http.post(path, content=json.dumps(body))
        note = f"{seed}: {json.dumps(body)[:500]}: {response.text[:500]}"
        if response.status_code == 200:
            answered += 1
            if body.get("stream"):
                assert '"error"' not in response.text.replace('"error": null', ""), note
            elif "NaN" not in response.text:
                TYPES[path].model_validate(response.json())
        else:
            assert response.status_code == 400, note
            error = response.json()["error"]
            assert error["message"], note
            assert error["type"] == "invalid_request_error", note
    assert answered > 3
    assert house.http.get("/health").status_code == 200
