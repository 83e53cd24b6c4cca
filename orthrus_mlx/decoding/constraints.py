"""What an answer may be: a JSON Schema, a regular expression, a grammar, one of some choices.

These describe; `grammar` turns a description into what the tokenizer's ids may be. llguidance does
the work for both.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import ConstraintError, brief

MAX_BYTES = 64 << 10  # of one description; compiling a larger one takes seconds
# Work that compiling may take before it is given up: some 50 ms.
LEXER_FUEL = 200_000

# Keywords of JSON Schema that llguidance enforces, by what they hold. It refuses some others by
# itself; the rest are notes (title, description, x-...), or misspelt.
_ONE = ("items", "additionalProperties", "additionalItems")  # schemas
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = """type enum const format pattern minLength maxLength multipleOf minimum maximum $ref
    exclusiveMinimum exclusiveMaximum minItems maxItems required minProperties maxProperties"""
ENFORCED = (*_VALUES.split(), *_ONE, *_SEVERAL[:-1], *_NAMED)
OBSOLETE = ("extends", "disallow", "divisibleBy")  # of draft 3, which llguidance takes for notes

Tag = Callable[[str], str]  # how a grammar names a tag, by its text


@dataclass(frozen=True)
class Constraint(ABC):
    """Base of all constraints.

    Raises:
        ConstraintError: at once, for a description that cannot be used: what is wrong, and where.
    """

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """The answer, without what stands before it, as one of llguidance's grammars."""

    def check(self) -> None:
        """Refuse what llguidance cannot enforce."""
        llguidance = library()
        text = described([self.body()])
        if len(text) > MAX_BYTES:
            raise ConstraintError(
                f"{self._name} is {len(text):,} bytes; at most {MAX_BYTES:,} are taken."
            )
        limits = llguidance.LLParserLimits(initial_lexer_fuel=LEXER_FUEL)
        problem = llguidance.LLMatcher.validate_grammar(text, limits=limits)
        if problem:
            raise ConstraintError(f"{self._name} cannot be used: {readable(problem)}.")

    @property
    def _name(self) -> str:
        return {JsonSchema: "The JSON Schema", Regex: "The regular expression"}.get(
            type(self), f"The {type(self).__name__.lower()}"
        )


@dataclass(frozen=True)
class JsonSchema(Constraint):
    """JSON that a schema (draft 2020-12 and before) describes.

    Keywords that cannot be enforced are refused, and nothing is fetched for a `$ref`. Properties
    come in the schema's order.

    Attributes:
        schema: a mapping, True for any JSON, or either as JSON text.
        separators: between items and behind keys, as `json.dumps` has them.
        whitespace_flexible: let the model put white space where JSON allows it, any amount.
    """

    schema: Mapping[str, Any] | str | bool
    separators: tuple[str, str] = (", ", ": ")
    whitespace_flexible: bool = False

    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """The schema, with the white space asked for."""
        item, key = self.separators
        # All of them, so that a schema that brings some of its own changes nothing.
        guidance = {
            "whitespace_flexible": self.whitespace_flexible,
            "item_separator": "," if self.whitespace_flexible else item,
            "key_separator": ":" if self.whitespace_flexible else key,
            "coerce_one_of": False,
            "lenient": False,
            # With \\u a name could be written again, as another property of any kind.
            "json_allowed_escapes": 'nrbtf\\"',
        }
        schema = self._parsed()
        return {"json_schema": {**({} if schema is True else schema), "x-guidance": guidance}}

    def _parsed(self) -> Any:
        schema: Any = self.schema
        if isinstance(schema, str):
            if len(schema) > MAX_BYTES:
                raise ConstraintError(
                    f"The JSON Schema is {len(schema):,} characters; at most {MAX_BYTES:,} bytes "
                    "are taken."
                )
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"The JSON Schema is not valid JSON: {error}.") from None
        if schema is not True and not isinstance(schema, Mapping):
            raise ConstraintError(
                f"The JSON Schema is {json_type(schema)}; expected an object, or true for any JSON."
            )
        return schema

    def check(self) -> None:
        """Refuse separators that would not make JSON, then the schema."""
        parts = self.separators
        pair = isinstance(parts, Sequence) and len(parts) == 2
        if not pair or not all(isinstance(part, str) for part in parts):
            raise ConstraintError(f'separators is {parts!r}; expected two, as in (", ", ": ").')
        if [part.strip(" \t\r\n") for part in parts] != [",", ":"]:
            raise ConstraintError(
                f'separators is {parts!r}; expected "," and ":", each with white space or not.'
            )
        super().check()
        for part in subschemas(self._parsed()):
            self._check_part(part)

    def _check_part(self, schema: Mapping[str, Any]) -> None:
        """Refuse what llguidance takes, and does not do."""
        least, required = schema.get("minProperties", 0), schema.get("required", ())
        if least > len(required) + 1:
            raise ConstraintError(
                f"The JSON Schema cannot be used: minProperties is {least}, with {len(required)} "
                "properties required; one of another name could be written twice."
            )
        for bound, other in (("exclusiveMinimum", "aximum"), ("exclusiveMaximum", "inimum")):
            ends = [schema.get(name) for name in (bound, f"m{other}", f"exclusiveM{other}")]
            if schema.get("type") != "integer" and _near_a_whole_number(*ends):
                raise ConstraintError(
                    f"The JSON Schema cannot be used: {ends[0]} itself would be taken, in spite of "
                    f"{bound}, where all numbers are less than 1 from it."
                )
        for value in [*schema.get("enum", ()), schema.get("const")]:
            if isinstance(value, int) and not -(2**63) < value < 2**63 - 1:
                raise ConstraintError(
                    f"The JSON Schema cannot be used: the whole number {brief(ValueError(value))} "
                    "has more than 64 bits."
                )
        for name in (str(name) for name in schema if name not in ENFORCED):
            near = get_close_matches(name.lower(), map(str.lower, ENFORCED), n=1, cutoff=0.85)
            meant = [keyword for keyword in ENFORCED if keyword.lower() in near]
            if meant or name in OBSOLETE:
                raise ConstraintError(
                    f"The JSON Schema cannot be used: its keyword {name!r} would be ignored"
                    + (f"; did you mean {meant[0]}?" if meant else ".")
                )


