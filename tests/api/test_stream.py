"""`stream_generate`: whole characters, stop strings, and figures that add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mlx_lm.generate import GenerationResponse as MlxLmResponse

from orthrus_mlx import DecodeStats, GenerationResponse, mlx_generate, stream_generate
from orthrus_mlx.chat import requests
from orthrus_mlx.errors import GenerationError
from tests.lossless.fake_model import FakeModel
from tests.lossless.scenarios import WAYS

from .texts import EOS, Writer

BROKEN = "\ufffd"
FAMILY = "👩‍👩‍👧‍👦"  # seven code points of three or four bytes each

# A tokenizer's incremental detokenizer is mlx-lm's; these two of its habits are its own: it drops
# one leading space of the whole text, and reads the byte 0 as another character.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(
    lambda text: text.lstrip(" ")
)


def write(
    tokenizer: Any, text: str | Sequence[int], max_tokens: int = 4000, **options: Any
) -> list[GenerationResponse]:
    ids = tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else text
    options = {"mode": "parallel", **options}
    return list(stream_generate(Writer(ids), tokenizer, [0], max_tokens, **options))


def text_of(responses: Sequence[GenerationResponse]) -> str:
    return "".join(response.text for response in responses)


@given(texts)
@example(f"né {FAMILY}! 漢字\n\n  ")
@example("")
def test_text_comes_in_whole_characters_and_to_the_last_piece(tokenizer: Any, text: str) -> None:
    responses = write(tokenizer, text)
    assert text_of(responses) == text
    if BROKEN not in text:
        assert all(BROKEN not in response.text for response in responses)
    assert len(responses) == len(text.encode()) + 1
    assert responses[-1].token == EOS
    assert [r.finish_reason for r in responses] == [None] * (len(responses) - 1) + ["stop"]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_text_is_the_tokenizers_own_even_where_the_bytes_are_no_text(
    tokenizer: Any, ids: list[int]
) -> None:
    text = tokenizer.decode(ids)
    assume("\0" not in text and not text.startswith(" "))
    assert text_of(write(tokenizer, ids)) == text


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_a_budget_that_ends_inside_a_character_loses_no_other(
    tokenizer: Any, max_tokens: int
) -> None:
    text = "aé漢👩z"
    responses = write(tokenizer, text, max_tokens)
    ids = [response.token for response in responses]
    assert len(ids) == max_tokens
    assert text_of(responses) == tokenizer.decode(ids)
    assert text_of(responses[:-1]) in text  # no broken character before the end
    assert responses[-1].finish_reason == "length"


@pytest.mark.parametrize("ends", [(), (EOS,), (EOS, 0)], ids=len)
def test_the_end_token_has_no_text(tokenizer: Any, ends: tuple[int, ...]) -> None:
    """Only what is named as an end token ends the text."""
    responses = write(tokenizer, "abc", 6, eos_token_ids=ends)
    assert text_of(responses) == ("abc" if ends else "abc<eos><eos><eos>")
    if ends:
        assert (responses[-1].token, responses[-1].text) == (EOS, "")


def test_an_end_token_given_by_the_caller_ends_the_text(tokenizer: Any) -> None:
    [b] = tokenizer.encode("b", add_special_tokens=False)
    responses = write(tokenizer, "aabcc", eos_token_ids=[b])
    assert text_of(responses) == "aa"
    assert responses[-1].token == b


# ------------------------------------------------------------------------------- stop strings


def stopped(text: str, stops: Sequence[str]) -> tuple[str, int | None]:
    """What is to be shown, and after how many characters the first stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [at for stop in stops if stop and (at := text.find(stop, 0, end)) >= 0]
        if starts:
            return text[: min(starts)], end
    return text, None


