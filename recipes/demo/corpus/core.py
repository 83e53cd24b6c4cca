"""What a conversation of the corpus is, and which value combinations are held out."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

Message = dict[str, str]
T = TypeVar("T")

HELD_OUT_ONE_IN = 20
# The two example prompts of the paper's README belong to the training set.
PINNED = frozenset({"rect_area:7,12", "code:word_frequency|pinned"})


@dataclass(frozen=True)
class Answer:
    """The one right answer to a conversation's last question, and how to compare a reply with it.

    `last_line` and `exact` compare text, `json` compares parsed values and `python` runs the
    reply's code block and evaluates calls; its value is a JSON list of [expression, repr] pairs.
    """

    how: Literal["last_line", "exact", "json", "python"]
    value: str


@dataclass(frozen=True)
class Sample:
    """One conversation; `keys` names every problem in it, the one asked last at the end."""

    messages: list[Message]
    keys: tuple[str, ...]
    answer: Answer | None = None


class Problem(NamedTuple):
    """A question, the worked lines, the last line of the reply (its answer), and the key."""

    question: str
    lines: list[str]
    last: str
    key: str

    @property
    def text(self) -> str:
        """The whole reply."""
        return "\n".join([*self.lines, self.last])

    def roughened(self, rng: random.Random, *, lower: bool = True) -> "Problem":
        """The same problem with its question as people write it."""
        return self._replace(question=roughen(rng, self.question, lower=lower))


@dataclass(frozen=True)
class Kind:
    """A family of conversations with its share of the corpus."""

    name: str
    weight: float
    make: Callable[[random.Random], Sample]


KINDS: dict[str, Kind] = {}


def kind(
    name: str, weight: float
) -> Callable[[Callable[[random.Random], Sample]], Callable[[random.Random], Sample]]:
    """Register a generator of conversations."""

    def register(make: Callable[[random.Random], Sample]) -> Callable[[random.Random], Sample]:
        KINDS[name] = Kind(name, weight, make)
        return make

    return register


def held_out(key: str) -> bool:
    """Whether the problem behind this key may only be asked in the evaluation."""
    if key in PINNED:
        return False
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def draw(kind: Kind, rng: random.Random, *, held: bool = False) -> Sample:
    """Draw a conversation from one side of the split.

    A training conversation holds no held-out problem in any turn; an evaluation
    conversation ends with one.
    """
    for _ in range(20_000):
        sample = kind.make(rng)
        if held and held_out(sample.keys[-1]):
            return sample
        if not held and not any(map(held_out, sample.keys)):
            return sample
    raise RuntimeError(f"kind {kind.name!r} has no problem on this side of the split")


def key(problem: str, *values: object) -> str:
    """Name a problem: its type and its values."""
    return f"{problem}:{','.join(map(str, values))}"


def chat(*turns: str) -> list[Message]:
    """Messages from alternating user and assistant turns."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


def dialogue(problems: Sequence[Problem]) -> Sample:
    """The conversation that asks these problems, one after the other."""
    turns = [turn for problem in problems for turn in (problem.question, problem.text)]
    keys = tuple(problem.key for problem in problems)
    return Sample(chat(*turns), keys, Answer("last_line", problems[-1].last))


def pick(rng: random.Random, weighted: Sequence[tuple[T, float]]) -> T:
    """One of several things, with probability in proportion to its weight."""
    things, weights = zip(*weighted, strict=True)
    return rng.choices(things, weights)[0]


OPENERS = (
    "Hi! ",
    "Hello, ",
    "Please help me: ",
    "Quick question: ",
    "I have a question. ",
    "Can you help me? ",
    "Hey, ",
    "Please: ",
    "One more thing: ",
    "Next: ",
    "OK, ",
    "Now, ",
)
CLOSERS = (" Thanks!", " Please.", " Thank you.")


# A question that starts with one of these may start in lower case; one with a name may not.
STARTERS = frozenset(
    "a add an and arrange build can change code compare compute convert could count "  # noqa: SIM905
    "create define "
    "describe do does draft each every explain extract find for format from give go help here how "
    "i if implement in is it make my name now of on one order parse please put represent rewrite "
    "set show sort story tell the there to turn what when where which who why work write".split()
)


def roughen(rng: random.Random, text: str, *, lower: bool = True) -> str:
    """Write a question as people do: at times with a greeting, no capital, no full stop."""
    roll = rng.random()
    if roll < 0.10:
        opener = rng.choice(OPENERS)
        if opener.endswith(", ") and (lower or text.split()[0].lower() in STARTERS):
            text = text[0].lower() + text[1:]
        text = opener + text
    elif roll < 0.13 and text[-1] in ".?!":
        text += rng.choice(CLOSERS)
    if rng.random() < 0.15 and text[-1] in ".?!":
        text = text[:-1].rstrip()
    roll = rng.random()
    if lower and roll < 0.07:
        text = text.lower()
    elif roll < 0.17 and (lower or text.split()[0].lower() in STARTERS):
        text = text[0].lower() + text[1:]
    return text


def ask(rng: random.Random, forms: Sequence[str], *, lower: bool = True, **values: object) -> str:
    """One of the surface forms of a question, filled in and roughened."""
    return roughen(rng, rng.choice(forms).format(**values), lower=lower)


def upper_first(text: str) -> str:
    """The text with a capital at its start, the rest as it is."""
    return text[:1].upper() + text[1:]


def code_block(reply: str) -> str | None:
    """The first fenced Python block of a reply."""
    match = re.search(r"```python\n(.*?)```", reply, re.DOTALL)
    return match.group(1) if match else None


def judge(reply: str, answer: Answer) -> bool:
    """Whether a reply gives the one right answer."""
    reply = reply.strip()
    if answer.how == "exact":
        return reply == answer.value
    if answer.how == "last_line":
        return reply.rsplit("\n", 1)[-1] == answer.value
    if answer.how == "json":
        try:
            return bool(json.loads(reply) == json.loads(answer.value))
        except json.JSONDecodeError:
            return False
    return _runs(reply, json.loads(answer.value))


def _runs(reply: str, calls: list[list[str]]) -> bool:
    code = code_block(reply)
    if code is None:
        return False
    checks = "".join(f"assert repr({call}) == {want!r}\n" for call, want in calls)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", f"{code}\n{checks}"], capture_output=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
