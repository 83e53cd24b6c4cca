"""Thinking is told from the answer, however the text is cut into pieces."""

import pytest

from orthrus_mlx.cli.thinking import Kind, ThinkingSplitter

CASES = {
    "an answer alone": ("Hello", False, "", "Hello"),
    "thinking, then an answer": ("<think>\nhm\n</think>\n\nYes", False, "\nhm\n", "\n\nYes"),
    "after blank lines": ("\n <think>hm</think>Yes", False, "hm", "Yes"),
    "opened by the prompt": ("hm</think>Yes", True, "hm", "Yes"),
    "never closed": ("<think>hm </thi", False, "hm </thi", ""),
    "a tag later on": ("Write <think>x</think>", False, "", "Write <think>x</think>"),
    "a second one": ("<think>a</think>b<think>c", False, "a", "b<think>c"),
    "what only begins like a tag": ("<thin ice", False, "", "<thin ice"),
    "cut off in the tag": ("<thi", False, "", "<thi"),
    "nothing": ("", False, "", ""),
    "blank": ("\n", False, "", "\n"),
    "empty thinking": ("<think></think>ok", False, "", "ok"),
    "signs in the thought": ("<think>a < b </ c</think>ok", False, "a < b </ c", "ok"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_split(name: str, size: int) -> None:
    text, is_open, thinking, answer = CASES[name]
    splitter = ThinkingSplitter(is_open)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()
    assert "".join(text for _, text in pieces) == text
    assert "".join(text for kind, text in pieces if kind is Kind.thinking) == thinking
    assert "".join(text for kind, text in pieces if kind is Kind.answer) == answer


def test_other_tags() -> None:
    splitter = ThinkingSplitter(opens="<a>", closes="</a>")
    assert splitter.feed("<a>x</a>y") == [
        (Kind.tag, "<a>"),
        (Kind.thinking, "x"),
        (Kind.tag, "</a>"),
        (Kind.answer, "y"),
    ]
