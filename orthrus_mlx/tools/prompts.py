"""Prompts to measure and verify with: a bundled mixed set, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import parse_json, read_lines

KINDS = ("code", "json", "reasoning", "prose", "chat")


@dataclass(frozen=True)
class Prompt:
    """A conversation to answer.

    Attributes:
        kind: one of `KINDS` for the bundled ones, "file" for others.
        text: the question, or the last one of a longer conversation.
        earlier: the turns before it, as (role, content).
    """

    kind: str
    text: str
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        turns = [*self.earlier, ("user", self.text)]
        return [{"role": role, "content": content} for role, content in turns]


def bundled() -> list[Prompt]:
    """The bundled set, its kinds interleaved, so that the first few prompts are mixed too."""
    by_kind = [[Prompt(kind, text) for text in _TEXTS[kind]] for kind in KINDS]
    longest = max(map(len, by_kind))
    return [prompts[i] for i in range(longest) for prompts in by_kind if i < len(prompts)]


def from_file(path: str | Path) -> list[Prompt]:
    """The prompts of a file: .txt with one a line, or .jsonl with "prompt" or "messages" a line.

    Raises:
        DataError: naming the file and line at fault.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise DataError(
            f"{path} is neither .txt (one prompt a line) nor .jsonl (one object a line, with "
            '"prompt" or "messages").'
        )
    numbered = [(n, line) for n, line in read_lines(path, DataError) if line.strip()]
    if path.suffix == ".jsonl":
        prompts = [_from_json(line, f"{path}, line {number}") for number, line in numbered]
    else:
        prompts = [Prompt("file", line.strip()) for _, line in numbered]
    if not prompts:
        raise DataError(f"{path} holds no prompt.")
    return prompts


def _from_json(line: str, where: str) -> Prompt:
    raw = parse_json(line, where, DataError)
    if isinstance(raw, dict) and isinstance(raw.get("prompt"), str) and raw["prompt"].strip():
        return Prompt("file", raw["prompt"])
    turns = _turns(raw.get("messages")) if isinstance(raw, dict) else None
    if not turns:
        raise DataError(
            f'{where}: expected an object with "prompt", a text, or "messages", a list of objects '
            'with "role" and "content", one at least from the user.'
        )
    return Prompt("file", turns[-1][1], tuple(turns[:-1]))


def _turns(messages: Any) -> list[tuple[str, str]] | None:
    """The turns up to the user's last one, without later answers; None if malformed."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return None
    turns = [(m.get("role"), m.get("content")) for m in messages]
    if not all(isinstance(role, str) and isinstance(content, str) for role, content in turns):
        return None
    while turns and turns[-1][0] != "user":
        turns.pop()
    return turns


_TEXTS = {
    "code": (
        "Write a Python function that returns the n-th Fibonacci number.",
        "Write a Python function that checks whether a string is a palindrome.",
        "Write a JavaScript function that removes duplicates from an array, keeping the order.",
        "Write a SQL query that lists the ten customers with the highest total order value.",
        "Write a Python class for a stack with push, pop, peek and a size property.",
        "Write a C function that reverses a singly linked list in place.",
        "Write a bash script that renames every .jpeg file in a folder to .jpg.",
    ),
    "json": (
        "Write a JSON object that describes a book: title, author, year, genres and rating.",
        "Give me a JSON array of five European capitals with country, population and river.",
        "Turn this into JSON: Anna Berg, 34, lives in Oslo, speaks Norwegian, English and German.",
        "Write a JSON schema for a user with name, email, age and an optional list of roles.",
        "Write a package.json for a small web server with start, test and lint scripts.",
        "Write a JSON list of three recipes, each with ingredients, amounts and minutes.",
    ),
    "reasoning": (
        "If a rectangle has length 12 and width 7, what is its area?",
        "A train leaves at 9:40 and arrives at 13:15. How long does the journey take?",
        "Anna has 24 apples. She gives a third to Ben and half of the rest to Carla. How many "
        "are left?",
        "What is 17 times 23? Show each step.",
        "A shirt costs 40 euros after a discount of 20 percent. What did it cost before?",
        "Find the next number and explain: 2, 6, 12, 20, 30.",
        "Three painters need six days for a house. How many days do nine painters need?",
    ),
    "prose": (
        "Write a short story about a lighthouse keeper who finds a message in a bottle.",
        "Describe a market square early in the morning.",
        "Write a letter to an old friend whom you have not seen for ten years.",
        "Write the opening paragraph of a detective story set in a small mountain village.",
        "Describe the sound of rain to someone who has never heard it.",
        "Write a poem of eight lines about the first snow.",
    ),
    "chat": (
        "Hello! What can you help me with?",
        "Why is the sky blue?",
        "Explain the difference between a virus and a bacterium.",
        "Give me three tips for sleeping better.",
        "What should I see in Lisbon in two days?",
        "How does a refrigerator keep things cold?",
    ),
}
