"""The engine fails or dies, the server is told to end: nobody is left waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest

from orthrus_mlx.errors import ServerError
from orthrus_mlx.server.run import end
from orthrus_mlx.server.worker import Worker
from tests import helpers

from .conftest import SCRIPT
from .house import Actor, House, serving
from .test_leaving import body, connect, until


def asked(house: House, text: str, found: list[Any]) -> threading.Thread:
    """Ask from a thread of its own."""

    def ask() -> None:
        message = {"messages": [{"role": "user", "content": text}]}
        found.append(house.post("/v1/chat/completions", message))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_an_engine_that_fails_goes_on() -> None:
    with serving(Actor(SCRIPT)) as house:
        for _ in range(5):
            house.model.broken = RuntimeError("[metal] out of memory")
            message = {"messages": [{"role": "user", "content": "Hello."}]}
            failed = house.post("/v1/chat/completions", message)
            assert failed.status_code == 500
            assert "memory" not in failed.text  # what failed within is for the log
            assert any("out of memory" in line for line in house.log)
            assert house.chat("Hello.")["choices"][0]["message"]["content"] == "Hello."
        assert house.http.get("/health").status_code == 200


def test_a_stream_that_fails_ends_with_an_error() -> None:
    with serving(Actor(SCRIPT)) as house:
        link = connect(house, body("long", stream=True))
        received = b""
        while b"word" not in received:
            received += link.recv(4096)
        house.model.broken = RuntimeError("no")
        while part := link.recv(4096):
            received += part
            if b'"error"' in received:
                break
        last = received.rpartition(b"data: ")[2].split(b"\n")[0]
        assert json.loads(last)["error"]["type"] == "api_error"
        assert b"[DONE]" not in received
        assert any("RuntimeError('no')" in line for line in house.log)


def test_an_engine_that_dies_tells_all_that_wait() -> None:
    """The server ends; its process then exits with code 1."""
    with serving(Actor(SCRIPT), concurrency=1) as house:
        house.model.slow.clear()
        found: list[Any] = []
        threads = [asked(house, "long", found) for _ in range(3)]
        until(lambda: sum(house.service.worker.load) == 3)
        house.model.broken = SystemExit("killed")
        house.model.slow.set()
        for thread in threads:
            thread.join(10)
        assert [response.status_code for response in found] == [503] * 3
        assert {response.json()["error"]["code"] for response in found} == {"engine_ended"}
        until(lambda: house.code is not None)
        assert house.code == 1


def test_an_engine_that_fails_again_and_again_dies() -> None:
    with serving(Actor(SCRIPT)) as house:
        read = house.model.forward

        def always(rows: Any) -> Any:
            if rows.segments[0].ar.size > 1:  # a prompt that is read fails alone
                return read(rows)
            raise RuntimeError("no")

        house.model.forward = always
        for status in (500, 500):
            message = {"messages": [{"role": "user", "content": "Hello."}]}
            assert house.post("/v1/chat/completions", message).status_code == status
        house.post("/v1/chat/completions", message)
        until(lambda: house.code is not None)
        assert house.code == 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, small enough to be probed at once."""
    folder = tmp_path_factory.mktemp("tiny")
    config = helpers.random_config(
        block_size=4, vocab_size=1024, num_hidden_layers=1, hidden_size=32, head_dim=8,
        intermediate_size=32, num_key_value_heads=1, num_attention_heads=2,
    )  # fmt: skip
    weights = helpers.random_weights(config, seed=4)
    with resources.as_file(resources.files("orthrus_mlx") / "demo") as demo:
        return helpers.write_checkpoint(folder, config, weights, tokenizer_from=demo)


def default_signals() -> None:
    """Whoever runs the tests in the background may have had them ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start(tiny: Path) -> Any:
    """Start `orthrus-mlx serve` as a user does; gives the process and its address."""
    running: list[subprocess.Popen[str]] = []

    def begin(*more: str, env: dict[str, str] | None = None) -> tuple[Any, str]:
        command = [sys.executable, "-m", "orthrus_mlx.cli", "serve", str(tiny)]
        process = subprocess.Popen(
            [*command, "--port", "0", "--no-calibrate", *more],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            preexec_fn=default_signals,
        )
        running.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if " at http" in line:
                return process, line.split(" at ")[1].split(" ")[0]
        raise AssertionError(f"it ended with {process.wait()}")

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_is_told_to_end(start: Callable[..., Any], name: int) -> None:
    """Answers under way come to their end, and the exit code is 0."""
    process, url = start()
    found: list[Any] = []
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40}

    def ask() -> None:
        found.append(httpx2.post(f"{url}/v1/chat/completions", json=question, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if httpx2.get(f"{url}/health").json()["running"] or found:
            break
    process.send_signal(name)
    thread.join(60)
    assert found[0].status_code == 200
    assert found[0].json()["choices"][0]["finish_reason"] in ("stop", "length")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert not out
    assert "Traceback" not in err


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_waits_for_the_engine_too(
    monkeypatch: pytest.MonkeyPatch, name: int
) -> None:
    """Python aborts if it ends while a thread is in MLX."""

    class Busy:
        def stop(self) -> None:
            os.kill(os.getpid(), name)

        def join(self, seconds: float) -> None:
            os.kill(os.getpid(), name)

        def is_alive(self) -> bool:
            return True

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(name, signal.default_int_handler)
    try:
        end(cast(Worker, Busy()), 130)
    finally:
        signal.signal(name, before)
    assert ended == [130]


def test_a_port_that_is_taken(start: Callable[..., Any]) -> None:
    _, url = start()
    again = subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "serve", "--port", url.rpartition(":")[2]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 1
    assert "is taken" in again.stderr and "--port" in again.stderr


def test_an_address_that_others_reach_needs_a_key() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "serve", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "ORTHRUS_MLX_API_KEY"},
    )
    assert refused.returncode == 2
    assert "ORTHRUS_MLX_API_KEY" in refused.stderr


def test_what_is_measured_again_is_shown() -> None:
    """Costs that answers contradict; before the worker is ready its stage is looked at instead."""
    worker = Worker(lambda: (None, None))
    shown: list[tuple[str, int, int]] = []
    worker.show = lambda *stage: shown.append(stage)
    worker._measures("calibrate", 1, 9)
    assert worker.stage == ("calibrate", 1, 9) and not shown
    worker.ready.set_result((None, None))
    worker._measures("calibrate", 2, 9)
    worker.stop()
    with pytest.raises(ServerError):
        worker._measures("calibrate", 3, 9)
    assert shown == [("calibrate", 2, 9), ("calibrate", 9, 9)]  # and it is gone
