"""However one rank ends, all end: together, soon, and saying why once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pexpect
import pytest

from orthrus_mlx.distributed.leader import from_rank_0
from tests.distributed.ranks import PATIENCE, Ranks, free_ports

SOON = 5.0  # seconds in which all must be gone; by clock, so only where nothing else runs


def started(folder: Path, tmp_path: Path, count: int = 2) -> Ranks:
    """Ranks that write without end."""
    command = [sys.executable, "-m", "tests.distributed.jobs", "asleep", str(folder)]
    ranks = Ranks(count, command, tmp_path, ORTHRUS_MLX_ALONE="never")
    stdout = ranks.processes[0].stdout
    assert stdout is not None
    pids = json.loads(stdout.readline())["pids"]
    assert pids == [process.pid for process in ranks.processes[1:]]
    return ranks


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_rank_that_is_killed_ends_the_other(random12: Path, tmp_path: Path, victim: int) -> None:
    ranks = started(random12, tmp_path)
    ranks.processes[victim].kill()
    ended = ranks.wait()
    survivor = ended[1 - victim]
    assert survivor.code == 1  # not -9, the watchdog's
    assert len(lines(survivor.err)) == 1
    assert f"Rank {victim} on " in survivor.err and "has ended or cannot be reached" in survivor.err


def test_what_comes_in_place_of_ids_is_no_row_far_away() -> None:
    told = from_rank_0(mx.array([3, 1 << 30, -7, 1023]), mx.distributed.init(), 1024)
    first, *others, last = told.tolist()
    assert (first, last) == (3, 1023)
    assert all(0 <= other < 1024 for other in others)


@pytest.mark.full
def test_of_four_ranks_one_dies_and_one_line_says_so_in_time(
    random12: Path, tmp_path: Path
) -> None:
    ranks = started(random12, tmp_path, 4)
    begun = time.monotonic()
    ranks.processes[2].kill()
    ended = ranks.wait()
    assert time.monotonic() - begun < SOON
    assert [one.code for one in ended] == [1, 1, -signal.SIGKILL, 1]
    assert sum(len(lines(one.err)) for one in ended) == 1
    assert "Rank 2 on " in ended[0].err


@pytest.mark.full
def test_a_rank_that_stands_still_is_waited_for(random12: Path, tmp_path: Path) -> None:
    ranks = started(random12, tmp_path)
    ranks.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(6)
    assert [process.poll() for process in ranks.processes] == [None, None]
    ranks.processes[1].send_signal(signal.SIGCONT)
    ranks.processes[0].terminate()
    assert ranks.wait()[1].code == 1


@pytest.mark.full
def test_ctrl_c_ends_all_without_a_word(random12: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orthrus_mlx.cli", "generate", "--model", str(random12)]
    command += ["--no-calibrate", "-m", "400", "--mode", "parallel", "Say something"]
    ranks = Ranks(2, command, tmp_path, ORTHRUS_MLX_ALONE="never")
    stdout = ranks.processes[0].stdout
    assert stdout is not None and stdout.read(1)
    for process in ranks.processes:  # a terminal sends it to all
        process.send_signal(signal.SIGINT)
    ended = ranks.wait()
    assert [one.code for one in ended] == [130, 0]
    assert "Traceback" not in ended[0].err + ended[1].err
    assert not lines(ended[0].err + ended[1].err)


@pytest.mark.full
def test_what_is_wrong_is_said_once(random12: Path, tmp_path: Path) -> None:
    def run(*args: str) -> list[str]:
        command = [sys.executable, "-m", "orthrus_mlx.cli", *args]
        ended = Ranks(3, command, tmp_path, ORTHRUS_MLX_ALONE="never").wait()
        assert [one.code for one in ended[1:]] == [0, 0]
        assert not ended[1].out + ended[2].out + ended[1].err + ended[2].err
        return [str(ended[0].code), ended[0].out + ended[0].err]

    code, text = run("generate", "--model", "demo", "Hi")
    assert code == "1" and "This model cannot be cut into 3: it has 2 heads" in text
    code, text = run("generate", "--model", str(tmp_path / "none"), "Hi")
    assert code == "1" and "There is no folder" in text
    code, text = run("generate", "--temp", "x", "Hi")
    assert code == "2"
    code, text = run("info", "demo")
    assert code == "0" and text.count("Architecture") == 1


def launch(*command: str, said: str = "") -> subprocess.CompletedProcess[str]:
    """Start two ranks by `mlx.launch` itself, with an input that does not end."""
    launcher = Path(sys.executable).with_name("mlx.launch")
    port = free_ports(1)[0]
    args = ["-n", "2", "--backend", "ring", "-p", str(port), "--", sys.executable, "-m"]
    start = (
        [str(launcher)]
        if launcher.exists()
        else [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    )
    process = subprocess.Popen(
        [*start, *args, "orthrus_mlx.cli", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ORTHRUS_MLX_ALONE": "never"},
        start_new_session=True,  # no terminal
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write(said)
    process.stdin.flush()
    out, err = process.stdout.read(), process.stderr.read()
    return subprocess.CompletedProcess(command, process.wait(), out, err)


@pytest.mark.full
def test_a_chat_by_the_launcher_reads_lines_until_bye() -> None:
    question = "If a rectangle has length 12 and width 7, what is its area?"
    ended = launch("chat", "--no-calibrate", said=f"{question}\n/bye\n")
    assert "84" in ended.stdout
    assert "on each of 2 ranks" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.full
def test_a_chat_has_the_terminal_that_the_launcher_does_not_read(tmp_path: Path) -> None:
    start = "from mlx._distributed_utils.launch import main; main()"
    command = f"{sys.executable} -c '{start}' -n 2 --backend ring -p {free_ports(1)[0]} -- "
    command += f"{sys.executable} -m orthrus_mlx.cli chat --no-calibrate < <(sleep 600)"
    env = {"ORTHRUS_MLX_ALONE": "never", "ORTHRUS_MLX_HISTORY": str(tmp_path / "history")}
    with pexpect.spawn(
        "/bin/bash",
        ["-c", command],
        env=os.environ | env | {"TERM": "xterm"},
        encoding="utf-8",
        timeout=PATIENCE,
    ) as person:
        person.expect("/help for the commands")
        person.expect("> ")
        person.send("If a rectangle has length 12 and width 7, what is its area?\r")
        person.expect("84")
        person.expect("accepted")
        person.send("/bye\r")
        person.expect(pexpect.EOF)
