"""Requests that are made to take long, and odd ones that a server may stumble over."""

from __future__ import annotations

import json
import os
import socket
import threading
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from orthrus_mlx.chat.quoting import render_whole
from orthrus_mlx.cli.app import app
from orthrus_mlx.errors import ContextLengthError, ServerError
from orthrus_mlx.server import answers, ask, messages, responses, run
from orthrus_mlx.server.ask import Ask
from orthrus_mlx.server.fields import Fields
from orthrus_mlx.server.guard import Settings
from orthrus_mlx.server.openai import order_results

from .conftest import SCRIPT
from .house import TURN, Actor, House, serving

MANY = 20_000


def test_many_results_of_calls_are_ordered_at_once() -> None:
    calls = [{"id": f"c{n}"} for n in range(MANY)]
    results = [{"role": "tool", "tool_call_id": f"c{n}"} for n in reversed(range(MANY))]
    ordered = order_results([{"role": "assistant", "tool_calls": calls}, *results])
    assert ordered[1:] == results[::-1]


def test_results_of_no_call_stay_where_they_are() -> None:
    results = [{"role": "tool", "tool_call_id": id} for id in "ba"]
    assert order_results(results) == results


def test_many_messages_of_one_role_are_merged_at_once() -> None:
    given = [{"role": "user", "content": f"{n:0100}"} for n in range(MANY)]
    wanted = messages.read_prompt(Fields({"messages": given}))
    merged = "\n".join(message["content"] for message in given)
    assert wanted.messages == [{"role": "user", "content": merged}]


def test_many_items_of_one_turn_are_merged_at_once() -> None:
    told = [{"role": "system", "content": f"{n:0100}"} for n in range(MANY)]
    thought = [
        {"type": "reasoning", "summary": [{"text": f"{n:0100}"}], "content": []}
        for n in range(MANY)
    ]
    wanted = responses.read(Fields({"instructions": "Be brief.", "input": [*told, *thought]}))
    assert wanted.messages is not None
    system, turn = wanted.messages
    assert system["content"] == "\n\n".join(["Be brief.", *(t["content"] for t in told)])
    assert turn["reasoning_content"] == "".join(t["summary"][0]["text"] for t in thought)


def test_many_answers_that_quote_a_tag_are_looked_for_once() -> None:
    quoting = [{"role": "assistant", "content": f"{n:0100} </think>"} for n in range(MANY)]
    text = render_whole(lambda ms: "".join(m["content"] for m in ms), quoting, "</think>")
    assert text == "".join(m["content"] for m in quoting)


def test_too_many_answers_are_refused_before_a_prompt_is_encoded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []
    monkeypatch.setattr(house.service, "encode", encoded.append)
    asked = {"prompt": ["a"] * 10_000, "n": 32}
    response = house.post("/v1/completions", asked)
    assert response.status_code == 400
    assert "320000 answers" in response.json()["error"]["message"]
    assert not encoded


def test_a_prediction_is_encoded_once_and_no_longer_than_the_context(house: House) -> None:
    wanted = Ask(n=3, options={"prediction": "word " * MANY})
    jobs = house.service.jobs(wanted, lambda n, events: None, [[1]])
    first, *others = [job.options["prediction"] for job in jobs]
    assert len(first) == house.model.config.max_position_embeddings
    assert all(other is first for other in others)


def test_no_grammar_is_made_of_tools_that_no_prompt_can_hold(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.service, "_grammar", lambda ask: pytest.fail("it was made"))
    tools = [{"type": "function", "function": {"name": f"t{n}"}} for n in range(300)]
    wanted = Ask([{"role": "user", "content": "Hello."}], tools=tools, tool_choice="required")
    prompts = house.service.encode(wanted)
    with pytest.raises(ContextLengthError):
        house.service.jobs(wanted, lambda n, events: None, prompts)


def test_numbers_that_are_too_large_for_json(house: House) -> None:
    """The response would have to repeat them."""
    tool = '{"type": "function", "name": "x", "parameters": {"properties": {"a": {"x-b": 1e999}}}}'
    content = f'{{"input": "Hello.", "tools": [{tool}], "tool_choice": "none"}}'
    response = house.http.post("/v1/responses", content=content)
    assert response.status_code == 400
    assert "1e999" in response.json()["error"]["message"]


def test_a_stream_tells_the_seed_of_the_first_answer(house: House) -> None:
    """Be it over after the others or before."""
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n{TURN}" for text in ("long", "Hello.")]
    asked = {"prompt": prompts, "seed": 7, "max_tokens": 100, "stream": True}
    lines = house.post("/v1/completions", asked).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert ends == [1, 0]
    assert [c["orthrus"]["seed"] for c in chunks if "orthrus" in c] == [7]


