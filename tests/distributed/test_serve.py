"""A server over two ranks answers as one process does, and ends with all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.distributed.ranks import PATIENCE, Ranks, free_ports
from tests.distributed.test_ends import lines

pytestmark = pytest.mark.full
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
GRAMMAR = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
WISHES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 4},
    {"temperature": 0.8, "seed": 5, "max_tokens": 9},
    {"temperature": 0.9, "seed": 6, "response_format": GRAMMAR},
]
CHAT = "/v1/chat/completions"


def body(wish: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Say something."}]
    return {"messages": messages, "max_tokens": 24} | wish | more


def text(wish: dict[str, Any], url: str) -> Any:
    reply = httpx2.post(url + CHAT, json=body(wish), timeout=PATIENCE)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return found["choices"][0]["message"]["content"], found["usage"]["completion_tokens"]


@contextmanager
def streamed(wish: dict[str, Any], url: str) -> Iterator[Iterator[str]]:
    """The text of an answer as it comes; whoever ends the block early leaves."""

    def parts(events: Iterator[str]) -> Iterator[str]:
        for line in events:
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    yield choice["delta"].get("content") or ""

    asked = body(wish, stream=True)
    with httpx2.stream("POST", url + CHAT, json=asked, timeout=PATIENCE) as reply:
        yield parts(reply.iter_lines())


def command(folder: Path, port: int) -> list[str]:
    serve = [sys.executable, "-m", "orthrus_mlx.cli", "serve", str(folder)]
    return [*serve, "--no-calibrate", "--port", str(port)]


def when_up(process: subprocess.Popen[str]) -> None:
    """Wait until it says where it serves."""
    assert process.stderr is not None
    assert any("Serving" in line for line in process.stderr), "it ended before"


@contextmanager
def served(folder: Path, tmp_path: Path) -> Iterator[tuple[Ranks, str]]:
    """Two ranks that serve, and where."""
    port = free_ports(1)[0]
    ranks = Ranks(2, command(folder, port), tmp_path, ORTHRUS_MLX_ALONE="never")
    watchdog = threading.Timer(PATIENCE, ranks.kill)
    watchdog.start()
    try:
        when_up(ranks.processes[0])
        yield ranks, f"http://127.0.0.1:{port}"
    finally:
        watchdog.cancel()
        ranks.kill()


def answers(url: str) -> list[Any]:
    return [text(wish, url) for wish in WISHES]


@pytest.fixture(scope="module")
def alone(random12: Path) -> Iterator[list[Any]]:
    """What one process answers."""
    port = free_ports(1)[0]
    process = subprocess.Popen(command(random12, port), stderr=subprocess.PIPE, text=True)
    try:
        when_up(process)
        yield answers(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGINT"])
def test_answers_and_leaving(random12: Path, tmp_path: Path, alone: list[Any], sign: str) -> None:
    with served(random12, tmp_path) as (ranks, url):
        assert answers(url) == alone
        for wish, (whole, _) in zip(WISHES, alone, strict=True):
            with streamed(wish, url) as parts:
                assert "".join(parts) == whole
        found: dict[int, Any] = {}

        def ask(n: int) -> None:
            found[n] = text(WISHES[n], url)

        asking = [threading.Thread(target=ask, args=(n,)) for n in range(len(WISHES))]
        for thread in asking:
            thread.start()
        for seed in range(4):
            with streamed({"seed": seed, "max_tokens": 500}, url) as parts:
                next(parts)
        for thread in asking:
            thread.join()
        assert [found[n] for n in range(len(WISHES))] == alone
        ranks.processes[0].send_signal(getattr(signal, sign))
        ended = ranks.wait()
        assert [one.code for one in ended] == [0, 0]
        assert not lines(ended[0].err + ended[1].err)


def test_a_rank_that_is_killed_ends_the_server(random12: Path, tmp_path: Path) -> None:
    with served(random12, tmp_path) as (ranks, url):
        with suppress(httpx2.HTTPError), streamed({"max_tokens": 900}, url) as parts:
            next(parts)
            ranks.processes[1].kill()
            for _ in parts:
                pass
        ended = ranks.wait()
        assert ended[0].code == 1
        assert len(lines(ended[0].err)) == 1 and "Rank 1 on " in ended[0].err


def test_a_server_ends_with_its_launcher(random12: Path) -> None:
    port = free_ports(1)[0]
    start = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    start += ["-n", "2", "--backend", "ring", "-p", str(free_ports(1)[0]), "--"]
    launcher = subprocess.Popen(
        [*start, *command(random12, port)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ORTHRUS_MLX_ALONE": "never"},
        start_new_session=True,
    )
    when_up(launcher)
    with streamed({}, f"http://127.0.0.1:{port}") as parts:
        next(parts)
        launcher.terminate()
        assert launcher.wait() == -signal.SIGTERM
    while True:  # until nobody listens there
        try:
            httpx2.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE)
        except httpx2.ConnectError:
            break
