"""What OpenAI's APIs have in common: sampling fields, messages, tools, figures, errors."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from ..decoding.constraints import JsonSchema
from ..errors import RequestError
from .ask import MAX_SEED, Ask, Service
from .events import Figures, Logprob
from .fields import Fields

MOST_ANSWERS, MOST_STOPS, MOST_TOP = 32, 16, 20
# Fields that say who asks, or how to bill and store it: they change no answer here.
BOOKKEEPING = (
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "verbosity", "model", "stream", "stream_options",
)  # fmt: skip
FORMATS = ("text", "json_object", "json_schema")
PENALTIES = ("repetition", "presence", "frequency")
# Variables of a chat template that are said by fields of their own.
NOT_TEMPLATE = (
    "tools", "chat_template", "add_generation_prompt", "continue_final_message", "messages",
    "tokenize", "return_dict", "documents",
)  # fmt: skip


def read_sampling(fields: Fields, ask: Ask) -> None:
    """Read how answers are sampled and what ends them."""
    options: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.count("top_k"),
        "min_p": fields.number("min_p", 0, 1),
        "logit_bias": _logit_bias(fields),
    }
    for name in PENALTIES:
        least, most = (0, 10) if name == "repetition" else (-2, 2)
        options[f"{name}_penalty"] = fields.number(f"{name}_penalty", least, most)
        size = f"{name}_context_size"
        options[size] = fields.count(size, 1, 1 << 20)
    ask.options |= {name: value for name, value in options.items() if value is not None}
    seed = fields.count("seed", 1 - MAX_SEED, MAX_SEED - 1)
    ask.seed = None if seed is None else seed % MAX_SEED
    ask.n = fields.count("n", 1, MOST_ANSWERS) or 1
    ask.stops = read_stops(fields, "stop")


def read_stops(fields: Fields, name: str) -> list[str]:
    """Stop strings: one, or a list of some."""
    given = fields.get(name)
    stops = [given] if isinstance(given, str) else given or []
    if not isinstance(stops, list) or not all(isinstance(s, str) and len(s) < 1000 for s in stops):
        raise fields.refuse(name, "is no string and no list of strings.")
    if len(stops) > MOST_STOPS:
        raise fields.refuse(name, f"has {len(stops)} strings; at most {MOST_STOPS} are taken.")
    return [stop for stop in stops if stop]


def _logit_bias(fields: Fields) -> dict[int, float] | None:
    given = fields.object("logit_bias")
    if given is None:
        return None
    bias = {}
    for token in given.raw:
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise fields.refuse("logit_bias", f"names {token!r:.40}, which is no token id.")
        bias[int(token)] = given.needed(token, given.number(token, -100, 100))
    return bias or None


def read_prediction(fields: Fields, ask: Ask) -> None:
    """Read OpenAI's Predicted Outputs: text that the answer will be much like."""
    prediction = fields.object("prediction")
    if prediction is not None:
        prediction.one_of("type", ["content"])
        text = prediction.needed("content", read_text(prediction, "content"))
        if text:
            ask.options["prediction"] = text


def read_template(fields: Fields, ask: Ask) -> None:
    """Read variables for the chat template."""
    given = fields.object("chat_template_kwargs")
    if given is not None:
        for name in NOT_TEMPLATE:
            if name in given.raw:
                raise given.refuse(name, "is not a variable of the chat template to be set here.")
        ask.template |= given.raw
    thinking = fields.flag("enable_thinking")
    if thinking is not None:
        ask.template["enable_thinking"] = thinking
    read_effort(fields, "reasoning_effort", ask)


def read_effort(fields: Fields, name: str, ask: Ask) -> None:
    """Read how much to think: not at all, or as the model does it."""
    effort = fields.text(name)
    if effort in ("none", "minimal"):
        ask.template.setdefault("enable_thinking", False)


def read_format(kind: str | None, schema: Callable[[], Any]) -> JsonSchema | None:
    """The constraint of a response format; `schema` reads it where one is named."""
    if kind == "json_object":
        return JsonSchema({"type": "object"})
    return JsonSchema(schema()) if kind == "json_schema" else None


def read_response_format(fields: Fields, ask: Ask) -> None:
    """Read what form answers are to have."""
    form = fields.object("response_format")
    if form is not None:
        kind = form.one_of("type", FORMATS)

        def schema() -> Any:
            given = form.needed("json_schema", form.object("json_schema"))
            given.skip("name", "description", "strict")
            return given.needed("schema", given.object("schema")).raw

        ask.constraint = read_format(kind, schema)