def test_the_fingerprint_tells_what_an_answer_depends_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX's kernels and the chat template too: with others a seed promises nothing."""
    found = [house.service.fingerprint("exact"), house.service.fingerprint("fast")]
    with monkeypatch.context() as patch:
        patch.setattr(house.service.tokenizer._tokenizer, "chat_template", "another")
        found.append(house.service.fingerprint("exact"))
    with monkeypatch.context() as patch:
        patch.setattr(ask, "version", lambda name: "0" if name == "mlx" else version(name))
        found.append(house.service.fingerprint("exact"))
    assert len({*found}) == 4
    assert house.service.fingerprint("exact") == found[0]


def test_fields_that_look_alike_in_metrics_are_counted_as_one() -> None:
    with serving(Actor(SCRIPT)) as house:
        house.chat("Hello.", **{"a\x01": 1, "a\x02": 1})
        lines = house.http.get("/metrics").text.splitlines()
        assert [line for line in lines if "a?" in line] == [
            'orthrus_mlx_unknown_fields_total{field="a?"} 2'
        ]


def test_a_key_may_have_any_letters() -> None:
    with serving(Actor(SCRIPT), settings={"keys": ["schlüssel", "\udcff"]}) as house:
        for sent, status in (("schlüssel".encode(), 200), (b"\xff", 200), (b"\xfe", 401)):
            response = house.http.get("/v1/models", headers={"x-api-key": sent})
            assert response.status_code == status


@pytest.mark.parametrize(
    ("given", "keys"), [([], ["two words"]), (["--api-key", "a", "--api-key", "b c"], ["a", "b c"])]
)
def test_a_key_of_several_words_is_one(
    given: list[str], keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Settings] = []

    class Taken:
        def getsockname(self) -> tuple[str, int]:
            return "127.0.0.1", 8080

    def serve(service: Any, settings: Settings, *_: Any) -> int:
        found.append(settings)
        return 0

    monkeypatch.setenv("ORTHRUS_MLX_API_KEY", "two words")
    monkeypatch.setattr(run, "listen", lambda host, port: Taken())
    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(
        "orthrus_mlx.cli.serve._load", lambda *_, **__: SimpleNamespace(options={}, template={})
    )
    origin = ["--allow-origin", "https://page.example/, *"]
    ended = CliRunner().invoke(app, ["serve", *given, *origin])
    assert ended.exit_code == 0, ended.output
    assert [list(settings.keys) for settings in found] == [keys]
    assert found[0].origins == ["https://page.example", "*"]


@pytest.mark.parametrize("given", ["localhost", "localhost:3000", "http://a/b", "http://a,", ""])
def test_what_no_page_sends_as_its_origin_is_refused(given: str) -> None:
    ended = CliRunner().invoke(app, ["serve", "--allow-origin", given])
    assert ended.exit_code == 2 and "is no origin" in ended.output


def test_a_port_that_was_taken_while_the_model_was_loaded(house: House) -> None:
    """Two servers may bind one port as long as neither takes connections."""
    first = run.listen("127.0.0.1", 0)
    try:
        with pytest.raises(ServerError, match="is taken"), serving(Actor(SCRIPT)) as other:
            second = run.listen(*first.getsockname())
            first.listen()
            run.serve(other.service, Settings(), second)
        assert not other.service.worker.is_alive()
    finally:
        first.close()


def test_a_server_ends_though_a_request_is_still_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python itself would wait for the thread that reads it."""
    codes: list[int] = []
    monkeypatch.setattr(run, "LEAVING", 0.1)
    monkeypatch.setattr(os, "_exit", codes.append)
    with serving(Actor(SCRIPT)) as house:
        over = threading.Event()
        reading = answers._encoder.submit(over.wait, 30)
        try:
            run.end(house.service.worker, 3)
        finally:
            over.set()
        assert codes == [3]
        reading.result()
        run.end(house.service.worker, 4)
        assert codes == [3]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_localhost_is_where_a_client_of_127_0_0_1_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    six: Any = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four: Any = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six, four])  # as on macOS
    with run.listen("localhost", 0) as taken:
        assert taken.getsockname()[0] == "127.0.0.1"


def test_a_model_that_is_named_goes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(model: str | None, *_: Any, **__: Any) -> Any:
        raise ServerError(f"It would load {model}.")

    monkeypatch.setenv("ORTHRUS_MLX_MODEL", "usual")
    monkeypatch.setattr("orthrus_mlx.cli.serve._load", stop)
    for args, loads in ((["this"], "this"), ([], "usual"), (["--model", "that"], "that")):
        assert f"load {loads}." in CliRunner().invoke(app, ["serve", "--port", "0", *args]).stderr
    both = CliRunner().invoke(app, ["serve", "--port", "0", "this", "--model", "that"])
    assert both.exit_code == 2
