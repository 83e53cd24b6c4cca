"""Many requests through the public names: answers, memory, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import (
    BatchEngine,
    GenerationError,
    Regex,
    batch_generate,
    mlx_generate,
    stream_generate,
)
from orthrus_mlx.decoding.batch import Batch, Text
from tests import helpers
from tests.amount import few
from tests.lossless.random_models import build, favour_one_token
from tests.lossless.scenarios import WAYS

from .texts import byte_tokenizer

VOCAB = 300


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def model() -> Any:
    config = helpers.random_config(
        block_size=6,
        vocab_size=VOCAB,
        num_hidden_layers=2,
        hidden_size=32,
        head_dim=8,
        intermediate_size=32,
        num_key_value_heads=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
    )
    weights = favour_one_token(config, helpers.random_weights(config, seed=4), 6.0)
    return build(config, weights)


def answers(engine: BatchEngine, arriving: dict[int, list[dict[str, Any]]], draw: Any) -> Any:
    """Ids by request, the errors, and what was asked."""
    asked, ids, errors, step = {}, {}, {}, 0
    while engine.running or any(at >= step for at in arriving):
        for wish in arriving.get(step, []):
            number = engine.add(**wish)
            asked[number], ids[number] = wish, []
        for number, response, error in engine.step():
            if error is not None:
                errors[number] = error
            elif response.token >= 0:
                ids[number].append(response.token)
        if ids and draw.random() < 0.02:
            engine.cancel(draw.choice(list(ids)))
        step += 1
    return asked, ids, errors


class Failing:
    """A processor that fails at its third call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("no")
        return logits


def test_answers_do_not_depend_on_load_nor_on_what_the_prefix_store_held(
    model: Any, tokenizer: Any
) -> None:
    found = failed = whole = 0
    shared = [draw % VOCAB for draw in range(7, 400, 3)]
    engine = BatchEngine(model, tokenizer, prefix_memory=200_000, memory=2_000_000)
    for seed in range(few(12, of=200)):
        draw = random.Random(seed)
        arriving: dict[int, list[dict[str, Any]]] = {}
        for _ in range(draw.randint(2, 6)):
            prompt = [*shared[: draw.choice([0, 40, 131])], draw.randrange(VOCAB)]
            prompt += [draw.randrange(VOCAB) for _ in range(draw.choice([0, 3, 30]))]
            mode, cycle = draw.choice(WAYS)
            wish: dict[str, Any] = {
                "prompt": prompt,
                "max_tokens": draw.randint(0, 24),
                "temperature": draw.choice([0.0, 0.8]),
                "seed": draw.randrange(1 << 40),
                "mode": mode,
                "cycle": cycle,
                "calibrate": False,
                "eos_token_ids": [draw.randrange(VOCAB)],
            }
            if draw.random() < 0.3:
                wish |= {"repetition_penalty": 1.7, "repetition_context_size": 60}
            if draw.random() < 0.3:
                wish["constraint"] = Regex(draw.choice(["[a-e]{2,9}", "(one|two){3}, and more"]))
                wish["eos_token_ids"] = [wish["eos_token_ids"][0] % 3]
            if draw.random() < 0.2:
                wish["logits_processors"] = [Failing()]
            arriving.setdefault(draw.choice([0, 0, 3, 9]), []).append(wish)
        asked, ids, errors = answers(engine, arriving, draw)
        for number, wish in asked.items():
            ends = wish.pop("eos_token_ids")
            fails = bool(wish.pop("logits_processors", None))
            if "constraint" in wish:
                alone = [
                    response.token
                    for response in stream_generate(
                        model, tokenizer, wish.pop("prompt"), eos_token_ids=ends, **wish
                    )
                    if response.token >= 0
                ]
            else:
                alone = list(mlx_generate(model, wish.pop("prompt"), ends, **wish))
            assert ids[number] == alone[: len(ids[number])]
            whole += ids[number] == alone
            if number in errors:
                assert str(errors[number]) == "no" and fails and len(ids[number]) < 3
                failed += 1
        assert engine.prefixes.nbytes <= engine.prefixes.budget
        found += len(engine.prefixes) > 0
    engine.close()
    assert found and failed and whole > few(25, of=400)
    assert engine.running == 0 and len(engine.prefixes) == 0