@given(st.text("ab", max_size=24), st.lists(st.text("abc", max_size=4), max_size=3), st.booleans())
@example("xaab", ["aab"], True)
@example("aaab", ["aab"], True)
@example("ababac", ["abac"], False)
@example("ab", ["abc"], False)  # held back, then handed out after all
@example("abc", ["abc"], False)  # at the very end
def test_stop_strings_end_the_text_before_them(
    tokenizer: Any, text: str, stops: list[str], ends_itself: bool
) -> None:
    budget = 4000 if ends_itself else max(1, len(text))
    assume(text)
    responses = write(tokenizer, text, budget, stop=stops)
    shown, end = stopped(text, stops)
    assert text_of(responses) == shown
    assert len(responses) == (end or (len(text) + 1 if ends_itself else len(text)))
    assert responses[-1].finish_reason == ("stop" if end or ends_itself else "length")
    assert all(response.finish_reason is None for response in responses[:-1])


def test_a_stop_string_of_split_characters(tokenizer: Any) -> None:
    assert text_of(write(tokenizer, f"so é{FAMILY}. No.", stop=[f"é{FAMILY[:2]}"])) == "so "


def test_one_stop_string_may_be_given_bare(tokenizer: Any) -> None:
    assert text_of(write(tokenizer, "one two. three", stop="two")) == "one "


@pytest.mark.parametrize("stop", [{"two": 1}, 2, ["two", 2]])
def test_what_is_no_stop_string_is_refused(tokenizer: Any, stop: Any) -> None:
    with pytest.raises(GenerationError, match="expected a string, or a list"):
        write(tokenizer, "one two. three", stop=stop)


def test_no_part_of_a_stop_string_is_shown_early(tokenizer: Any) -> None:
    shown = ""
    for response in write(tokenizer, "yes ###no", stop=["###"]):
        shown += response.text
        assert "#" not in shown
    assert shown == "yes "


def test_the_cache_holds_what_was_written_up_to_a_stop_string(tokenizer: Any) -> None:
    ids = tokenizer.encode("some text. More", add_special_tokens=False)
    model = Writer(ids)
    cache = model.make_cache()
    list(stream_generate(model, tokenizer, [0], 100, stop=[". ", "."], prompt_cache=cache))
    assert cache[0].ids == [0, *tokenizer.encode("some text", add_special_tokens=False)]


# ------------------------------------------------------------------------------- the record


def test_a_response_has_every_field_of_mlx_lms_and_ours() -> None:
    theirs = [field.name for field in dataclasses.fields(MlxLmResponse)]
    ours = [field.name for field in dataclasses.fields(GenerationResponse)]
    assert set(theirs) <= set(ours)
    added = {"forward_passes", "cycles", "drafted_tokens", "accepted_tokens", "seed"}
    assert added <= set(ours)


