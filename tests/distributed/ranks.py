"""Starts ranks as `mlx.launch` does, on this machine, with exit codes that can be seen."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 240.0  # a watchdog only: machines that run tests are busy


class Ended(NamedTuple):
    """How a rank ended."""

    code: int
    out: str
    err: str


class Ranks:
    """Some ranks of one command."""

    def __init__(self, count: int, command: Sequence[str], folder: Path, **env: str):
        hosts = [[f"127.0.0.1:{port}"] for port in free_ports(count)]
        hostfile = folder / f"hosts-{hosts[0][0].rpartition(':')[2]}.json"
        hostfile.write_text(json.dumps(hosts))
        base = os.environ | {"MLX_HOSTFILE": str(hostfile), "OMP_NUM_THREADS": "1", **env}
        self.processes = [
            subprocess.Popen(
                command,
                env=base | {"MLX_RANK": str(rank)},
                stdin=subprocess.PIPE,  # which nobody writes to, nor closes
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def wait(self) -> list[Ended]:
        """How each ended; a rank that does not is killed, which shows in its code."""
        outputs: dict[int, tuple[str, str]] = {}

        def read(rank: int) -> None:
            outputs[rank] = _read(self.processes[rank])

        readers = [threading.Thread(target=read, args=(n,)) for n in range(len(self.processes))]
        watchdog = threading.Timer(PATIENCE, self.kill)
        watchdog.start()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        watchdog.cancel()
        return [Ended(one.wait(), *outputs[n]) for n, one in enumerate(self.processes)]

    def kill(self) -> None:
        """End those that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()


def _read(process: subprocess.Popen[str]) -> tuple[str, str]:
    """All output, with the standard input left open."""
    assert process.stdout is not None and process.stderr is not None
    errors: list[str] = []
    stream = process.stderr
    reader = threading.Thread(target=lambda: errors.append(stream.read()))
    reader.start()
    out = process.stdout.read()
    reader.join()
    process.wait()
    return out, errors[0]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def job(
    count: int, name: str, *args: str | Path, folder: Path, module: str = "jobs", **env: str
) -> dict[str, Any]:
    """What a job of `tests.distributed.jobs` printed on rank 0, run over `count` ranks."""
    command = [sys.executable, "-m", f"tests.distributed.{module}", name, *map(str, args)]
    settings = {"ORTHRUS_MLX_ALONE": "never", **env}
    ended = Ranks(count, command, folder, **settings).wait()
    for rank, one in enumerate(ended):
        assert one.code == 0, f"rank {rank}: {one.code}\n{one.out}\n{one.err}"
        assert rank == 0 or not one.out
    return dict(json.loads(ended[0].out.splitlines()[-1]))
