"""Text of any origin as Markdown, and tables."""

from __future__ import annotations

from collections.abc import Iterable


def code(text: str) -> str:
    """Text of any origin as Markdown that shows it as it is, in one line."""
    plain = " ".join(text.split())
    return f"`{plain.replace('`', chr(39))}`"


def cell(value: object) -> str:
    """A value for a table: nothing in it ends a cell or begins a tag."""
    text = " ".join(str(value).split())
    for character in "\\|<>[]*`":
        text = text.replace(character, "\\" + character)
    return text


def table(
    columns: Iterable[str], rows: Iterable[Iterable[object]], sides: str | None = None
) -> list[str]:
    """A Markdown table; a side is "l" or "r", by default "l" for the first column, else "r"."""
    names = list(columns)
    sides = sides or "l" + "r" * (len(names) - 1)
    lines = [[cell(name) for name in names], ["---:" if side == "r" else "---" for side in sides]]
    lines += [[cell(value) for value in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
