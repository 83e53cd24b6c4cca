"""Runs the terminal sessions of docs/chat.md and writes what the screen showed into that file.

    python benchmarks/chat_session.py

Each block between `<!-- session NAME -->` and `<!-- end -->` is replaced. Needs the test extra
(pexpect). The figures are those of the machine that it runs on.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.cli.vt import Terminal  # noqa: E402

PAGE = ROOT / "docs" / "chat.md"
WIDTH, HEIGHT = 100, 200  # high enough that nothing scrolls away
PROGRAM = Path(sys.executable).with_name("orthrus-mlx")
READY = re.compile(r"(^|\n)>$")
CTRL_C, CTRL_D = "\x03", "\x04"

# What is typed; a pair is a line, and the text on the screen at which Ctrl-C is pressed.
TALKS: dict[str, tuple[str, list[str | tuple[str, str]]]] = {
    "first": (
        "orthrus-mlx chat",
        [
            "If a rectangle has length 12 and width 7, what is its area?",
            "/no_think What is 3 + 4?",
            "/usr/bin/python does not start",
            "/hlep",
            "n",
            "/set temp",
            "/set max_tokens 20",
            "Write a short story about a fox.",
            "/set max_tokens -1",
            ("/retry", "fox"),
            "/undo",
            "/sav talk.json",
            "y",
            "/stats",
            "/bye",
        ],
    ),
    "continue": ("orthrus-mlx chat --continue", ["What is 5 + 6?", "/bye"]),
}
PIPES = {
    "pipes": [
        "cat notes.txt",
        "cat notes.txt | orthrus-mlx generate 'Find its area.' -m 12 > area.txt",
        "cat area.txt",
        "printf 'What is 3 + 4?\\n/clear the table\\n/bye\\n' | orthrus-mlx chat 2> figures.txt",
        "cat messages.json",
        "orthrus-mlx chat --load messages.json < /dev/null",
    ],
}


def main() -> None:
    """Run every session, in a folder of its own."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notes.txt").write_text("A rectangle measures 24 by 52.\n")
        (folder / "messages.json").write_text('[{"role": "user", "content": "What is 9 + 8?"}]\n')
        env = {
            **os.environ,
            "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
            "ORTHRUS_MLX_HISTORY": str(folder / "state" / "history"),
            "PROMPT_TOOLKIT_NO_CPR": "1",  # this terminal does not say where its cursor is
            "TERM": "xterm-256color",
        }
        # The first start on a machine measures what passes cost.
        subprocess.run([PROGRAM, "generate", "--no-stdin", "hi"], env=env, check=True)
        for block, (command, lines) in TALKS.items():
            write(block, talk(command, lines, env, folder))
        for block, commands in PIPES.items():
            write(block, "\n".join(shell(command, env, folder) for command in commands))


def talk(command: str, lines: list[str | tuple[str, str]], env: dict[str, str], cwd: Path) -> str:
    """Type the lines, each once the prompt is there; give back the screen."""
    terminal = Terminal(WIDTH, HEIGHT)
    child = pexpect.spawn(
        command, env=env, cwd=str(cwd), dimensions=(HEIGHT, WIDTH), encoding="utf-8", timeout=120
    )

    def look_until(text: str | re.Pattern[str], behind: int = 0) -> None:
        while not re.search(text, "\n".join(terminal.lines()[behind:])):
            terminal.feed(child.read_nonblocking(4096))

    for line in lines:
        look_until(READY)
        typed, stop = line if isinstance(line, tuple) else (line, None)
        above = len(terminal.lines())
        child.send(f"{typed}\r")
        if stop is not None:
            look_until(stop, behind=above)
            child.send(CTRL_C)
        if typed != "/bye":
            look_until(r"[^>\n]", behind=above)
    try:
        while True:
            terminal.feed(child.read_nonblocking(4096))
    except pexpect.EOF:
        child.close()
    assert child.exitstatus == 0, child.exitstatus
    return "\n".join([f"$ {command}", *terminal.lines()])


def shell(command: str, env: dict[str, str], cwd: Path) -> str:
    """Run a command as a shell does, with what it writes to stdout and stderr."""
    done = subprocess.run(
        command,
        shell=True,
        env=env,
        cwd=cwd,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return f"$ {command}\n{done.stdout}".rstrip()


def write(block: str, session: str) -> None:
    """Replace a block of the page."""
    page = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- session {block} -->\n", "<!-- end -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    assert after, f"{PAGE} has no block {block}"
    PAGE.write_text(f"{before}{start}```\n{session}\n```\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
