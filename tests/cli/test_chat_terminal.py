"""A session of `chat` in a real terminal: what a person types, and what they see."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .vt import Terminal

pexpect = pytest.importorskip("pexpect")

WIDTH, HEIGHT = 100, 150  # high enough that nothing scrolls away
QUESTION = "If a rectangle has length 12 and width 7, what is its area?"

# The chat as it is, but at a pace at which a person could press Ctrl-C.
SLOWLY = """
import sys, time
from contextlib import closing
import orthrus_mlx.session as session
real = session.stream_generate
def slowly(*args, **options):
    with closing(real(*args, **options)) as responses:
        for response in responses:
            yield response
            time.sleep(0.03)
session.stream_generate = slowly
from orthrus_mlx.cli import main
sys.argv = ["orthrus-mlx", *sys.argv[1:]]
main()
"""


def default_signals(nohup: bool) -> None:
    """Whoever runs the tests in the background may have had them ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)


class Person:
    """Types into the program that a script runs and looks at the screen."""

    def __init__(
        self, args: list[str], env: dict[str, str], cwd: Path, script: str, nohup: bool = False
    ) -> None:
        self._child = pexpect.spawn(
            sys.executable,
            ["-c", script, *args],
            env={**os.environ, **env},
            cwd=str(cwd),
            dimensions=(HEIGHT, WIDTH),
            encoding="utf-8",
            preexec_fn=partial(default_signals, nohup),
        )
        self._terminal = Terminal(WIDTH, HEIGHT)

    def type(self, text: str) -> None:
        self._child.send(text)

    def sees(self, text: str, times: int = 1, seconds: float = 60) -> None:
        """Wait until the text stands on the screen so many times."""
        deadline = time.monotonic() + seconds
        while "\n".join(self.screen()).count(text) < times:
            if time.monotonic() > deadline or not self._look():
                raise AssertionError(f"{text!r} never came:\n" + "\n".join(self.screen()))

    def awaits_prompt(self) -> None:
        """Wait until the chat asks for the next line."""
        while self.screen()[-1:] != [">"]:
            assert self._look(), "\n".join(self.screen())

    def screen(self) -> list[str]:
        return self._terminal.lines()

    def leaves(self) -> int:
        """Wait for the end; give back the exit code."""
        while self._look():
            pass
        self._child.close()
        return int(self._child.exitstatus)

    def closes_window(self) -> int:
        """Close the terminal while the program runs; give back its exit code, or -number."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._child.child_fd)
        os.close(nowhere)
        self._child.wait()
        return int(self._child.exitstatus or -(self._child.signalstatus or 0))

    def kill(self) -> None:
        self._child.close(force=True)

    def _look(self) -> bool:
        """Read what came; False at the end."""
        try:
            self._terminal.feed(self._child.read_nonblocking(4096, timeout=15))
        except pexpect.EOF:
            return False
        except pexpect.TIMEOUT:
            raise AssertionError("silence:\n" + "\n".join(self.screen())) from None
        return True


@pytest.fixture
def chat(measured_tiny16: Path, tmp_path: Path) -> Iterator[Any]:
    people = []

    def start(*args: str, nohup: bool = False, **env: str) -> Person:
        env = {
            "ORTHRUS_MLX_HISTORY": str(tmp_path / "history"),
            "PROMPT_TOOLKIT_NO_CPR": "1",  # this terminal does not say where its cursor is
            **env,
        }
        args = ("chat", "--model", str(measured_tiny16), *args)
        person = Person([*args], env, tmp_path, SLOWLY, nohup)
        people.append(person)
        return person

    yield start
    for person in people:
        person.kill()


def test_a_session(chat: Any, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    me = chat("--mode", "ar")  # auto may say why it does not draft
    me.awaits_prompt()

    # 1. An answer streams in, is rendered, and ends with its stats.
    me.type(f"{QUESTION}\r")
    me.sees("Length = 12")
    assert "So the area" not in "\n".join(me.screen())  # it does stream
    me.sees("So the area is 84.")
    me.awaits_prompt()

    # 2. Ctrl-C stops the next one, and what was said stays.
    me.type(f"{QUESTION}\r")
    me.sees("Length = 12", times=2)
    me.type("\x03")
    me.sees("Stopped by Ctrl-C.")
    me.awaits_prompt()

    # 3. /undo takes the stopped turn back.
    me.type("/undo\r")
    me.sees("Taken back: ")
    me.awaits_prompt()

    # 4. Two lines that are pasted together are one message.
    me.type("\x1b[200~A rectangle measures 24 by 52.\nFind its area.\x1b[201~")
    me.sees("Find its area.")
    assert "tok/s" not in "\n".join(me.screen()[-2:])  # it waits for Enter
    me.type("\r")
    me.sees("tok/s", times=3)
    me.awaits_prompt()

    # 5. Saved, forgotten, loaded.
    me.type("/save talk.json\r")
    me.sees("Saved 2 turns")
    me.awaits_prompt()
    me.type("/clear\r")
    me.sees("The conversation starts anew.")
    me.awaits_prompt()
    me.type("/load talk.json\r")
    me.sees("Loaded 2 turns")
    me.awaits_prompt()

    # 6. Ctrl-C at the prompt clears the line; Ctrl-D leaves.
    me.type("never mind\x03")
    me.awaits_prompt()
    me.type("\x04")
    assert me.leaves() == 0

    talk = json.loads(path.read_text())["messages"]
    answer = [
        "The area of a rectangle is its length times its width.",
        "Length = 12",
        "Width = 7",
        "Area = 12 * 7 = 84",
        "So the area is 84.",
    ]
    assert [message["content"] for message in talk[:3]] == [
        QUESTION,
        "\n".join(answer),
        "A rectangle measures 24 by 52.\nFind its area.",
    ]

    screen = me.screen()
    stats = [line for line in screen if "tok/s" in line]
    stopped = screen.index(stats[1])
    pasted = screen.index("> A rectangle measures 24 by 52.")
    saved = screen.index("> /save talk.json")
    assert screen[:10] == [
        "/help for the commands, Ctrl-C to stop an answer, Ctrl-D to leave",
        f"> {QUESTION}",
        *answer,
        stats[0],
        "",
        f"> {QUESTION}",
    ]
    assert "\n".join(answer).startswith("\n".join(screen[10:stopped]))
    assert screen[stopped + 1 : pasted] == [
        "Stopped by Ctrl-C.",
        "",
        "> /undo",
        f"Taken back: {QUESTION}",
    ]
    assert screen[pasted + 1].strip() == "Find its area."
    assert "\n".join(screen[pasted + 2 : saved - 2]) == talk[3]["content"].strip()
    assert screen[saved - 2 :] == [
        stats[2],
        "",
        "> /save talk.json",
        "Saved 2 turns to talk.json",
        "> /clear",
        "The conversation starts anew.",
        "> /load talk.json",
        "Loaded 2 turns from talk.json; the last was: A rectangle measures 24 by 52. Find",
        "its area.",
        "> never mind",
        ">",
    ]


def test_the_history_of_lines_persists(chat: Any, tmp_path: Path) -> None:
    first = chat()
    first.awaits_prompt()
    first.type("/stats\r")
    first.sees("Nothing was answered yet.")
    first.awaits_prompt()
    first.type("\x04")
    assert first.leaves() == 0
    assert (tmp_path / "history").stat().st_mode & 0o077 == 0

    second = chat()
    second.awaits_prompt()
    second.type("\x1b[A")  # arrow up
    second.sees("> /stats")
    second.type("\r")
    second.sees("Nothing was answered yet.")
    second.awaits_prompt()
    second.type("/qui\t")
    second.sees("> /quit")
    second.type("\r")
    assert second.leaves() == 0


def test_what_is_typed_during_an_answer_waits_for_the_prompt(chat: Any) -> None:
    me = chat("--plain")
    me.awaits_prompt()
    me.type(f"{QUESTION}\r")
    me.sees("Length = 12")
    me.type("/undo\r")
    me.sees("Taken back: ")
    me.awaits_prompt()
    screen = me.screen()
    assert screen.count("> /undo") == 1
    assert screen[2:7] == [
        "The area of a rectangle is its length times its width.",
        "Length = 12",
        "Width = 7",
        "Area = 12 * 7 = 84",
        "So the area is 84.",
    ]
    me.type("\x04")
    assert me.leaves() == 0


@pytest.mark.parametrize("nohup", [False, True])
def test_closing_the_window_keeps_what_was_said(chat: Any, tmp_path: Path, nohup: bool) -> None:
    """Under nohup the answer comes to its end, though nobody sees it."""
    me = chat("--mode", "ar", *["--plain"] * nohup, nohup=nohup)
    me.awaits_prompt()
    me.type(f"{QUESTION}\r")
    me.sees("Length = 12")
    assert me.closes_window() == (0 if nohup else 128 + signal.SIGHUP)
    answer = json.loads((tmp_path / "last_chat.json").read_text())["messages"][1]["content"]
    assert answer.startswith("The area of a rectangle is its length times its width.\nLength = 12")
    assert answer.endswith("So the area is 84.") == nohup
    if nohup:
        return
    again = chat("--continue")
    again.awaits_prompt()
    again.sees("Loaded 1 turn; the last was: If a rectangle")
    again.type("\x04")
    assert again.leaves() == 0


# As on macOS, where kqueue, which asyncio takes there, cannot wait for this device.
FROM_DEV_TTY = """
import errno, os, selectors
os.dup2(os.open("/dev/tty", os.O_RDWR), 0)

class Kqueue(selectors.DefaultSelector):
    def register(self, fileobj, events, data=None):
        if fileobj == 0:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().register(fileobj, events, data)

selectors.DefaultSelector = Kqueue
from orthrus_mlx.cli.reader import EditingReader
print("heard:", repr(EditingReader(lambda text: []).read("> ")))
"""


def test_lines_are_edited_on_dev_tty_where_kqueue_refuses_it(tmp_path: Path) -> None:
    env = {"ORTHRUS_MLX_HISTORY": os.devnull, "PROMPT_TOOLKIT_NO_CPR": "1"}
    person = Person([], env, tmp_path, FROM_DEV_TTY)
    try:
        person.awaits_prompt()
        person.type("helo\x1b[Dl\x1b[F\x1b\rthere\r")
        person.sees(r"heard: 'hello\nthere'")
        assert "No history" not in "\n".join(person.screen())  # none was asked for
    finally:
        person.kill()