@dataclass(frozen=True)
class Regex(Constraint):
    """Text that all of a regular expression matches, in Rust's syntax (no look-around).

    Attributes:
        pattern: the expression.
    """

    pattern: str

    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """The expression as a grammar of one rule."""
        _check_text("The regular expression", self.pattern)
        return _grammar(library().LLMatcher.grammar_from_regex(self.pattern))


@dataclass(frozen=True)
class Grammar(Constraint):
    """Text that a context-free grammar derives.

    Attributes:
        text: in llguidance's variant of Lark, or in GBNF.
    """

    text: str

    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """The grammar, in Lark."""
        _check_text("The grammar", self.text)
        library()
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            return {"lark_grammar": any_to_lark(self.text)}
        except Exception as error:
            raise ConstraintError(f"The grammar cannot be read as GBNF: {brief(error)}.") from None


@dataclass(frozen=True)
class Choices(Constraint):
    """One of some texts, as it stands.

    Attributes:
        options: the texts.
    """

    options: Sequence[str]

    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """A grammar of alternatives."""
        texts = self.options
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise ConstraintError(f"options is {texts!r}; expected a list of texts.")
        for text in texts:
            _check_text("A choice", text)
        return {"lark_grammar": "start: " + " | ".join(map(quoted, texts))}

    @property
    def _name(self) -> str:
        return "The list of choices"


