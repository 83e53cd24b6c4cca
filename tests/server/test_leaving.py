"""Clients that leave, read slowly or crowd in: rows are free within a cycle, nothing leaks."""

from __future__ import annotations

import gc
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.amount import few

from .conftest import SCRIPT
from .house import Actor, House, serving


@pytest.fixture
def slow_house() -> Iterator[House]:
    """A server whose passes wait until they are told to go on, one permit each."""
    with serving(Actor(SCRIPT), concurrency=2, queue=2) as house:
        yield house


def body(text: str, **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


def connect(house: House, content: bytes, path: str = "/v1/chat/completions") -> socket.socket:
    """A request sent by hand, so that the connection can be cut anywhere."""
    host, port = house.url.removeprefix("http://").split(":")
    link = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    link.sendall(head.encode() + content)
    return link


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something to become true; a watchdog, not a measure."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


def left(house: House) -> int:
    """Answers that the engine knows nobody waits for, and has not ended yet."""
    worker = house.service.worker
    return sum(job.left for job in [*worker._running.values(), *worker._waiting])


def idle(house: House) -> bool:
    return house.service.worker.load == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows_within_a_cycle(stream: bool) -> None:
    with serving(Actor(SCRIPT)) as house:
        model = house.model
        model.gate = threading.Semaphore(8)
        link = connect(house, body("long", stream=stream))
        until(lambda: model.passes == 8)  # the next one waits for the gate
        received = b""
        while stream and b"word" not in received:
            received += link.recv(4096)
        link.close()
        until(lambda: left(house) == 1 or idle(house))  # if the engine was just between two passes
        model.gate.release(1000)
        until(lambda: idle(house))
        assert model.passes <= 8 + 2  # of a cycle
        model.gate = None
        assert house.chat("And now?")["choices"][0]["message"]["content"] == "And now?"


def test_a_client_that_leaves_while_its_prompt_is_read(house: House) -> None:
    model = house.model
    model.slow.clear()
    link = connect(house, body("word " * 2500))
    until(lambda: house.service.worker.load == (1, 0))
    link.close()
    until(lambda: left(house) == 1)
    before = model.passes
    model.slow.set()
    until(lambda: idle(house))
    assert model.passes <= before + 1


def test_one_that_leaves_while_it_waits(slow_house: House) -> None:
    house = slow_house
    house.model.slow.clear()
    links = [connect(house, body("long")) for _ in range(3)]
    until(lambda: sum(house.service.worker.load) == 3)
    links[2].close()
    until(lambda: left(house) == 1)
    house.model.slow.set()
    for link in links[:2]:
        link.close()
    until(lambda: idle(house))


def test_a_full_queue_is_said_so(slow_house: House) -> None:
    house = slow_house
    house.model.slow.clear()
    links = [connect(house, body("Hello.")) for _ in range(4)]
    until(lambda: sum(house.service.worker.load) == 4)
    refused = house.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello."}]}
    )
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    assert house.http.get("/health").status_code == 200
    house.model.slow.set()
    for link in links:
        assert b"200 OK" in link.recv(65536)
        link.close()


def test_a_slow_reader_holds_up_nobody(house: House) -> None:
    link = connect(house, body("long", stream=True))
    for _ in range(3):
        assert house.chat("Fast.")["choices"][0]["message"]["content"] == "Fast."
    received = b""
    while b"[DONE]" not in received:
        received += link.recv(1 << 16)
    assert received.count(b"data:") > 1
    link.close()


def test_an_answer_has_its_time() -> None:
    with serving(Actor(SCRIPT), settings={"seconds": 0.5}) as house:
        house.model.slow.clear()
        release = threading.Timer(1.5, house.model.slow.set)
        release.start()
        late = house.post("/v1/chat/completions", json.loads(body("long")))
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout"
        release.join()
        until(lambda: idle(house))


def test_many_that_leave_anywhere_leave_nothing_behind(house: House) -> None:
    """Threads, jobs and objects are as many as before."""
    draw = random.Random(5)

    def some(n: int) -> None:
        links = []
        for _ in range(n):
            content = body(draw.choice(["long", "Hello.", "think"]), stream=draw.random() < 0.7)
            link = connect(house, content[: draw.choice([9, 10**6, 10**6, 10**6])])
            if draw.random() < 0.5:
                link.settimeout(draw.choice([0.001, 0.01, 0.05]))
                try:
                    while link.recv(512):
                        pass
                except TimeoutError:
                    pass
            links.append(link)
            if draw.random() < 0.8:
                links.pop(draw.randrange(len(links))).close()
        for link in links:
            link.close()
        until(lambda: idle(house))

    def things() -> int:
        gc.collect()
        return sum(
            type(thing).__name__ in ("Job", "Answers", "Pieces") for thing in gc.get_objects()
        )

    some(few(40, of=500))
    before, threads = things(), threading.active_count()
    some(few(40, of=500))
    until(lambda: things() <= before + 2)
    assert threading.active_count() <= threads + 1
    assert house.chat("Still there?")["choices"][0]["message"]["content"] == "Still there?"
