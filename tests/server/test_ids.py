"""Every endpoint writes the ids that `stream_generate` writes, alone and beside others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest

from orthrus_mlx import stream_generate
from orthrus_mlx.batches import BatchEngine
from orthrus_mlx.chat.prompt import encode_chat
from orthrus_mlx.server.ask import Ask
from tests import helpers
from tests.amount import few
from tests.lossless import random_models
from tests.structured.schemas import VOCAB_SIZE

from .house import House, serving, tokenizer

LONGEST = 24
TEXTS = ["Hello there.", "Once upon a time", "2 + 2 =", "Grüße, 世界!"]
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 0.8, "top_p": 0.95}


@pytest.fixture(
    scope="module",
    params=["fast", pytest.param("exact", marks=pytest.mark.full)],  # probing takes its time
)
def real(request: pytest.FixtureRequest) -> Iterator[House]:
    """A server that always drafts, of a small random model; some drafts are accepted."""
    config = helpers.random_config(
        3, vocab_size=VOCAB_SIZE, block_size=5, num_hidden_layers=2, tie_word_embeddings=False
    )
    weights = random_models.copy_projections(helpers.random_weights(config, seed=5))
    model = random_models.build(config, random_models.favour_one_token(config, weights, 12.0))
    mx.eval(model.parameters())  # what is lazy can be computed by the thread alone that made it
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "fast":
            patch.setattr(BatchEngine, "prepare", lambda engine, progress=None: False)
        with serving(model, options={"mode": "parallel"}) as house:
            assert house.service.worker.exact == (request.param == "exact")
            yield house


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def expected(house: House, prompt: list[int], numerics: str, **options: Any) -> list[int]:
    """What `stream_generate` writes."""
    responses = stream_generate(
        house.model, tokenizer(), prompt, LONGEST, numerics=numerics, calibrate=False, **options
    )
    return [response.token for response in responses]


def ask(house: House, api: str, text: str, stream: bool, **options: Any) -> tuple[list[int], str]:
    """(ids, numerics) of an answer by one endpoint."""
    body: dict[str, Any] = {"return_token_ids": True, "stream": stream, **options}
    if api == "completions":
        body |= {"prompt": text, "max_tokens": LONGEST}
    elif api == "responses":
        body |= {"input": text, "max_output_tokens": LONGEST}
    else:
        body |= {"messages": user(text), "max_tokens": LONGEST}
    path = "/v1/chat/completions" if api == "chat" else f"/v1/{api}"
    response = house.post(path, body)
    assert response.status_code == 200, response.text
    if not stream:
        found = response.json()
        holder = found if api == "responses" else found["choices"][0]
        return holder["token_ids"], found["orthrus"]["numerics"]
    data = [line[6:] for line in response.text.split("\n") if line.startswith("data: {")]
    last = json.loads(data[-1])
    last = last.get("response", last)
    holder = last if api == "responses" else last["choices"][0]
    return holder["token_ids"], last["orthrus"]["numerics"]


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("api", ["completions", "chat", "responses"])
def test_ids(real: House, api: str, options: dict[str, float]) -> None:
    for seed, text in enumerate(TEXTS[: few(2, of=4)]):
        [prompt] = real.service.encode(
            Ask(prompts=[text]) if api == "completions" else Ask(messages=user(text))
        )
        if api != "completions":
            assert prompt == encode_chat(tokenizer(), user(text))[0]
        for stream in (False, True):
            ids, numerics = ask(real, api, text, stream, seed=seed, **options)
            assert ids == expected(real, prompt, numerics, seed=seed, **options)


def test_ids_of_sixteen_clients_at_once(real: House) -> None:
    wishes = []
    for n in range(few(16, of=64)):
        api = ("completions", "chat", "responses")[n % 3]
        options = SAMPLED if n % 4 else GREEDY
        wishes.append((real, api, TEXTS[n % len(TEXTS)], n % 2 == 0, n, options))

    def one(wish: Any) -> tuple[list[int], str]:
        house, api, text, stream, seed, options = wish
        return ask(house, api, text, stream, seed=seed, **options)

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(one, wishes))
    totals = real.service.worker.totals
    assert 0 < totals.accepted_tokens < totals.drafted_tokens
    for (house, api, text, _, seed, options), (ids, numerics) in zip(wishes, answers, strict=True):
        [prompt] = house.service.encode(
            Ask(prompts=[text]) if api == "completions" else Ask(messages=user(text))
        )
        assert ids == expected(house, prompt, numerics, seed=seed, **options)


def test_n_answers_have_seeds_behind_each_other(real: House) -> None:
    body = {"prompt": TEXTS[0], "max_tokens": LONGEST, "n": 3, "seed": 7, **SAMPLED}
    found = real.post("/v1/completions", {**body, "return_token_ids": True}).json()
    [prompt] = real.service.encode(Ask(prompts=[TEXTS[0]]))
    for n, choice in enumerate(found["choices"]):
        numerics = found["orthrus"]["numerics"]
        assert choice["token_ids"] == expected(real, prompt, numerics, seed=7 + n, **SAMPLED)


def test_what_kills_other_servers() -> None:
    """A list of prompts; and an answer that is gone on with, when its whole KV cache is kept."""
    config = helpers.random_config(3, vocab_size=VOCAB_SIZE, block_size=5, num_hidden_layers=2)
    model = random_models.build(config, helpers.random_weights(config, seed=5))
    mx.eval(model.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchEngine, "prepare", lambda engine, progress=None: False)
        with serving(model, prefix_memory=50_000_000) as house:
            body = {"max_tokens": LONGEST, "return_token_ids": True, **GREEDY}
            several = house.post("/v1/completions", {"prompt": ["a", "b"], **body})
            assert [choice["index"] for choice in several.json()["choices"]] == [0, 1]
            [prompt] = house.service.encode(Ask(prompts=[TEXTS[1]]))
            whole, cached = list(prompt), []
            for _ in range(3):  # the second time at the latest, what is asked for is all kept
                found = house.post("/v1/completions", {"prompt": whole, **body}).json()
                ids = found["choices"][0]["token_ids"]
                assert ids == expected(house, whole, "fast", **GREEDY)
                cached.append(found["usage"]["prompt_tokens_details"]["cached_tokens"])
                again = house.post("/v1/completions", {"prompt": whole, **body}).json()
                assert again["choices"][0]["token_ids"] == ids
                assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(whole) - 1
                whole = [*whole, *ids[:-1]]
            assert cached[1] == len(prompt) + LONGEST - 2
            assert house.http.get("/health").status_code == 200