@dataclass(frozen=True)
class ToolCalls(Constraint):
    """Calls of tools as Qwen3 writes them: JSON between `<tool_call>` tags, one a line.

    Attributes:
        tools: as OpenAI's API has them: {"type": "function", "function": {"name": ...,
            "parameters": a JSON Schema}}.
        choice: "auto" for text, calls or both; "required" for at least one call; or the name of
            the tool to call.
        parallel: whether there may be several calls.
        text: what text that stands in the place of calls may be; None for any, and calls behind it.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str = "auto"
    parallel: bool = True
    text: JsonSchema | None = None
    _schemas: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self) -> None:
        """Refuse what is no list of tools, or a choice of another tool."""
        if isinstance(self.tools, str | Mapping) or not isinstance(self.tools, Sequence):
            raise ConstraintError(
                f"tools is a {type(self.tools).__name__}; expected a list of tools."
            )
        for tool in self.tools:
            function = tool.get("function") if isinstance(tool, Mapping) else None
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
                raise ConstraintError(
                    f"A tool is {brief(ValueError(repr(tool)))}; expected a mapping with a "
                    '"function" that has a "name".'
                )
            parameters = JsonSchema(function.get("parameters") or {"type": "object"})
            self._schemas[name] = parameters.body()["json_schema"]
        if not self._schemas:
            raise ConstraintError("There are no tools to call.")
        if self.text is not None and not isinstance(self.text, JsonSchema):
            raise ConstraintError(
                f"text is a {type(self.text).__name__}; expected a JsonSchema, or None."
            )
        if self.choice not in ("auto", "required", *self._schemas):
            raise ConstraintError(
                f"choice is {self.choice!r}; expected auto, required, or one of "
                f"{', '.join(self._schemas)}."
            )
        super().check()

    def body(self, tag: Tag = json.dumps) -> dict[str, Any]:
        """Text and calls; a tag is one token where the tokenizer has it as one."""
        any_of = self.choice in ("auto", "required")
        names = list(self._schemas) if any_of else [self.choice]
        calls = 'call ("\\n" call)*' if self.parallel and any_of else "call"
        start, text = f"TEXT? ({calls})?", "TEXT: /(.|\\n)+/"
        if self.text is not None:
            start = f"text | {calls}"
            text = f"text: %json {json.dumps(self.text.body()['json_schema'])}"
        rules = [
            f"start: {start if self.choice == 'auto' else calls}",
            text,
            f'call: {tag("<tool_call>")} "\\n" ({" | ".join(f"f{n}" for n in range(len(names)))}) '
            f'"\\n" {tag("</tool_call>")}',
        ]
        for n, name in enumerate(names):
            head = f'{{"name": {json.dumps(name)}, "arguments": '
            schema = json.dumps(self._schemas[name])
            rules.append(f'f{n}: {quoted(head)} %json {schema} "}}"')
        return {"lark_grammar": "\n".join(rules)}

    @property
    def _name(self) -> str:
        return "The grammar of the tools"


def subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and those within, where they are mappings."""
    if not isinstance(schema, Mapping):
        return
    yield schema
    inner = [schema.get(name) for name in _ONE]
    inner += [s for name in _SEVERAL if isinstance(part := schema.get(name), list) for s in part]
    inner += [
        s for name in _NAMED if isinstance(part := schema.get(name), Mapping) for s in part.values()
    ]
    for part in inner:
        yield from subschemas(part)


def described(grammars: Sequence[Mapping[str, Any]]) -> str:
    """Grammars, the first of which may name the others, as llguidance reads them.

    Raises:
        ConstraintError: for values that are not JSON.
    """
    try:
        return json.dumps({"grammars": grammars}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"The JSON Schema cannot be written as JSON: {error}.") from None


def library() -> Any:
    """The module llguidance.

    Raises:
        ConstraintError: where it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise ConstraintError(
            "Constraints need llguidance: pip install 'orthrus-mlx[grammar]'."
        ) from None
    return llguidance


def quoted(text: str) -> str:
    """Text as a string of Lark, which has no DEL character in it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def readable(problem: str) -> str:
    """What llguidance says is wrong: one line of text without its picture of where."""
    text = problem.partition("<backtrace>")[0].replace("<non-verbose/>", "").strip()
    first, _, rest = text.partition("\n")
    if " regex parse error:" in first and "\nerror: " in rest:
        first = rest.rpartition("\nerror: ")[2].partition("\n")[0]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in first)[:500].rstrip(" .")


def json_type(value: Any) -> str:
    """What a value is called in JSON, for messages."""
    kinds: list[tuple[Any, str]] = [(bool, "a boolean"), (str, "a string"), (list, "an array")]
    kinds += [(int | float, "a number"), (type(None), "null")]
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def _near_a_whole_number(bound: Any, *others: Any) -> bool:
    numbers = [n for n in others if isinstance(n, int | float)]
    whole = isinstance(bound, int | float) and bound == int(bound)
    return whole and any(abs(n - bound) < 1 for n in numbers)


def _grammar(text: str) -> dict[str, Any]:
    """The one grammar of a description that llguidance wrote."""
    found: dict[str, Any] = json.loads(text)["grammars"][0]
    return {key: value for key, value in found.items() if value is not None and key != "name"}


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ConstraintError(f"{what} is {text!r}; expected text.")
    if not text.strip():
        raise ConstraintError(f"{what} is empty.")
    if len(text) > MAX_BYTES:
        raise ConstraintError(
            f"{what} is {len(text):,} characters; at most {MAX_BYTES:,} bytes are taken."
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"{what} holds half of a surrogate pair.") from None