def read_text(fields: Fields, name: str) -> str | None:
    """Text, or a list of parts that are text."""
    given = fields.get(name)
    if given is None or isinstance(given, str):
        return given
    texts = []
    for part in fields.objects(name):
        kind = part.text("type") or "text"
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise part.refuse("type", f"is {kind!r:.40}; this model reads text alone.")
        texts.append(part.text("refusal" if kind == "refusal" else "text") or "")
        part.skip("annotations", "logprobs", "cache_control", "prompt_cache_breakpoint")
    return "".join(texts)


def read_arguments(text: str) -> Any:
    """The arguments of an earlier call, in one form; as they are where they are no JSON."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def order_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the results of calls in the order of the calls.

    Clients may send them as they came; Qwen3's template shows no ids that would tell them apart.
    """
    ordered: list[dict[str, Any]] = []
    for is_result, run in groupby(messages, lambda m: m["role"] == "tool"):
        calls = ordered[-1].get("tool_calls", ()) if is_result and ordered else ()
        places = {call["id"]: place for place, call in enumerate(calls)}
        ordered += sorted(run, key=lambda m: places.get(m.get("tool_call_id"), len(places)))
    return ordered


def tool(name: str, description: str | None, parameters: Any, strict: bool | None) -> Any:
    """A tool as chat templates take it."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = parameters if parameters else {"type": "object", "properties": {}}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def read_tool(fields: Fields, schema: str = "parameters") -> Any:
    """A tool of a request: {"name", "description", "parameters", "strict"}.

    Args:
        fields: the tool.
        schema: what its parameters are called.
    """
    name = fields.needed("name", fields.text("name"))
    if not 0 < len(name) <= 128:
        raise fields.refuse("name", "is empty, or longer than 128 characters.")
    parameters = fields.object(schema)
    fields.skip("type", "defer_loading")
    return tool(
        name,
        fields.text("description"),
        None if parameters is None else parameters.raw,
        fields.flag("strict"),
    )


def check_choice(fields: Fields, ask: Ask) -> None:
    """Refuse a choice of tools that the tools do not allow."""
    names = [tool["function"]["name"] for tool in ask.tools]
    if len(set(names)) < len(names):
        raise fields.refuse("tools", "has two tools of one name.")
    if ask.tool_choice in ("auto", "none"):
        return
    if not names:
        raise fields.refuse("tool_choice", f"is {ask.tool_choice!r:.80}, and there are no tools.")
    if ask.tool_choice != "required" and ask.tool_choice not in names:
        raise fields.refuse(
            "tool_choice", f"names {ask.tool_choice!r:.80}; the tools are {', '.join(names)}."
        )


def call_id() -> str:
    """A name for a call, which its result will bear."""
    return f"call_{secrets.token_hex(12)}"


def token_logprobs(logprobs: Iterable[Logprob]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens, each with the likeliest ones at its place."""

    def one(token: Logprob) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}

    return [{**one(token), "top_logprobs": [one(t) for t in token.top]} for token in logprobs]


def usage(figures: list[Figures], n: int = 1) -> dict[str, Any]:
    """OpenAI's usage of all answers to a request; a prompt counts once for its `n` answers."""
    read = sum(f.prompt_tokens for f in figures[::n])
    written = sum(f.completion_tokens for f in figures)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(f.cached_tokens for f in figures[::n])},
        "completion_tokens_details": {
            "reasoning_tokens": sum(f.reasoning_tokens for f in figures),
            "accepted_prediction_tokens": sum(f.accepted_prediction_tokens for f in figures),
            "rejected_prediction_tokens": sum(f.rejected_prediction_tokens for f in figures),
        },
    }


def extras(figures: list[Figures]) -> dict[str, Any]:
    """What we add to a response: how the answers were made, so that they can be made again."""
    passes = sum(f.forward_passes for f in figures)
    written = sum(f.completion_tokens for f in figures)
    return {
        "seed": figures[0].seed,
        "numerics": figures[0].numerics,
        "forward_passes": passes,
        "drafted_tokens": sum(f.drafted_tokens for f in figures),
        "accepted_tokens": sum(f.accepted_tokens for f in figures),
        "tokens_per_forward": round(written / passes, 3) if passes else 0.0,
        "tokens_per_second": round(written / max(f.seconds for f in figures), 3)
        if any(f.seconds for f in figures)
        else 0.0,
    }


def identify(service: Service, ask: Ask) -> str:
    """The system_fingerprint of a request's answers."""
    exact = ask.seed is not None and service.worker.exact
    numerics = "exact" if exact else service.options.get("numerics", "fast")
    return service.fingerprint(numerics)


def error_body(error: RequestError, kind: str) -> Mapping[str, Any]:
    """An error as OpenAI's clients read it."""
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }
