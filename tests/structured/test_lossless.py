"""Under a constraint every mode writes what constrained plain decoding writes."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import llguidance.numpy
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthrus_mlx import DecodeStats, JsonSchema, Regex, mlx_generate, stream_generate
from orthrus_mlx.decoding.grammar import Matcher, compile_constraint
from orthrus_mlx.errors import ConstraintError
from tests.amount import few

from .schemas import (
    VOCAB_SIZE,
    allowed,
    demo_tokenizer,
    grammar_of,
    matcher,
    model,
    one_by_one,
    schemas,
    thinking_tokenizer,
)

WAYS: list[dict[str, Any]] = [
    {"mode": "parallel", "cycle": "two-pass"},
    {"mode": "parallel", "cycle": "one-pass"},
    {"mode": "parallel", "cycle": "alternating"},
    {"mode": "auto", "calibrate": False},
    {"mode": "ar"},  # with what the grammar forces
]
SEPARATORS = st.sampled_from([(", ", ": "), (",", ":")])
BUDGET = 40
WORDS = (23, 259, 260, 264, 303)  # 5 er an as and " l": of text, but of none that is forced


@settings(max_examples=few(20, of=200))
@given(
    schemas(),
    SEPARATORS,
    st.integers(0, 30),
    st.integers(2, 16),
    st.sampled_from([0.0, 0.8]),
    st.data(),
)
def test_ids_are_those_of_constrained_plain_decoding(
    schema: dict[str, Any],
    separators: tuple[str, str],
    seed: int,
    block_size: int,
    temperature: float,
    data: st.DataObject,
) -> None:
    """In every way, and when cut anywhere and continued; finished answers are valid."""
    tokenizer, lm = demo_tokenizer(), model(seed, block_size)
    constraint = JsonSchema(schema, separators)
    grammar, prompt = grammar_of(constraint), [5, 6, 7 + seed]
    ends = tokenizer.eos_token_ids
    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "max_tokens": BUDGET}
    processors = [one_by_one(tokenizer, grammar, len(prompt))]
    plain = list(mlx_generate(lm, prompt, ends, mode="ar", logits_processors=processors, **options))

    lm.tokenizer = tokenizer
    for way in WAYS:
        assert (
            list(mlx_generate(lm, prompt, ends, constraint=constraint, **way, **options)) == plain
        )

    # Cut after any token, and continued by a call that is told what was written.
    place = data.draw(st.integers(1, len(plain)))
    if place < len(plain) or plain[-1] not in ends:
        way = data.draw(st.sampled_from(WAYS))
        cache = lm.make_cache()
        first = {**options, "max_tokens": place, "prompt_cache": cache, "constraint": constraint}
        assert list(mlx_generate(lm, prompt, ends, **way, **first)) == plain[:place]
        rest = {**first, "max_tokens": BUDGET - place, "written": plain[:place]}
        known = [*prompt, *plain[: place - 1]]
        again = mlx_generate(lm, plain[place - 1 : place], ends, cached_ids=known, **way, **rest)
        assert list(again) == plain[place:]

    check_answer(tokenizer, grammar, schema, plain)


@settings(max_examples=few(10, of=200))
@given(schemas(), st.integers(0, 30), st.sampled_from([0.0, 0.8]), st.data())
def test_an_end_may_be_any_id(
    schema: dict[str, Any], seed: int, temperature: float, data: st.DataObject
) -> None:
    """One that text has too ends an answer only where it may end, and is not part of it."""
    tokenizer, lm = demo_tokenizer(), model(seed, 6)
    ends = set(data.draw(st.lists(st.sampled_from([*WORDS, 1021]), min_size=1, max_size=4)))
    grammar = grammar_of(JsonSchema(schema))
    options: dict[str, Any] = {"temperature": temperature, "seed": seed, "max_tokens": BUDGET}
    processors = [one_by_one(tokenizer, grammar, 1, ends)]
    plain = list(mlx_generate(lm, [5], ends, mode="ar", logits_processors=processors, **options))
    assert not ends & set(plain[:-1])
    lm.tokenizer = tokenizer
    for way in WAYS:
        ids = mlx_generate(lm, [5], [*ends, -1], constraint=JsonSchema(schema), **way, **options)
        assert list(ids) == plain
    if plain[-1] in ends:
        jsonschema.validate(json.loads(tokenizer.decode(plain[:-1])), schema)


def check_answer(tokenizer: Any, grammar: str, schema: Any, ids: list[int]) -> None:
    """A finished answer is valid; an unfinished one is the beginning of one."""
    ends = tokenizer.eos_token_ids
    text = [token for token in ids if token not in ends]
    state = matcher(tokenizer, grammar)
    assert state.try_consume_tokens(text) == len(text)
    if ids[-1] in ends:
        assert state.is_accepting()
        instance = json.loads(tokenizer.decode(text))
        jsonschema.Draft202012Validator(schema).validate(instance)


@settings(max_examples=few(20, of=200))
@given(schemas(), st.integers(0, 30), st.sampled_from([0.0, 0.8]), st.sampled_from(WAYS), st.data())
def test_thinking_is_free_and_what_follows_obeys(
    schema: dict[str, Any],
    seed: int,
    temperature: float,
    way: dict[str, Any],
    data: st.DataObject,
) -> None:
    """One grammar from the first token on: no draft jumps over the end of thinking."""
    tokenizer, lm = thinking_tokenizer(), model(seed, 7)
    start, end = tokenizer.think_start_id, tokenizer.think_end_id
    ends, constraint = tokenizer.eos_token_ids, JsonSchema(schema)
    tags, opened = [start, end], [5, 6, start]

    def close(tokens: mx.array, logits: mx.array) -> mx.array:
        # A random model hardly ever closes its thinking: let it, after some words.
        said: Any = tokens.tolist()
        close = end in np.array(said) or len(said) < 12
        return logits if close else logits + 1e4 * (mx.arange(VOCAB_SIZE) == end)

    options: dict[str, Any] = {
        "temperature": temperature,
        "seed": seed,
        "max_tokens": 50,
        "constraint": constraint,
        "logits_processors": [close],
    }
    lm.tokenizer = tokenizer
    ids = list(mlx_generate(lm, opened, ends, mode="ar", **options))
    assert list(mlx_generate(lm, opened, ends, **way, **options)) == ids
    # Cut while it thinks, or behind it, and continued with all that was written as the prompt.
    place = data.draw(st.integers(1, len(ids)))
    if ids[place - 1] not in ends and place < len(ids):
        rest = {**options, "max_tokens": len(ids) - place, "written": ids[:place]}
        assert list(mlx_generate(lm, [*opened, *ids[:place]], ends, **way, **rest)) == ids[place:]
    assert end in ids
    answer = ids[ids.index(end) + 1 :]
    assert not set(tags) & set(answer)
    text = tokenizer.decode([token for token in answer if token not in ends])
    assert text.startswith("\n\n") or "\n\n".startswith(text)
    if ids[-1] in ends:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("", {"<think>", "{"}),  # nothing known: it may think
        ("<think>\nso", None),  # thinking goes on
        ("<think>\n\n</think>\n\n", {"{"}),  # the template closed it
        ("<think>a</think> answered. And now?", {"<think>", "{"}),  # an earlier turn's
    ],
)
def test_where_thinking_may_stand(prompt: str, first: set[str] | None) -> None:
    tokenizer = thinking_tokenizer()
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    grammar = compile_constraint(
        JsonSchema({"type": "object"}), tokenizer, VOCAB_SIZE, frozenset({2}), ids
    )
    texts = {tokenizer.decode([int(token)]) for token in grammar.allowed_ids()}
    if first is None:
        assert {"a", "{", "</think>"} <= texts and "<think>" not in texts
    else:
        assert {text[0] if text[0] != "<" else text for text in texts} == first


@given(schemas(), st.integers(0, 30), st.data())
def test_masks_of_a_block_are_those_of_its_places(
    schema: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """With a draft that will be rejected, one that is forbidden, or an end, at any place."""
    tokenizer = demo_tokenizer()
    constraint = JsonSchema(schema)
    ends = frozenset(tokenizer.eos_token_ids)
    grammar = compile_constraint(constraint, tokenizer, VOCAB_SIZE, ends, [])
    state = matcher(tokenizer, grammar_of(constraint))
    drafts: list[int] = []
    rng = np.random.default_rng(seed)
    for _ in range(data.draw(st.integers(0, 12))):
        may = np.flatnonzero(allowed(state))
        token = int(rng.choice(may))
        drafts.append(token)
        if token in ends:
            break
        assert state.consume_token(token)
    if data.draw(st.booleans()):
        drafts.append(int(rng.integers(VOCAB_SIZE)))
    bits = grammar.allowed(drafts)
    state = matcher(tokenizer, grammar_of(constraint))
    for place, draft in enumerate([*drafts, None]):
        row = np.unpackbits(bits[place].view(np.uint8), bitorder="little")[:VOCAB_SIZE]
        may = allowed(state)
        assert (row == may).all(), place
        if draft is None or not may[draft] or draft in ends:
            assert place <= len(grammar.cut(drafts)) <= place + 1
            break
        assert state.consume_token(draft)
    # The matcher itself has not moved.
    assert (grammar.allowed([])[0] == bits[0]).all()


@given(schemas(), st.integers(0, 30), st.integers(1, 9))
def test_guesses_and_forced_ids_are_allowed_and_leave_the_matcher_in_place(
    schema: dict[str, Any], seed: int, n: int
) -> None:
    tokenizer = demo_tokenizer()
    ends = frozenset(tokenizer.eos_token_ids)
    grammar = compile_constraint(JsonSchema(schema), tokenizer, VOCAB_SIZE, ends, [])
    logits = np.random.default_rng(seed).standard_normal((n, VOCAB_SIZE), np.float32)
    before = grammar.allowed([])
    guesses, forced = grammar.guess(logits), grammar.forced(n)
    assert (grammar.allowed([]) == before).all()
    assert 1 <= len(guesses) <= n and len(forced) <= n
    for ids in (guesses, forced):
        assert grammar.cut(ids) == ids
    assert len(guesses) == n or guesses[-1] in ends
    assert guesses[: len(forced)] == forced
    if not forced and guesses[0] != logits[0].argmax():
        may = grammar.allowed_ids()
        assert guesses[0] == may[logits[0][may].argmax()]


@settings(max_examples=few(20, of=300))
@given(schemas(), st.randoms(use_true_random=False))
def test_drafts_that_were_tried_are_forgotten(schema: dict[str, Any], draw: random.Random) -> None:
    """Along an answer, whatever was tried before: all is as a new copy of the matcher has it."""
    tokenizer = demo_tokenizer()
    ends = frozenset(tokenizer.eos_token_ids)
    grammar = compile_constraint(JsonSchema(schema), tokenizer, VOCAB_SIZE, ends, [])
    for _ in range(12):
        likely = np.random.default_rng(draw.randrange(99)).normal(size=(6, VOCAB_SIZE))
        guesses = grammar.fork().guess(likely)
        drafts = [*guesses[: draw.randrange(7)], draw.randrange(VOCAB_SIZE)]
        for tried in (grammar, grammar.fork()):
            assert tried.guess(likely) == guesses
            assert tried.forced(9) == grammar.fork().forced(9)
            assert tried.cut(drafts) == grammar.fork().cut(drafts)
            assert np.array_equal(tried.allowed(drafts), grammar.fork().allowed(drafts))
        if not guesses or guesses[-1] in ends:
            break
        grammar.advance(guesses[: draw.randrange(1, 7)])


def test_a_text_that_is_forced_needs_no_pass_for_each_token() -> None:
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    text = "Nothing else may be written here, whatever the model would like to say."
    stats: list[DecodeStats] = []
    for mode in ("ar", "parallel", "auto"):
        answer = stream_generate(
            lm,
            tokenizer,
            [5],
            constraint=Regex(text.replace(".", "\\.")),
            mode=mode,
            calibrate=False,
            on_stats=stats.append,
        )
        assert "".join(r.text for r in answer) == text
        totals = stats.pop()
        # Split in another way than the tokenizer's by this model, a token may fall.
        rejected = totals.drafted_tokens - totals.accepted_tokens
        assert totals.accepted_by["forced"] > 0
        assert totals.forward_passes <= 1 + totals.generation_tokens / 15 + rejected


@pytest.mark.parametrize("way", WAYS)
def test_a_draft_may_run_into_a_dead_end(way: dict[str, Any]) -> None:
    """A grammar that cannot go on behind a draft is an error only if the answer goes there."""
    tokenizer, lm = demo_tokenizer(), model(7, 8)
    endless = {"type": "object", "properties": {"z": {"$ref": "#/$defs/q"}}, "required": ["z"]}
    items = {"anyOf": [{"type": "integer"}, endless]}
    schema = {"type": "array", "items": items, "$defs": {"q": {"$ref": "#/$defs/q"}}}
    braces = [token for token in range(1020) if "{" in tokenizer.decode([token])]
    options: dict[str, Any] = {
        "constraint": JsonSchema(schema),
        "max_tokens": 25,
        "logit_bias": dict.fromkeys(braces, -1e4),
    }
    lm.tokenizer = tokenizer
    if way["mode"] != "ar":
        options["prediction"] = '[{"z": 1}, 5]'
    assert len(list(mlx_generate(lm, [5], tokenizer.eos_token_ids, **way, **options))) > 2


def test_logprobs_are_the_models_own() -> None:
    """Without a constraint's mask: nothing is -inf."""
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    for r in stream_generate(lm, tokenizer, [5], constraint=Regex("[ab]{3}"), mode="parallel"):
        assert mx.isfinite(r.logprobs).all()


