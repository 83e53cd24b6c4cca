"""Thinking, text and calls come apart as they were put together, wherever the ids are cut."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthrus_mlx.server.events import CallArguments, CallBegun, CallEnded, Said, Thought
from orthrus_mlx.server.pieces import Pieces, Tags
from tests.structured.schemas import demo_tokenizer

from .house import tokenizer

WORDS = st.text(st.sampled_from("ab <>/{}\"'\\\n.é你🙂"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.tuples(st.sampled_from(["now", 'say "hi"', "é"]), st.dictionaries(WORDS, VALUES))


def run(
    ids: list[int], its_tokenizer: Any, thinks: bool = False, cut: bool = False, **options: Any
) -> Any:
    """What the ids came to: thinking, text, calls, and the pieces themselves."""
    ends = frozenset(its_tokenizer.eos_token_ids)
    tags = Tags.of(its_tokenizer)
    pieces = Pieces(its_tokenizer, tags, ends=ends, thinks=thinks, **options)
    events = []
    for token in [*ids, *([] if cut else [min(ends)])]:
        events += pieces.feed(token, mx.zeros(1))
        if pieces.done:
            break
    events += pieces.finish()
    thought = "".join(event.text for event in events if isinstance(event, Thought))
    said = "".join(event.text for event in events if isinstance(event, Said))
    calls: dict[int, list[str]] = {}
    ended = []
    for event in events:
        if isinstance(event, CallBegun):
            assert event.call == len(calls)
            calls[event.call] = [event.name, ""]
        elif isinstance(event, CallArguments):
            calls[event.call][1] += event.text
        elif isinstance(event, CallEnded):
            ended.append(event.call)
    assert ended == sorted(calls)
    return thought, said, [tuple(call) for call in calls.values()], pieces


def written(name: str, arguments: Any) -> str:
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def encode(its_tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = its_tokenizer.encode(text, add_special_tokens=False)
    return ids


def free_of_tags(text: str) -> bool:
    return "<" not in text


@given(
    st.none() | WORDS.filter(free_of_tags),
    WORDS.filter(free_of_tags),
    st.lists(CALLS, max_size=3),
    st.booleans(),
)
def test_what_was_put_together_comes_apart(
    thinking: str | None, text: str, calls: list[Any], single: bool
) -> None:
    its_tokenizer = tokenizer() if single else demo_tokenizer()
    if not single and thinking is not None:
        return  # it has no such tag
    if any("<" in json.dumps(call, ensure_ascii=False) for call in calls) and not single:
        return  # text in a call may look like its end there
    whole = "" if thinking is None else f"<think>\n{thinking}\n</think>\n\n"
    whole += "\n".join([*([text] if text.strip("\n") else []), *(written(*call) for call in calls)])
    if not thinking and text.strip().startswith("<"):
        return
    thought, said, found, _ = run(encode(its_tokenizer, whole), its_tokenizer, tools=True)
    assert thought == (thinking or "").strip("\n")
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    if calls or thinking is not None:
        assert said.strip("\n") == text.strip("\n")
    else:
        assert said == whole  # nothing was there to be taken off


@given(WORDS, st.lists(WORDS.filter(bool), max_size=2))
def test_text_without_tags_is_as_it_stands(text: str, stops: list[str]) -> None:
    """As `stream_generate` hands it out."""
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, text)
    whole = its_tokenizer.decode(ids)
    cuts = [whole.index(stop) for stop in stops if stop in whole]
    _, said, calls, pieces = run(ids, its_tokenizer, stops=stops)
    assert said == whole[: min(cuts)] if cuts else said == whole
    assert pieces.stops.found == bool(cuts)
    assert not calls


def test_a_tag_in_the_text_is_text() -> None:
    """Spelt by other ids than its own it marks nothing, as when a model quotes it."""
    its_tokenizer = tokenizer()
    spelt = [i for part in ("<tool", "_call>") for i in encode(its_tokenizer, part)]
    _, said, calls, _ = run(spelt, its_tokenizer, tools=True)
    assert said == "<tool_call>" and not calls
    thought, said, _, _ = run(encode(its_tokenizer, "A <think> B </think> C"), its_tokenizer)
    assert not thought and said == "A <think> B </think> C"


def test_thinking_that_the_prompt_opened() -> None:
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, "Let me see.\n</think>\n\nFour.")
    assert run(ids, its_tokenizer, thinks=True)[:2] == ("Let me see.", "Four.")


def test_stop_strings_end_the_answer_and_not_the_thinking() -> None:
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, "<think>\nstop\n</think>\n\nGo on. stop here")
    thought, said, _, pieces = run(ids, its_tokenizer, stops=["stop"])
    assert (thought, said) == ("stop", "Go on. ")
    assert pieces.stops.which == "stop"


@pytest.mark.parametrize(
    "call",
    [
        '{"arguments": {"city": "Rome"}, "name": "get_weather"}',
        '{"name": "get_weather", "arguments": {"city": "Rome"}, "id": 1}',
        '  {  "name":"get_weather","arguments":{"city": "Rome"}}  ',
    ],
)
def test_calls_in_other_forms(call: str) -> None:
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, f"<tool_call>{call}</tool_call>")
    _, said, calls, _ = run(ids, its_tokenizer, tools=True)
    assert calls == [("get_weather", '{"city": "Rome"}')] and not said


@pytest.mark.parametrize(
    "call", ["", "{", "null", "[1]", '{"name": 5}', "Hello", '{"name": "a\n"}']
)
def test_what_is_no_call_is_text(call: str) -> None:
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, f"<tool_call>{call}</tool_call>")
    _, said, calls, _ = run(ids, its_tokenizer, tools=True)
    assert said == f"<tool_call>{call}</tool_call>" and not calls


@given(st.lists(CALLS, min_size=1, max_size=2), st.integers(1, 200))
def test_a_cut_call_is_a_start_of_the_call(calls: list[Any], cut: int) -> None:
    its_tokenizer = tokenizer()
    ids = encode(its_tokenizer, "\n".join(written(*call) for call in calls))
    whole = run(ids, its_tokenizer, tools=True)[2]
    found = run(ids[:cut], its_tokenizer, tools=True, cut=True)[2]
    for part, full in zip(found, whole, strict=False):
        assert part[0] == full[0]
        assert full[1].startswith(part[1]) or "\ufffd" in part[1]