def test_the_speed_counts_from_the_prompt_on(tokenizer: Any, monkeypatch: Any) -> None:
    """Also where all that was written came with the first token."""
    now = [0.0]
    monkeypatch.setattr(requests, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(Writer):
        def forward(self, rows: Any) -> Any:
            now[0] += 2.0 if rows.n_ar else 0.0
            return super().forward(rows)

    model = Slow(tokenizer.encode("abc", add_special_tokens=False))
    for n in (1, 100):
        *_, last = stream_generate(model, tokenizer, [0], n, mode="parallel")
        assert last.generation_tps == pytest.approx(last.generation_tokens / (2.0 * last.cycles))


def test_prompt_speed_is_that_of_the_prompt_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes a second, and the first cycle ten."""
    now = [0.0]
    monkeypatch.setattr(requests, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    model = FakeModel(vocab_size=40, layers=1)
    forward = model.forward

    def slow(rows: Any) -> Any:
        now[0] += 1.0 if rows.n_ar == 4 else 10.0
        return forward(rows)

    monkeypatch.setattr(model, "forward", slow)
    first = next(stream_generate(model, tokenizer, [1, 2, 3, 4, 5], 3, mode="ar"))
    assert first.prompt_tps == pytest.approx(5.0)


@pytest.mark.parametrize(("mode", "cycle"), WAYS)
def test_figures_add_up(tokenizer: Any, mode: Any, cycle: Any) -> None:
    stats: list[DecodeStats] = []
    text = "Figures should add up."
    responses = write(tokenizer, text, mode=mode, cycle=cycle, seed=4, on_stats=stats.append)
    for n, r in enumerate(responses, start=1):
        assert r.prompt_tokens == 1
        assert r.generation_tokens == n
        assert r.tokens_per_forward == n / r.forward_passes
        assert 0 < r.cycles <= r.forward_passes
        assert r.accepted_tokens <= r.drafted_tokens
        assert r.prompt_tps == 0  # the first cycle reads a prompt of one id
        assert r.generation_tps > 0 and r.peak_memory >= 0
        assert r.seed == 4
        assert mx.exp(r.logprobs).sum().item() == pytest.approx(1, abs=1e-5)
        assert mx.argmax(r.logprobs).item() == r.token
    last, total = responses[-1], stats[0]
    assert last.accepted_tokens == sum(r.from_draft for r in responses)
    for name in ("forward_passes", "cycles", "drafted_tokens", "accepted_tokens", "finish_reason"):
        assert getattr(last, name) == getattr(total, name), name
    assert last.tokens_per_forward == total.tokens_per_forward
    if mode == "ar":
        assert last.forward_passes == last.cycles == len(responses)
        assert last.drafted_tokens == 0


def test_a_fresh_seed_is_reported_and_gives_the_same_text_again(tokenizer: Any) -> None:
    model = FakeModel(vocab_size=258)
    first = list(stream_generate(model, tokenizer, [1], 20, temperature=1.5))
    again = list(
        stream_generate(model, tokenizer, [1], 20, temperature=1.5, seed=first[0].seed, mode="ar")
    )
    assert [r.token for r in again] == [r.token for r in first]
    other = list(stream_generate(model, tokenizer, [1], 20, temperature=1.5))
    assert other[0].seed != first[0].seed
    assert [r.token for r in other] != [r.token for r in first]


def test_text_and_ids_prompts_are_the_same(tokenizer: Any) -> None:
    model, prompt = FakeModel(vocab_size=258), "Ein Wörtchen"
    ids = tokenizer.encode(prompt)
    runs = [
        [r.token for r in stream_generate(model, tokenizer, given, 12)]
        for given in (prompt, ids, mx.array(ids))
    ]
    assert runs[0] == runs[1] == runs[2]
    assert runs[0] == list(mlx_generate(model, ids, tokenizer.eos_token_id, 12))


@pytest.mark.parametrize(
    ("max_tokens", "stop", "positions", "finish_reason", "cut"),
    [
        (0, (), 4096, "length", "max_tokens"),
        (3, (), 4096, "length", "max_tokens"),
        (-1, (), 9, "length", "context"),
        (8, (), 9, "length", "context"),
        (50, (), 9, "length", "context"),
        (50, ("world",), 4096, "stop", "stop string"),
        (50, (), 4096, "stop", None),
    ],
)
def test_every_answer_says_what_cut_it(
    tokenizer: Any, max_tokens: int, stop: Any, positions: int, finish_reason: str, cut: str | None
) -> None:
    ids = tokenizer.encode("Hello, world!", add_special_tokens=False)
    said: list[DecodeStats] = []
    responses = list(
        stream_generate(
            Writer(ids, positions), tokenizer, [0], max_tokens, stop=stop, on_stats=said.append
        )
    )
    last = responses[-1]
    assert (last.finish_reason, last.cut) == (finish_reason, cut)
    assert all(response.cut is None for response in responses[:-1])
    assert said[0].finish_reason in (finish_reason, None)
    if max_tokens == 0:
        assert (len(responses), last.text, last.token) == (1, "", -1)
        assert (last.prompt_tokens, last.generation_tokens) == (1, 0)


def test_no_stop_strings(tokenizer: Any) -> None:
    assert text_of(write(tokenizer, "Go on.", stop=None)) == "Go on."
