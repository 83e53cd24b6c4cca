"""A server's life: it takes its address, loads the model, answers, and ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import wait
from typing import Any

import uvicorn

from ..errors import ServerError
from ..signals import no_interrupts
from .answers import is_busy
from .app import build
from .ask import Service
from .guard import Settings
from .worker import Worker

GRACE = 10.0  # seconds that answers under way have to finish once the server is told to end
LEAVING = 2.0  # seconds that the threads have, once nobody waits for an answer any more
SPARE_CONNECTIONS = 256  # beyond those of answers; what comes then is turned away unread
KEEP_ALIVE = 75  # seconds that a connection may be idle


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before anything that takes long.

    Raises:
        ServerError: if it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # macOS names ::1 first for localhost, where a client of 127.0.0.1 would find nobody.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        taken = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ServerError(f"The address {host} cannot be used: {error.strerror}.") from None
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _unusable(host, port, error) from None
    return taken


def _unusable(host: str, port: int, error: OSError) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        return ServerError(
            f"Port {port} of {host} is taken: another server runs there. Choose another with "
            "--port."
        )
    return ServerError(f"{host}:{port} cannot be used: {error.strerror}.")


def wait_for(worker: Worker, show: Callable[[str, int, int], None]) -> tuple[Any, Any]:
    """The model and tokenizer, once the worker has loaded them; Ctrl-C gets through meanwhile.

    Args:
        worker: it was started.
        show: called with its `stage` now and then.
    """
    while not worker.ready.done():
        show(*worker.stage)
        wait([worker.ready], timeout=0.2)
    return worker.ready.result()


class _Server(uvicorn.Server):
    """A server that ends in order on Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed.

    A second one ends it at once, but for SIGHUP, of which there often are two.

    Attributes:
        told: whether it was told to end, by a signal or otherwise.
    """

    told = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before = {s: signal.signal(s, self.handle_exit) for s in numbers}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self.should_exit and sig != signal.SIGHUP
        self.should_exit = True


def serve(
    service: Service,
    settings: Settings,
    taken: socket.socket,
    on_ready: Callable[[], None] = lambda: None,
    on_end: Callable[[str], None] = lambda line: None,
) -> int:
    """Answer requests until told to end.

    Args:
        service: what is served; its worker runs.
        settings: who may ask.
        taken: the address, from `listen`.
        on_ready: called once requests are taken.
        on_end: told why the server ends, where answers are under way or the engine has ended.

    Returns:
        the exit code: 0 if it was told to end, 1 if the engine ended before.

    Raises:
        ServerError: if another server took the address while this one was loading.
    """
    server = _Server(config(service, settings))
    try:
        try:
            taken.listen()
        except OSError as error:
            host, port = taken.getsockname()[:2]
            raise _unusable(host, port, error) from None
        asyncio.run(_run(server, service.worker, taken, on_ready, on_end))
    except BaseException:
        end(service.worker, 1)
        raise
    finally:
        taken.close()
    code = int(service.worker.dead is not None and not server.told)
    end(service.worker, code)
    return code


def end(worker: Worker, code: int) -> None:
    """End a worker's thread; or the process, where a thread is in work that nobody waits for.

    Another Ctrl-C changes nothing: Python aborts if it ends while a thread is in MLX.

    Args:
        worker: it was started.
        code: the exit code of the process.
    """
    with no_interrupts():
        worker.stop()
        worker.join(LEAVING)
        if worker.is_alive() or is_busy(LEAVING):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def config(service: Service, settings: Settings) -> uvicorn.Config:
    """How uvicorn is to serve a model: by itself, without a word of its own."""
    return uvicorn.Config(
        build(service, settings),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.worker.most + SPARE_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(GRACE) + 2,
    )


async def _run(
    server: _Server,
    worker: Worker,
    taken: socket.socket,
    on_ready: Callable[[], None],
    on_end: Callable[[str], None],
) -> None:
    """Serve, and see to it that no end leaves a client waiting."""

    async def watch() -> None:
        while not server.should_exit:
            if not worker.is_alive():
                on_end(f"The engine has ended: {worker.dead}")
                server.should_exit = True
                await asyncio.sleep(0.3)  # for its clients to be told
                server.force_exit = True
                return
            if server.started and not ready:
                ready.append(True)
                on_ready()
            await asyncio.sleep(0.05)
        server.told = True
        worker.stop()
        if sum(worker.load):
            on_end(
                f"Ending: answers under way have {GRACE:g} s to finish; Ctrl-C again ends at once."
            )
        for _ in range(int(GRACE / 0.05)):
            if not sum(worker.load) or server.force_exit:
                break
            await asyncio.sleep(0.05)
        worker.abandon()

    ready: list[bool] = []
    watching = asyncio.create_task(watch())
    await server.serve(sockets=[taken])
    server.should_exit = True
    await watching
