"""Comparing numbers, ordering them, and going on with sequences."""

import random

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick
from .words import number, two_names

BIGGER = (
    "Which is {w}, {a} or {b}?",
    "Which number is {w}: {a} or {b}?",
    "Is {a} {w} than {b}?",
    "Compare {a} and {b}. Which is {w}?",
    "{a} or {b}, which is {w}?",
    "Tell me which is {w}: {a} or {b}.",
    "Between {a} and {b}, which number is {w}?",
    "What is {w}, {a} or {b}?",
)
EXTREME = (
    "What is the {w} number in {n}?",
    "Which of these is the {w}: {n}?",
    "Find the {w} of {n}.",
    "{w} of {n}?",
    "Give me the {w} number: {n}",
    "Which number is the {w}? {n}",
    "From {n}, pick the {w}.",
    "Tell me the {w} of these numbers: {n}.",
)
PARITY = (
    "Is {a} even or odd?",
    "Is {a} an even number?",
    "Is {a} an odd number?",
    "{a}, even or odd?",
    "Tell me if {a} is even or odd.",
    "Even or odd: {a}?",
    "Can {a} be divided by 2?",
    "Is the number {a} odd or even?",
)
DIVISIBLE = (
    "Is {a} divisible by {b}?",
    "Can {a} be divided by {b}?",
    "Is {a} a multiple of {b}?",
    "Does {b} divide {a}?",
    "Is {b} a factor of {a}?",
    "Check if {a} is divisible by {b}.",
    "{a} divisible by {b}?",
)
OLDER = (
    "{x} is {a} years old and {y} is {b}. Who is older, and by how much?",
    "{x} is {a}, {y} is {b}. Who is older and by how many years?",
    "Who is older, {x} ({a}) or {y} ({b}), and by how much?",
    "{x} is {a} and {y} is {b} years old. How much older is the older one?",
    "If {x} is {a} and {y} is {b}, who is older and by how many years?",
)
NEXT = (
    "What comes next: {n}, ...?",
    "Continue the sequence {n}.",
    "What are the next three numbers: {n}?",
    "{n}, what comes next?",
    "Go on with this sequence: {n}, ...",
    "Find the next three terms of {n}.",
    "Which numbers follow {n}?",
    "Complete the pattern: {n}, ...",
    "Next three numbers in {n}?",
    "Continue: {n}",
    "Can you continue {n}?",
)


def _bigger(rng: random.Random) -> Problem:
    a, b = number(rng, 4), number(rng, 4)
    if rng.random() < 0.4:
        b = max(1, a + rng.randint(-20, 20))
    word = rng.choice(("bigger", "larger", "greater", "smaller", "less"))
    question = ask(rng, BIGGER, w=word, a=a, b=b)
    problem = key("bigger", *sorted((a, b)), word in ("smaller", "less"))
    if a == b:
        return Problem(question, [], f"{a} and {b} are equal.", problem)
    least = word in ("smaller", "less")
    first = min(a, b) if least else max(a, b)
    return Problem(question, [], f"{first} is {word} than {a + b - first}.", problem)


def _extreme(rng: random.Random) -> Problem:
    numbers = rng.sample(range(1, rng.choice((30, 100, 1000))), rng.randint(3, 5))
    least = rng.random() < 0.5
    word = rng.choice(("smallest", "lowest") if least else ("largest", "biggest", "highest"))
    text = ", ".join(map(str, numbers))
    question = ask(rng, EXTREME, w=word, n=text)
    # Each line compares two numbers: the best so far, written at the end of the line above, and
    # the next of the list.
    lines, best = [], numbers[0]
    for other in numbers[1:]:
        winner = min(best, other) if least else max(best, other)
        lines.append(f"{best} or {other}: {winner}")
        best = winner
    return Problem(
        question, lines, f"The {word} number is {best}.", key("extreme", least, *numbers)
    )


def _parity(rng: random.Random) -> Problem:
    a = number(rng, 4)
    word = "odd" if a % 2 else "even"
    line = f"{a} ends in {a % 10}, which is {word}."
    return Problem(ask(rng, PARITY, a=a), [line], f"{a} is {word}.", key("parity", a))


def _divisible(rng: random.Random) -> Problem:
    b = rng.randint(2, 9)
    a = rng.randint(10, 999)
    if rng.random() < 0.5:
        a -= a % b
    question = ask(rng, DIVISIBLE, a=a, b=b)
    lines, problem = steps.divide(a, b), key("divisible", a, b)
    if a % b:
        return Problem(question, lines, f"No, {a} is not divisible by {b}.", problem)
    return Problem(question, lines, f"Yes, {a} is divisible by {b}.", problem)


def _older(rng: random.Random) -> Problem:
    x, y = two_names(rng)
    a, b = rng.sample(range(3, 90), 2)
    question = ask(rng, OLDER, lower=False, x=x, y=y, a=a, b=b)
    (high, old), (low, young) = sorted(((a, x), (b, y)), reverse=True)
    years = "1 year" if high - low == 1 else f"{high - low} years"
    lines = [f"{old} is {high}, {young} is {low}.", f"{high} - {low} = {high - low}"]
    return Problem(question, lines, f"{old} is {years} older than {young}.", key("older", a, b))


def _next(rng: random.Random) -> Problem:
    size = rng.randint(3, 5)
    shape = rng.random()
    if shape < 0.5:
        start, step = rng.randint(0, 200), rng.randint(1, 60)
        terms = [start + step * i for i in range(size + 3)]
        lines = [f"Each number is {step} more than the one before."]
        lines += [f"{x} + {step} = {x + step}" for x in terms[size - 1 : -1]]
    elif shape < 0.8:
        step = rng.randint(1, 30)
        start = step * (size + 3) + rng.randint(0, 200)
        terms = [start - step * i for i in range(size + 3)]
        lines = [f"Each number is {step} less than the one before."]
        lines += [f"{x} - {step} = {x - step}" for x in terms[size - 1 : -1]]
    else:
        start, factor = rng.choice(((rng.randint(1, 30), 2), (rng.randint(1, 6), 3)))
        size = 3 if factor == 3 else rng.randint(3, 4)
        terms = [start * factor**i for i in range(size + 3)]
        lines = [f"Each number is {factor} times the one before."]
        for x in terms[size - 1 : -1]:
            lines += steps.multiply(x, factor)
    text = ", ".join(map(str, terms[:size]))
    last = f"Next: {', '.join(map(str, terms[size:]))}"
    return Problem(ask(rng, NEXT, n=text), lines, last, key("next", *terms[:size]))


@kind("comparisons", 5)
def comparisons(rng: random.Random) -> Sample:
    """Which is bigger, even or odd, divisible, older."""
    makers = ((_bigger, 3), (_extreme, 4), (_parity, 2), (_divisible, 2), (_older, 3))
    return dialogue([pick(rng, makers)(rng)])


@kind("sequences", 4)
def sequences(rng: random.Random) -> Sample:
    """The next three numbers of a sequence."""
    return dialogue([_next(rng)])