def test_responses_are_those_of_stream_generate(model: Any, tokenizer: Any) -> None:
    prompts = ["one", "two, and three", "four"]
    options: dict[str, Any] = {"temperature": 0.9, "seed": 3, "mode": "parallel", "max_tokens": 30}
    with BatchEngine(model, tokenizer, prefix_memory=0) as engine:
        got: dict[int, list[Any]] = {engine.add(p, stop="e", **options): [] for p in prompts}
        while engine.running:
            for number, response, error in engine.step():
                assert error is None
                got[number].append(response)
    fields = ("text", "token", "from_draft", "prompt_tokens", "generation_tokens", "finish_reason")
    fields += ("cut", "seed")
    for prompt, responses in zip(prompts, got.values(), strict=True):
        alone = list(stream_generate(model, tokenizer, prompt, stop="e", **options))
        for field in fields:
            assert [getattr(r, field) for r in responses] == [getattr(r, field) for r in alone]


def test_batch_generate_gives_what_each_prompt_gives_alone(model: Any, tokenizer: Any) -> None:
    prompts: list[Any] = [[5, 9, 23], "text", [7], [5, 9, 23]]
    result = batch_generate(
        model, tokenizer, prompts, [9, 14, 0, 9], temperature=0.7, seed=[1, 2, 3, 4], mode="ar"
    )
    for n, (prompt, budget) in enumerate(zip(prompts, [9, 14, 0, 9], strict=True)):
        options: dict[str, Any] = {"temperature": 0.7, "seed": n + 1, "mode": "ar"}
        alone = list(stream_generate(model, tokenizer, prompt, budget, **options))
        assert result.texts[n] == "".join(r.text for r in alone)
        assert result.tokens[n] == [r.token for r in alone if r.token >= 0]
        assert result.finish_reasons[n] == alone[-1].finish_reason
    assert result.tokens[0] != result.tokens[3]  # another seed
    stats = result.stats
    assert stats.generation_tokens == sum(map(len, result.tokens)) and stats.generation_tps > 0
    assert [one.generation_tokens for one in stats.each] == [len(ids) for ids in result.tokens]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_tokens": [1]}, "max_tokens has 1 values for 2 prompts"),
        ({"seed": [1, 2, 3]}, "seed has 3 values"),
        ({"prompt_cache": []}, "prompt_cache belongs to one request"),
        ({"tempertaure": 1.0}, "did you mean temperature="),
    ],
)
def test_unusable_batches(model: Any, tokenizer: Any, more: Any, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        batch_generate(model, tokenizer, [[1], [2]], **more)


@pytest.mark.parametrize("prompts", ["text", None])
def test_one_prompt_is_no_list_of_prompts(model: Any, tokenizer: Any, prompts: Any) -> None:
    with pytest.raises(GenerationError, match="expected a list of prompts"):
        batch_generate(model, tokenizer, prompts)


def test_a_cache_in_use_is_refused(model: Any, tokenizer: Any) -> None:
    cache, options = model.make_cache(), {"mode": "ar", "eos_token_ids": ()}
    with BatchEngine(model, tokenizer) as engine:
        first = engine.add([1, 2], 4, prompt_cache=cache, **options)
        with pytest.raises(GenerationError, match="each needs its own"):
            engine.add([3], 4, prompt_cache=cache[:1] + model.make_cache()[1:], **options)
        engine.cancel(first)
        engine.add([3], 4, prompt_cache=cache, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_fails_as_a_whole_ends_all_requests(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    options: dict[str, Any] = {"mode": "ar", "eos_token_ids": (), "max_tokens": 9}
    cache, ids = model.make_cache(), list[int]()
    with BatchEngine(model, tokenizer) as engine:
        engine.add([1, 2, 3], prompt_cache=cache, **options)
        engine.add([4, 5], **options)
        for _ in range(3):
            ids += [r.response.token for r in engine.step() if r.request == 0 and r.response]
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(type(model), "forward", fails)
            engine.step()
        assert not engine.running and not engine.step()
        assert cache[0].offset == 3 + len(ids) - 1
        late = engine.add([4, 5], **options)
        found = list[int]()
        while engine.running:
            found += [r.response.token for r in engine.step() if r.request == late and r.response]
    assert found == list(mlx_generate(model, [4, 5], (), 9, mode="ar"))


def drain(engine: BatchEngine) -> tuple[dict[int, list[int]], dict[int, Exception]]:
    """Ids and errors by request, of all steps to come."""
    ids, errors = dict[int, list[int]](), dict[int, Exception]()
    while engine.running:
        for number, response, error in engine.step():
            if error is not None:
                errors[number] = error
            elif response is not None:
                ids.setdefault(number, []).append(response.token)
    return ids, errors


OPTIONS: dict[str, Any] = {"mode": "ar", "eos_token_ids": (), "max_tokens": 9}


@pytest.mark.parametrize("callback", ["on_stats", "processor", "progress"])
@pytest.mark.parametrize("number", [0, 1])
def test_callbacks_may_cancel_any_request(
    model: Any, tokenizer: Any, callback: str, number: int
) -> None:
    with BatchEngine(model, tokenizer, prefix_memory=0) as engine:

        def cancels(*given: Any) -> Any:
            engine.cancel(number)
            return given[-1]

        more: dict[str, Any] = {
            "on_stats": {"on_stats": cancels, "max_tokens": 2},
            "processor": {"logits_processors": [cancels]},
            "progress": {"prompt_progress_callback": cancels},
        }[callback]
        engine.add([1, 2, 3], **(OPTIONS | more))
        engine.add([4, 5], **OPTIONS)
        engine.add([6], **OPTIONS)
        ids, errors = drain(engine)
    lengths = [len(ids.get(n, ())) for n in range(3)]
    over = 2 if callback == "on_stats" else 9  # by then request 0 is answered
    assert not errors and lengths[2] == 9
    assert lengths[1 - number] == (over if number else 9)
    assert lengths[number] < 9
    for n, prompt in enumerate(([1, 2, 3], [4, 5], [6])):
        alone = list(mlx_generate(model, prompt, (), 9, mode="ar"))
        assert ids.get(n, []) == alone[: lengths[n]]


@pytest.mark.parametrize("callback", ["on_stats", "prompt_progress_callback"])
def test_a_callback_may_close_the_engine(model: Any, tokenizer: Any, callback: str) -> None:
    engine = BatchEngine(model, tokenizer)
    engine.add([1, 2, 3], **(OPTIONS | {"max_tokens": 2, callback: lambda *_: engine.close()}))
    engine.add([4, 5], **OPTIONS)
    drain(engine)
    assert engine.running == 0 and len(engine.prefixes) == 0


def test_a_callback_that_fails_is_an_error_of_its_request_alone(model: Any, tokenizer: Any) -> None:
    def fails(_: Any) -> None:
        raise RuntimeError("no")

    with BatchEngine(model, tokenizer) as engine:
        engine.add([1, 2, 3], **(OPTIONS | {"max_tokens": 2}), on_stats=fails)
        engine.add([4, 5], **OPTIONS)
        ids, errors = drain(engine)
        assert [len(found) for found in ids.values()] == [2, 9]
        assert errors.keys() == {0} and str(errors[0]) == "no"
        ended: list[Any] = []
        engine.add([6], **OPTIONS, on_stats=fails)
        engine.add([7], **OPTIONS, on_stats=ended.append)
        engine.step()
        with pytest.raises(RuntimeError, match="no"):
            engine.close()
        assert ended and engine.running == 0 and len(engine.prefixes) == 0


def test_a_cache_that_could_not_be_read_into_is_not_kept(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the device had no memory for a pass, it has none for who reads what that wrote."""
    shared = [draw % VOCAB for draw in range(7, 400, 3)]

    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with BatchEngine(model, tokenizer) as engine:
        engine.add(shared, **OPTIONS)
        drain(engine)
        assert len(engine.prefixes) == 1
        engine.add([*shared, 5, 6, 7], **OPTIONS)
        with monkeypatch.context() as patch:
            patch.setattr("orthrus_mlx.decoding.prefill.mx.eval", fails)
            _, errors = drain(engine)
        assert "out of memory" in str(errors[1])
        assert len(engine.prefixes) == 0


def test_an_interrupt_leaves_no_cache_that_nobody_has(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck(*_: Any) -> None:
        raise KeyboardInterrupt

    with BatchEngine(model, tokenizer) as engine:
        for name in ("begin", "leave"):
            engine.add([1, 2, 3], **OPTIONS)
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Text, name, struck)
                engine.step()
                engine.close()
            assert not engine.running and not engine.step()
            engine.close()
            assert not engine.prefixes._busy


def test_an_interrupt_while_a_request_is_cancelled_ends_no_other(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def struck(*_: Any) -> None:
        raise KeyboardInterrupt

    with BatchEngine(model, tokenizer) as engine:
        engine.add([1, 2, 3], **OPTIONS)
        engine.add([4, 5], **OPTIONS)
        engine.step()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Batch, "retire", struck)
            engine.cancel(0)
        ids, errors = drain(engine)
    assert not errors and list(ids) == [1]


def test_a_quantized_cache_is_that_of_a_prompt_read_alone(tokenizer: Any) -> None:
    config = helpers.random_config(
        vocab_size=VOCAB, head_dim=32, num_key_value_heads=1, max_position_embeddings=2048
    )
    model = build(config, helpers.random_weights(config))
    draw = random.Random(3)
    prompt = [draw.randrange(VOCAB) for _ in range(900)]
    quantized = {**OPTIONS, "max_tokens": 24, "kv_bits": 4, "kv_group_size": 32}
    alone = [r.token for r in stream_generate(model, tokenizer, prompt, **quantized)]
    with BatchEngine(model, tokenizer) as engine:
        engine.add([1, 2, 3], **(OPTIONS | {"max_tokens": 40}))
        engine.step()
        engine.add(prompt, **quantized)
        assert drain(engine)[0][1] == alone


def test_a_request_that_never_fits_is_refused_at_once(model: Any, tokenizer: Any) -> None:
    engine = BatchEngine(model, tokenizer, memory=10_000, prefix_memory=0)
    with engine, pytest.raises(GenerationError, match="or lower max_tokens"):
        engine.add([1, 2, 3], 100)
    with pytest.raises(GenerationError, match="memory is -1"):
        BatchEngine(model, tokenizer, memory=-1)


def test_who_joins_or_leaves_copies_nothing(model: Any, tokenizer: Any) -> None:
    """Memory moves by the newcomer's own first slots, however long the others' caches are."""
    options: dict[str, Any] = {"mode": "ar", "eos_token_ids": (), "max_tokens": 900}
    with BatchEngine(model, tokenizer, prefix_memory=0) as engine:
        silent = {engine.add([n + 1] * 2000, **options) for n in range(3)}
        while silent:
            silent -= {reply.request for reply in engine.step()}
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        engine.step()
        usual = mx.get_peak_memory() - before
        mx.reset_peak_memory()
        late = engine.add([1, 2, 3], **options)
        engine.step()
        engine.step()
        engine.cancel(late)
        engine.step()
        one = 256 * 2 * 2 * 8 * 4  # slots, layers, keys and values, head_dim, float32
        assert mx.get_peak_memory() - before <= usual + 3 * one + 100_000
        assert 3 * one + 100_000 < 2000 * 2 * 2 * 8 * 4  # less than one copy of one long cache


def test_five_hundred_requests_leave_memory_where_it_was(model: Any, tokenizer: Any) -> None:
    draw = random.Random(0)
    options: dict[str, Any] = {"mode": "ar", "eos_token_ids": ()}
    with BatchEngine(model, tokenizer, prefix_memory=60_000) as engine:
        engine.add([1, 2, 3], 4, **options)
        while engine.running:
            engine.step()
        engine.prefixes.clear()
        before = mx.get_active_memory()
        for n in range(500):
            engine.add([draw.randrange(VOCAB) for _ in range(draw.randint(1, 9))], 2, **options)
            if n % 8 == 7:
                engine.step()
                assert engine.prefixes.nbytes <= 60_000
        while engine.running:
            engine.step()
        assert engine.prefixes.nbytes <= 60_000
        assert mx.get_active_memory() - before <= 60_000 + 100_000


def test_prefixes_survive_on_disk(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    prompt = list(range(200))
    with BatchEngine(model, tokenizer, prefix_memory=1 << 20) as engine:
        engine.add(prompt, 4, mode="ar")
        while engine.running:
            engine.step()
        engine.prefixes.save(tmp_path, "key")
    with BatchEngine(model, tokenizer, prefix_memory=1 << 20) as engine:
        engine.prefixes.load(tmp_path, "key", model.make_cache())
        stats: list[Any] = []
        engine.add([*prompt, 5], 4, mode="ar", on_stats=stats.append)
        ids = []
        while engine.running:
            ids += [response.token for _, response, _ in engine.step() if response]
    assert stats[0].cached_tokens == 200
    assert ids == list(mlx_generate(model, [*prompt, 5], tokenizer.eos_token_ids, 4, mode="ar"))
