"""Tool calls obey their schemas, and carry the tags as the tokenizer has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orthrus_mlx import ConstraintError, JsonSchema, ToolCalls, mlx_generate
from orthrus_mlx.decoding.grammar import compile_constraint

from .schemas import VOCAB_SIZE, demo_tokenizer, model, thinking_tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {"zone": "utc"}}\n</tool_call>'
BAD = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "delete_all", "arguments": {}}\n</tool_call>'


def takes(constraint: ToolCalls, text: str, tokenizer: Any = None) -> bool:
    """Whether a text is a whole answer."""
    tokenizer = tokenizer or thinking_tokenizer()
    ends = frozenset(tokenizer.eos_token_ids)
    grammar = compile_constraint(constraint, tokenizer, VOCAB_SIZE, ends, [])
    ids = [*tokenizer.encode(text, add_special_tokens=False), min(ends)]
    return grammar.cut(ids) == ids


@pytest.mark.parametrize("tokenizer", [thinking_tokenizer, demo_tokenizer])
@pytest.mark.parametrize(
    ("choice", "parallel", "taken", "refused"),
    [
        ("auto", True, ["Hello.", ROME, "Let me see. " + ROME, f"{ROME}\n{NOW}"], [BAD, OTHER]),
        ("auto", False, ["Hello.", ROME], [f"{ROME}\n{NOW}"]),
        ("required", True, [ROME, NOW, f"{NOW}\n{ROME}\n{NOW}"], ["Hello.", f"x {ROME}", BAD, ""]),
        ("required", False, [ROME, NOW], [f"{ROME}\n{NOW}", ROME + "\n"]),
        ("now", True, [NOW], [ROME, f"{NOW}\n{NOW}", "Hello."]),
    ],
)
def test_what_is_a_call(
    choice: str, parallel: bool, taken: list[str], refused: list[str], tokenizer: Any
) -> None:
    """Of a tokenizer without tags as single ids, text could be mistaken for a tag: all but that."""
    constraint = ToolCalls(TOOLS, choice, parallel)
    for text in taken:
        assert takes(constraint, text, tokenizer()), text
    if choice == "auto" and tokenizer is demo_tokenizer:
        return
    for text in refused:
        assert not takes(constraint, text, tokenizer()), text


def test_text_in_the_place_of_calls_may_have_a_form() -> None:
    constraint = ToolCalls(TOOLS, text=JsonSchema({"type": "array", "items": {"type": "integer"}}))
    for text in ("[1, 2]", "[]", ROME, f"{ROME}\n{NOW}"):
        assert takes(constraint, text), text
    for text in ("Hello.", "[1, 2]" + ROME, '["a"]', "", BAD):
        assert not takes(constraint, text), text
    required = ToolCalls(TOOLS, "required", text=JsonSchema(True))
    assert takes(required, ROME) and not takes(required, "[1]")
    with pytest.raises(ConstraintError, match="text is a str"):
        ToolCalls(TOOLS, text="[]")  # type: ignore[arg-type]


def test_parameters_may_be_json_text() -> None:
    tools = [{"function": {"name": "get_weather", "parameters": json.dumps(WEATHER)}}]
    assert takes(ToolCalls(tools, "required"), ROME)
    assert not takes(ToolCalls(tools, "required"), BAD)


def test_a_call_may_follow_thinking() -> None:
    constraint = ToolCalls(TOOLS, "required")
    assert takes(constraint, f"<think>\nRome, or {{Oslo?\n</think>\n\n{ROME}")
    assert not takes(constraint, f"<think>\n{ROME}\n</think>\n\nHello.")


@pytest.mark.parametrize("seed", range(4))
def test_every_mode_writes_the_same_calls(seed: int) -> None:
    tokenizer, lm = thinking_tokenizer(), model(seed, 9)
    lm.tokenizer = tokenizer
    closed = tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    options: dict[str, Any] = {"constraint": ToolCalls(TOOLS, "required"), "max_tokens": 70}
    ids = list(mlx_generate(lm, closed, tokenizer.eos_token_ids, mode="ar", **options))
    for way in ({"cycle": "two-pass"}, {"cycle": "one-pass"}, {"cycle": "alternating"}):
        again = mlx_generate(lm, closed, tokenizer.eos_token_ids, mode="parallel", **way, **options)
        assert list(again) == ids
    text = tokenizer.decode(ids)
    call = text.split("<tool_call>\n")[1].split("\n</tool_call>")
    if len(call) > 1:
        assert json.loads(call[0])["name"] in ("get_weather", "now")


def test_most_of_a_call_is_forced() -> None:
    """Names and braces cost no decision of the model."""
    tokenizer = thinking_tokenizer()
    ends = frozenset(tokenizer.eos_token_ids)
    closed = tokenizer.encode("<think>\n\n</think>\n\n", add_special_tokens=False)
    required = ToolCalls(TOOLS[:1], "required")
    grammar = compile_constraint(required, tokenizer, VOCAB_SIZE, ends, closed)
    ids = tokenizer.encode(f"{ROME}\n{ROME}", add_special_tokens=False)
    forced, place = 0, 0
    while place < len(ids):
        must = grammar.forced(len(ids) - place)
        assert ids[place : place + len(must)] == must
        forced += len(must)
        step = must or ids[place : place + 1]
        grammar.advance(step)
        place += len(step)
    assert forced > len(ids) / 2