def test_processors_come_before_the_mask() -> None:
    """A processor can neither break a constraint nor see it."""
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    seen = []

    def favour(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(bool(mx.isfinite(logits).all()))
        return logits + 1e3 * (mx.arange(VOCAB_SIZE) == 77)

    options: dict[str, Any] = {"constraint": Regex("[ab]{5}"), "logits_processors": [favour]}
    answers = {
        "".join(r.text for r in stream_generate(lm, tokenizer, [5], mode=mode, **options))
        for mode in ("ar", "parallel")
    }
    assert len(answers) == 1 and set(answers.pop()) <= {"a", "b"} and all(seen)


def test_what_cannot_be_met_is_an_error() -> None:
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    lm.tokenizer = tokenizer
    with pytest.raises(ConstraintError, match="needs an id that ends"):
        mlx_generate(lm, [5], (), constraint=Regex("a"))
    never = JsonSchema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})
    with pytest.raises(ConstraintError):
        mlx_generate(lm, [5], 2, constraint=never)
    with pytest.raises(ConstraintError):  # what was written does not fit
        mlx_generate(lm, [5, 9], 2, constraint=Regex("a"), written=[9])

    def hide(tokens: mx.array, logits: mx.array) -> mx.array:
        return mx.where(mx.arange(VOCAB_SIZE) == 9, logits, -mx.inf)

    for mode in ("ar", "parallel"):
        run = mlx_generate(lm, [5], 2, mode=mode, constraint=Regex("a"), logits_processors=[hide])
        with pytest.raises(ConstraintError, match="leaves no token"):
            list(run)


@settings(max_examples=few(10, of=200))
@given(schemas(), st.integers(0, 30))
def test_an_answer_does_not_depend_on_the_prediction(schema: dict[str, Any], seed: int) -> None:
    tokenizer, lm = demo_tokenizer(), model(seed, 5)
    options: dict[str, Any] = {"max_tokens": 30, "constraint": JsonSchema(schema)}
    lm.tokenizer = tokenizer
    plain = list(mlx_generate(lm, [5], tokenizer.eos_token_ids, mode="ar", **options))
    wrong = [*plain[:3], 9, 9, *plain[4:]]
    for prediction in (plain, wrong, tokenizer.decode(plain), [3] * 40):
        for way in ({"mode": "parallel"}, {"mode": "auto", "calibrate": False}):
            ids = mlx_generate(
                lm, [5], tokenizer.eos_token_ids, prediction=prediction, **way, **options
            )
            assert list(ids) == plain


@pytest.mark.parametrize("mode", ["ar", "parallel"])
def test_an_answer_says_whether_it_is_complete(mode: str) -> None:
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    options: dict[str, Any] = {"constraint": Regex("[ab]{4,}"), "mode": mode, "block_size": 2}
    said = ""
    for r in stream_generate(lm, tokenizer, [5], max_tokens=9, **options):
        said += r.text
    assert r.complete is (len(said) >= 4)
    short = list(stream_generate(lm, tokenizer, [5], max_tokens=1, **options))
    assert short[-1].finish_reason == "length" and short[-1].complete is False
    free = list(stream_generate(lm, tokenizer, [5], max_tokens=1))
    assert free[-1].complete is None


