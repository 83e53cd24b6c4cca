"""Run a few commands and draw what a terminal showed: docs/session.svg, for the README.

    .venv/bin/python docs/make_session.py

The picture is drawn by rich from what the program wrote. Figures are those of the machine.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

FILE = Path(__file__).with_name("session.svg")
WIDTH = 96
COMMANDS = (
    'orthrus-mlx generate --mode parallel "A rectangle has length 12 and width 7. Its area?"',
    "orthrus-mlx generate --no-verbose 'Write 12 plus 7 as a sum.' --choices 5,19,21",
    "orthrus-mlx verify demo --num-prompts 4 -m 48",
)
# Without the fonts that a picture would load from elsewhere.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def shown(command: str) -> str:
    """What a command writes to a terminal, colours included, without its progress."""
    arguments = shlex.split(command)
    program = str(Path(sys.executable).with_name(arguments[0]))
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    said = subprocess.run(
        [program, *arguments[1:]],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    progress = re.compile(r"^\S*(Comparing answers|Measuring this device).*%\S*\n", re.MULTILINE)
    return progress.sub("", said)


def draw() -> str:
    """The session as a picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(shown(command)))
    return console.export_svg(title="orthrus-mlx", code_format=FORMAT, unique_id="session")


if __name__ == "__main__":
    FILE.write_text(draw(), encoding="utf-8")
