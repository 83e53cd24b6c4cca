"""What cannot be enforced is refused, at once and in plain words; nothing is ignored in silence."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from orthrus_mlx import (
    Choices,
    Grammar,
    JsonSchema,
    OrthrusError,
    Regex,
    SamplingError,
    ToolCalls,
    mlx_generate,
)
from orthrus_mlx.decoding.constraints import Constraint, described
from orthrus_mlx.errors import ConstraintError

from .schemas import demo_tokenizer, grammar_of, matcher, model, vocabulary

# Every keyword of drafts 4 to 2020-12 that can make a value invalid: a schema, and such a value.
KEYWORDS: dict[str, tuple[Any, Any]] = {
    "type": ({"type": "integer"}, "a"),
    "enum": ({"enum": [1, "a"]}, 2),
    "const": ({"const": [1]}, [2]),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, 15),
    "minimum": ({"type": "number", "minimum": 3}, 2.5),
    "maximum": ({"type": "number", "maximum": 3}, 3.5),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 3}, 3),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 3}, 3),
    "minLength": ({"type": "string", "minLength": 3}, "ab"),
    "maxLength": ({"type": "string", "maxLength": 3}, "abcd"),
    "pattern": ({"type": "string", "pattern": "^a+$"}, "ab"),
    "format": ({"type": "string", "format": "date"}, "2026-99-99"),
    "items": ({"type": "array", "items": {"type": "integer"}}, ["a"]),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "integer"}]}, ["a"]),
    "additionalItems": (
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": False},
        [1, 2],
    ),
    "minItems": ({"type": "array", "minItems": 2}, [1]),
    "maxItems": ({"type": "array", "maxItems": 2}, [1, 2, 3]),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 1]),
    "contains": ({"type": "array", "contains": {"type": "integer"}}, ["a"]),
    "minContains": ({"type": "array", "contains": {"const": 1}, "minContains": 2}, [1]),
    "unevaluatedItems": ({"prefixItems": [{}], "unevaluatedItems": False}, [1, 2]),
    "properties": ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": "b"}),
    "required": ({"type": "object", "required": ["a"]}, {}),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, {"a": 1}),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}}},
        {"ab": "c"},
    ),
    "propertyNames": ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"b": 1}),
    "minProperties": ({"type": "object", "minProperties": 1}, {}),
    "maxProperties": ({"type": "object", "maxProperties": 1}, {"a": 1, "b": 2}),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1}),
    "dependentSchemas": ({"dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1}),
    "dependencies": ({"type": "object", "dependencies": {"a": ["b"]}}, {"a": 1}),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, {"a": 1}),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, 2),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, True),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}, 5),
    "not": ({"not": {"type": "integer"}}, 5),
    "if": ({"if": {"type": "integer"}, "then": {"minimum": 3}}, 2),
    "$ref": ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, "a"),
    "$ref beside": ({"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"type": "integer"}}}, 4),
    "$dynamicRef": (
        {"$dynamicRef": "#a", "$defs": {"a": {"$dynamicAnchor": "a", "type": "null"}}},
        1,
    ),
    "$recursiveRef": (
        {"properties": {"a": {"$recursiveRef": "#"}}, "additionalProperties": False},
        1,
    ),
    "$anchor": ({"$ref": "#a", "$defs": {"a": {"$anchor": "a", "type": "integer"}}}, "a"),
    "definitions": ({"$ref": "#/definitions/a", "definitions": {"a": {"type": "integer"}}}, "a"),
    "false": ({"type": "object", "properties": {"a": False}}, {"a": 1}),
    "nullable": ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": None}),
    "extends": ({"extends": {"type": "integer"}}, "a"),
    "disallow": ({"disallow": "string"}, "a"),
    "divisibleBy": ({"type": "integer", "divisibleBy": 7}, 15),
    "named again": ({"properties": {"a": {"type": "integer"}}}, '{"a": 1, "\\u0061": "b"}'),
    "counted twice": ({"type": "object", "minProperties": 2}, '{"a": 1, "a": 2}'),
    "contentEncoding": ({"type": "string", "contentEncoding": "base64"}, None),
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_is_enforced_or_refused(keyword: str) -> None:
    schema, invalid = KEYWORDS[keyword]
    try:
        constraint = JsonSchema(schema)
    except ConstraintError as error:
        assert "JSON Schema cannot be used" in str(error)
        return
    tokenizer = demo_tokenizer()
    state = matcher(tokenizer, grammar_of(constraint))
    text = invalid if keyword in ("named again", "counted twice") else json.dumps(invalid)
    ids = vocabulary(tokenizer).tokenize_str(text)
    whole = state.try_consume_tokens(ids) == len(ids) and state.is_accepting()
    assert not whole, "ignored in silence"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "maxlength": 3}, "did you mean maxLength"),
        ({"properties": {"a": {"minimun": 3}}}, "did you mean minimum"),
        ({"anyOf": [{"items": {"requierd": ["a"]}}]}, "did you mean required"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"$ref": "file:///etc/passwd"}, "etc/passwd"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "strin"}, "strin"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"minimum": 3, "maximum": 2, "type": "integer"}, "minimum"),
        ("{", "not valid JSON"),
        ("[" * 60_000, "not valid JSON"),
        ("[1]", "an array"),
        (3, "a number"),
        (None, "null"),
        (False, "a boolean"),
        ({"enum": [float("nan")]}, "as JSON"),
        ({"enum": [object()]}, "as JSON"),
        ({"enum": ["\ud800"]}, "hex escape"),
        ({"enum": [1, 10**20], "type": "integer"}, "64 bits"),
        ({"type": "a\x1b[31m"}, r"a\\x1b\[31m"),
    ],
)
def test_a_schema_that_cannot_be_used(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        JsonSchema(schema)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "long text": lambda: JsonSchema('{"enum": ["' + "a" * (10 << 20) + '"]}'),
    "many values": lambda: JsonSchema({"enum": list(range(20_000))}),
    "deep": lambda: JsonSchema(nested(900)),
    "deeper": lambda: JsonSchema(nested(sys.getrecursionlimit() * 2)),
    "deep text": lambda: JsonSchema('{"items":' * 10_000 + "{}" + "}" * 10_000),
    "products": lambda: JsonSchema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "abcd"]} for i in range(12)]}
    ),
    "long regex": lambda: Regex("a" * (10 << 20)),
    "deep regex": lambda: Regex("(" * 20_000 + "a" + ")" * 20_000),
    "deep grammar": lambda: Grammar("start: " + "(" * 9_000 + '"a"' + ")" * 9_000),
    "long choices": lambda: Choices(["a" * 1000 + str(n) for n in range(10_000)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_size_is_one_error(name: str) -> None:
    with pytest.raises(ConstraintError) as error:
        HOSTILE[name]()
    assert len(str(error.value)) < 2100


def test_large_repetitions_cost_nothing() -> None:
    """Counted, not unrolled."""
    start = time.monotonic()
    for pattern in ("(a+)+$", "a{1000000}", "(a{1000}){1000}"):
        Regex(pattern)
    JsonSchema({"type": "string", "maxLength": 10**6})
    JsonSchema({"type": "array", "maxItems": 20_000, "items": nested(50)})
    assert time.monotonic() - start < 60  # unrolled, memory would end first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regex("("), "unclosed group"),
        (lambda: Regex("(?=a)b"), "look-around"),
        (lambda: Regex(""), "empty"),
        (lambda: Regex(None), "expected text"),
        (lambda: Grammar("start: foo"), "unknown name"),
        (lambda: Grammar("start: @other"), "other"),
        (lambda: Grammar("root ::= (("), "GBNF"),
        (lambda: Grammar("  "), "empty"),
        (lambda: Choices([]), "list of texts"),
        (lambda: Choices("a,b"), "list of texts"),
        (lambda: Choices(["a", ""]), "empty"),
        (lambda: Choices(["a", 3]), "expected text"),
        (lambda: Choices(["\ud800"]), "surrogate"),
        (lambda: JsonSchema({}, separators=(";", ":")), "separators"),
        (lambda: JsonSchema({}, separators=", "), "separators"),
        (lambda: ToolCalls([]), "no tools"),
        (lambda: ToolCalls(None), "list of tools"),
        (lambda: ToolCalls({"name": "f"}), "list of tools"),
        (lambda: ToolCalls([{"name": "f"}]), '"function"'),
        (lambda: ToolCalls([{"function": {"name": "f"}}], "g"), "choice"),
        (lambda: ToolCalls([{"function": {"name": "f", "parameters": {"not": {}}}}]), "not"),
    ],
)
def test_other_descriptions_that_cannot_be_used(make: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        make()


def test_the_base_class_and_plain_values_are_no_constraint() -> None:
    for value in ({"type": "object"}, "a|b", Constraint):
        with pytest.raises(ConstraintError, match="expected JsonSchema"):
            mlx_generate(model(0, 4), [5], 2, constraint=value)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llguidance", "llguidance.gbnf_to_lark"):
        monkeypatch.setitem(sys.modules, name, None)
    for make in (
        lambda: JsonSchema({"type": "object"}),
        lambda: Regex("a"),
        lambda: Grammar('start: "a"'),
        lambda: Choices(["a"]),
    ):
        with pytest.raises(ConstraintError, match=r"pip install 'orthrus-mlx\[grammar\]'"):
            make()


def test_text_options_need_a_tokenizer() -> None:
    lm = model(99, 4)
    for options in ({"constraint": Regex("a")}, {"prediction": "a"}):
        with pytest.raises(OrthrusError, match="without its tokenizer"):
            mlx_generate(lm, [5], 2, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1024: 1.0}},
        {"logit_bias": {3: float("inf")}},
        {"logit_bias": [3]},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": 1e39},
        {"frequency_penalty": True},
        {"frequency_context_size": 0},
    ],
)
def test_penalties_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(SamplingError):
        mlx_generate(model(0, 4), [5], 2, **options)


@pytest.mark.parametrize("lexeme", ["[max_tokens=3]", '[stop="c"]', "[lazy]"])
def test_a_grammar_that_cannot_go_back(lexeme: str) -> None:
    """It could not take back what a draft was wrong about; refused at once, and in short."""
    lm = model(3, 16)
    lm.tokenizer = demo_tokenizer()
    grammar = Grammar(f'start: x "z"\nx{lexeme}: /[ab]*/')
    with pytest.raises(ConstraintError) as error:
        mlx_generate(lm, [5], 2, constraint=grammar)
    assert len(str(error.value)) < 200


def test_a_grammar_is_what_llguidance_takes() -> None:
    """Lark and GBNF alike."""
    for text in ('start: "a" /[0-9]+/', 'root ::= "a" [0-9]+'):
        grammar = described([Grammar(text).body()])
        ids = vocabulary(demo_tokenizer()).tokenize_str("a12")
        assert matcher(demo_tokenizer(), grammar).try_consume_tokens(ids) == len(ids)
