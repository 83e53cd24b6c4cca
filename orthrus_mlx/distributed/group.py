"""The group of ranks that this process belongs to: found once, and left together."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import cuda
from .._version import __version__
from ..device.measured import MLX_VERSION, device_name
from ..errors import DistributedError, brief
from . import launched
from .control import (
    FAREWELL,
    Link,
    Word,
    accept,
    connect,
    end_process,
    end_with_launcher,
    explain_first,
    killed_by_ctrl_c,
    listen,
    remember_terminal,
)

INVITATION = 2048  # ids: what rank 0 tells the others of where to connect, a byte each


class Group:
    """All ranks, as one of them sees them.

    Attributes:
        comm: MLX's own group.
        size: how many ranks there are.
        rank: which one this is.
        backend: which of MLX's engines carries the activations.
        devices: of all ranks, in order; known to rank 0.
        links: to the other ranks; on those, to rank 0.
        alike: whether all ranks would pad and compile passes in the same way; the others learn it
            when they load a model.
        open: whether words can be sent.
    """

    def __init__(self, comm: Any, backend: str):
        self.comm, self.backend = comm, backend
        self.size, self.rank = comm.size(), comm.rank()
        self.links: list[Link] = []
        self.open = self.size > 1
        self.alike = True
        self.devices = [device_name()]
        self.models = 0  # that were loaded so far
        self.last: mx.array | None = None  # what the last pass that was started computes
        self._bye: list[Word] = []
        if self.size > 1:
            self._connect()

    # ------------------------------------------------------------------------------ beginning

    def _connect(self) -> None:
        facts = {
            "host": socket.gethostname(),
            "device": device_name(),
            "mlx": MLX_VERSION,
            "orthrus-mlx": __version__,
            "kind": cuda.kind(),
            "pid": os.getpid(),
        }
        if self.rank:
            invitation = self._invite(None)
            hello = facts | {"rank": self.rank, "token": invitation["token"]}
            connection = connect(invitation["addresses"], invitation["port"], hello)
            first = invitation["facts"]
            self.links = [Link(connection, 0, first, self._rank_0_lost, self._failed)]
        else:
            addresses = own_addresses()
            server = listen(local=addresses == ["127.0.0.1"])
            token = secrets.token_hex(16)
            port = server.getsockname()[1]
            self._invite({"token": token, "port": port, "addresses": addresses, "facts": facts})
            for rank, (connection, hello) in sorted(accept(server, token, self.size).items()):
                self.links.append(Link(connection, rank, hello, self._other_lost, self._failed))
            self.devices += [str(link.facts.get("device")) for link in self.links]
            self.alike = all(link.facts.get("kind") == facts["kind"] for link in self.links)
            atexit.register(self.leave)
            end_with_launcher()
        for link in self.links:
            link.watch()
        if not self.rank:
            for link in self.links:
                for what in ("mlx", "orthrus-mlx"):
                    if (other := link.facts.get(what)) != facts[what]:
                        raise DistributedError(
                            f"Rank {link.rank} on {link.name} has {what} {other}, and rank 0 has "
                            f"{facts[what]}. Install the same on all machines."
                        )
        remember_terminal()
        explain_first()

    def _invite(self, word: Word | None) -> Any:
        """What rank 0 says of where it listens, known to all."""
        text = json.dumps(word).encode() if word else b""
        if len(text) > INVITATION:
            raise DistributedError(f"This machine has too many addresses: {brief_list(word)}.")
        own = mx.array(list(text.ljust(INVITATION)), mx.int32)
        told: Any = mx.distributed.all_gather(own, group=self.comm)[:INVITATION].tolist()
        return json.loads(bytes(told))

    # ------------------------------------------------------------------------------ words

    def tell(self, word: Word) -> None:
        """Send a word to every other rank."""
        if not self.open:
            raise DistributedError("The ranks have parted: this model cannot run any more.")
        for link in self.links:
            link.send(word)

    def receive(self) -> Word:
        """Wait for the next word of rank 0."""
        return self.links[0].inbox.get()

    def answers(self) -> list[Word]:
        """Wait for one word of every other rank, in rank order."""
        return [link.inbox.get() for link in self.links]

    def report(self) -> list[Word]:
        """What each other rank has done so far: passes, and its memory in bytes."""
        self.settle()
        self.tell({"op": "report"})
        return self.answers()

    # ------------------------------------------------------------------------------ the end

    def settle(self) -> None:
        """Wait until the last pass is over, so that no rank is left inside it."""
        last, self.last = self.last, None
        if last is not None:
            mx.eval(last)

    def leave(self) -> list[Word]:
        """Send the other ranks home; what they did."""
        if not self.open:
            return self._bye
        with contextlib.suppress(Exception):
            self.settle()
        for link in self.links:
            link.leaving = True
            link.send({"op": "bye"})
        self.open = False
        for link in self.links:
            with contextlib.suppress(queue.Empty):
                self._bye.append(link.inbox.get(timeout=FAREWELL))
            link.close()
        return self._bye

    def break_off(self) -> None:
        """End the other ranks at once: they wait in a pass that this one cannot run."""
        self.open, self.last = False, None
        for link in self.links:
            link.leaving = True
            link.send({"op": "end"})

    def _other_lost(self, link: Link) -> None:
        self._end(
            f"Rank {link.rank} on {link.name} has ended or cannot be reached; the others end too."
        )

    def _failed(self, link: Link, why: str) -> None:
        self._end(f"Rank {link.rank} on {link.name} failed: {why}")

    def _end(self, line: str) -> None:
        with contextlib.suppress(Exception):
            self.break_off()  # without a line of their own
        end_process(line)

    def _rank_0_lost(self, link: Link) -> None:
        line = f"Rank 0 on {link.name} has ended or cannot be reached; the others end too."
        end_process(line if self.rank == 1 else "")


_group: Group | None = None
_joining = threading.Lock()


def join() -> Group | None:
    """The group of this process, formed at the first call; None for a process on its own.

    Raises:
        DistributedError: if the ranks do not find each other.
    """
    global _group
    if not launched():
        return None
    with _joining:
        if _group is None:
            backend = backend_name()
            try:
                with killed_by_ctrl_c():  # MLX waits for ranks that are not there yet
                    comm = mx.distributed.init(backend=backend)
                _group = Group(comm, backend)
            except RuntimeError as error:
                raise DistributedError(
                    f"The ranks do not find each other: {brief(error)}."
                ) from error
    return _group if _group.size > 1 else None


def backend_name() -> str:
    """Which of MLX's engines the launcher chose, from what it left in the environment."""
    if "MLX_JACCL_COORDINATOR" in os.environ or "MLX_IBV_DEVICES" in os.environ:
        return "jaccl"
    if "MLX_HOSTFILE" in os.environ:
        return "ring"
    if "MLX_WORLD_SIZE" in os.environ:
        return "nccl"
    return "any" if "MLX_RANK" in os.environ else "mpi"


def own_addresses() -> list[str]:
    """Addresses of this machine at which the other ranks may reach it, likely ones first."""
    if own := os.environ.get("ORTHRUS_MLX_HOST"):
        return [own]
    found: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        hosts: Any = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        found += [address.rpartition(":")[0] for address in hosts[0]]
        if all(a.startswith("127.") for host in hosts for a in host):
            return ["127.0.0.1"]
    for name in ("MLX_JACCL_COORDINATOR", "NCCL_HOST_IP"):
        if place := os.environ.get(name):
            found.append(place.rpartition(":")[0] or place)
    if set(found) == {"127.0.0.1"}:
        return found
    with contextlib.suppress(OSError):
        found += [str(info[4][0]) for info in _resolved(socket.gethostname())]
    with contextlib.suppress(OSError):  # which one packets to elsewhere leave by; none is sent
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        probe.connect(("192.0.2.1", 9))
        found.append(str(probe.getsockname()[0]))
        probe.close()
    return list(dict.fromkeys([*found, "127.0.0.1"]))


def _resolved(name: str) -> Iterator[Any]:
    yield from socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)


def brief_list(word: Word | None) -> str:
    """The addresses in an invitation, for a message."""
    return ", ".join((word or {}).get("addresses", []))
