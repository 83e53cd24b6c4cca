"""Markdown that grows: blocks are printed once, in order, and nothing of them is lost."""

import io

import pytest
from rich.console import Console

from orthrus_mlx.cli import render
from orthrus_mlx.cli.render import MarkdownScreen, PlainScreen, split_blocks
from orthrus_mlx.cli.thinking import Kind

from .vt import Terminal

ANSWER = """\
# Title

Some *emphasis* and `code`, \\( x^2 \\) and vector<int>.
Width = 7
Height = 2

1. first

   more of it

2. second

| a | b |
|---|---|
| 1 | 2 |

```python
x = 1

y = 2
```
The end [here](https://example.com)"""

SHOWN = """\
Title

Some emphasis and code, \\( x^2 \\) and vector<int>.
Width = 7
Height = 2

 1 first
   more of it
 2 second

 a  b
 ────
 1  2

 x = 1

 y = 2

The end here (https://example.com)"""


def show(text: str, size: int, width: int = 60, height: int = 40) -> list[str]:
    """Stream an answer in pieces; give back what the terminal shows in the end."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=height, highlight=False)
    with MarkdownScreen(console) as screen:
        for i in range(0, len(text), size):
            screen.write(Kind.answer, text[i : i + size])
    terminal = Terminal(width, height=200)
    terminal.feed(file.getvalue().replace("\n", "\r\n"))
    return terminal.lines()


@pytest.fixture(autouse=True)
def draw_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "REDRAW_SECONDS", 0.0)


@pytest.mark.parametrize("size", [1, 2, 5, 17, 1000])
def test_markdown_looks_the_same_however_it_arrives(size: int) -> None:
    assert [line.strip() for line in show(ANSWER, size)] == [
        line.strip() for line in SHOWN.splitlines()
    ]


def test_answers_longer_than_the_terminal_scroll() -> None:
    code = "".join(f"line_{n} = {n}\n" for n in range(60))
    shown = show(f"Look:\n\n```python\n{code}```\n\nDone.", size=3, height=10)
    assert shown == ["Look:", "", *(f" line_{n} = {n}" for n in range(60)), "", "Done."]


def test_thinking_stands_above_the_answer() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, color_system="standard")
    with MarkdownScreen(console) as screen:
        for kind, text in [
            (Kind.tag, "<think>"),
            (Kind.thinking, "\nhm\n"),
            (Kind.tag, "</think>"),
            (Kind.answer, "\n\n"),
            (Kind.answer, "Yes."),
        ]:
            screen.write(kind, text)
    assert "\x1b[2;3mhm" in file.getvalue()
    terminal = Terminal(60, height=20)
    terminal.feed(file.getvalue().replace("\n", "\r\n"))
    assert terminal.lines() == ["hm", "", "Yes."]


def test_thinking_alone_ends_its_line() -> None:
    file = io.StringIO()
    with MarkdownScreen(Console(file=file, force_terminal=True, width=60)) as screen:
        screen.write(Kind.thinking, "hm")
    assert file.getvalue().endswith("\n")


@pytest.mark.parametrize(
    ("markup", "done"),
    [
        ("para\nmore", ""),
        ("para\n\n", ""),
        ("para\n\nnext", ""),  # "next" may become anything
        ("para\n\nnext\n", "para\n\n"),
        ("1. a\n\n2. b\n", ""),
        ("1. a\n\nx\n", "1. a\n\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n\nb\n```\nx\n", "```\na\n\nb\n```\n"),
        ("a | b\n--|--\n", ""),
        ("", ""),
    ],
)
def test_blocks_are_cut_where_text_can_no_longer_change_them(markup: str, done: str) -> None:
    assert split_blocks(markup) == (done, markup[len(done) :])


@pytest.mark.parametrize(
    ("text", "written"), [("a\n\nb", "a\n\nb\n"), ("a\n", "a\n"), ("", ""), ("**a**", "**a**\n")]
)
def test_plain_text_stays_as_it_is(text: str, written: str) -> None:
    stream = io.StringIO()
    with PlainScreen(stream) as screen:
        for c in text:
            screen.write(Kind.answer, c)
    assert stream.getvalue() == written