@pytest.mark.parametrize("mode", ["ar", "parallel"])
def test_each_token_says_whether_the_answer_is_complete_behind_it(mode: str) -> None:
    """Not behind the accepted drafts after it, which a stop string may cut off."""
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    options: dict[str, Any] = {"constraint": Regex("two, three and four"), "mode": mode}
    said = ""
    for r in stream_generate(lm, tokenizer, [5], **options):
        said += r.text
        assert r.complete is (said == "two, three and four")
    assert r.complete is True
    *_, last = stream_generate(lm, tokenizer, [5], stop="th", **options)
    assert last.cut == "stop string" and last.complete is False


@pytest.mark.parametrize("cut", [0, 5])
def test_a_prediction_goes_on_behind_what_was_written(cut: int) -> None:
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    lm.tokenizer = tokenizer
    ids = list(mlx_generate(lm, [5], (), 25, mode="ar"))
    stats: list[DecodeStats] = []
    rest = mlx_generate(
        lm,
        [5, *ids[:cut]],
        (),
        25 - cut,
        mode="parallel",
        written=ids[:cut],
        prediction=ids,
        on_stats=stats.append,
    )
    assert list(rest) == ids[cut:]
    assert stats[0].accepted_by == stats[0].drafted_by and stats[0].cycles <= 2


