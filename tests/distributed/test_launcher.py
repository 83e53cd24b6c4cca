"""What the launcher does to its ranks, and Ctrl-C while they still look for each other."""

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from orthrus_mlx import DistributedError
from orthrus_mlx.cli.app import app
from orthrus_mlx.distributed import group

# As on macOS, where a poll that asks for no events never learns that the other end has gone.
RANK = """
import select, time

class Deaf:
    def register(self, *_): ...
    def poll(self, *_): time.sleep(600)

select.poll = Deaf
from orthrus_mlx.distributed.control import end_with_launcher
end_with_launcher()
print("here", flush=True)
time.sleep(600)
"""
LAUNCHER = f"""
import subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], stdin=subprocess.PIPE)
rank.wait()
"""


def launcher() -> subprocess.Popen[str]:
    """A launcher whose only rank is there."""
    command = [sys.executable, "-c", LAUNCHER]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_rank_ends_once_its_launcher_is_gone(name: str) -> None:
    one = launcher()
    assert one.stdout is not None
    one.send_signal(getattr(signal, name))
    one.wait()
    assert one.stdout.read() == ""  # the end of it: the rank, which had it too, is gone


def test_ctrl_c_ends_a_rank_that_looks_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def init(backend: str) -> None:
        seen.append(signal.getsignal(signal.SIGINT))
        raise RuntimeError("nobody is there")

    monkeypatch.setenv("MLX_RANK", "1")
    monkeypatch.setattr(group, "_group", None)
    monkeypatch.setattr(mx.distributed, "init", init)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(DistributedError, match="nobody is there"):
        group.join()
    assert seen == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGINT) is before


def test_train_is_refused_over_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    several = SimpleNamespace(rank=0, size=2)
    monkeypatch.setattr(group, "join", lambda: several)
    result = CliRunner().invoke(app, ["train", "--model", "demo", "--data", "d", "--output", "o"])
    assert result.exit_code == 1
    assert "error: train runs on one machine alone: start it without mlx.launch." in result.stderr