class Tired:
    """llguidance's matcher, which comes to its limits behind so many ids of the answer."""

    def __init__(self, whole: Any, left: int) -> None:
        self.whole, self.left, self.failed = whole, left, False

    def consume_token(self, token: int) -> bool:
        self.failed = self.failed or not self.left
        self.left -= 1
        return not self.failed and bool(self.whole.consume_token(token))

    def is_error(self) -> bool:
        return self.failed

    def get_error(self) -> str:
        return "too many states"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


@pytest.mark.parametrize("at", [0, 1, 4, 7, 100])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_before_a_limit_of_the_grammar_are_handed_out(
    way: dict[str, Any], at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a cycle it comes to it, and the cache holds what was handed out."""
    tokenizer, lm = demo_tokenizer(), model(3, 16)
    options: dict[str, Any] = {"constraint": Regex("[ab]{24}"), **way}
    plain = [5] + [
        r.token for r in stream_generate(lm, tokenizer, [5], constraint=options["constraint"])
    ]
    if way["mode"] != "ar":
        options["prediction"] = tokenizer.decode(plain[1:-1])
    fill = llguidance.numpy.fill_next_token_bitmask
    monkeypatch.setattr(
        llguidance.numpy,
        "fill_next_token_bitmask",
        lambda whole, bits: fill(getattr(whole, "whole", whole), bits),
    )

    def fork(self: Matcher) -> Matcher:
        whole = Tired(self._matcher.deep_copy(), at)
        return Matcher(whole, self._end, self.vocab_size, self.ends)

    monkeypatch.setattr(Matcher, "fork", fork)
    cache, found, failed = lm.make_cache(), list[int](), False
    try:
        for r in stream_generate(lm, tokenizer, [5], prompt_cache=cache, **options):
            found.append(r.token)
            assert r.finish_reason is None or at == 100
    except ConstraintError as error:
        failed = "too many states" in str(error)
    assert found == plain[1:][:at] and failed == (at < 100)
    assert cache[0].offset == len(found)
