"""Sums, differences, products, quotients and small expressions, worked in steps."""

import random
from collections.abc import Callable

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick
from .words import number

ADD = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a}+{b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Compute {a} plus {b}.",
    "How much is {a} plus {b}?",
    "Can you add {a} and {b}?",
    "Work out {a} + {b}.",
    "Calculate {a} + {b}.",
    "What do you get if you add {a} and {b}?",
    "{a} plus {b}",
    "I need to know {a} + {b}.",
    "Find the sum: {a} + {b}",
    "Tell me {a} + {b}.",
    "What's {a} plus {b}?",
    "Solve {a} + {b}.",
)
SUBTRACT = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a}-{b}",
    "{a} - {b} = ?",
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
    "Compute {a} minus {b}.",
    "How much is {a} minus {b}?",
    "Take {b} away from {a}.",
    "Work out {a} - {b}.",
    "Calculate {a} - {b}.",
    "What is the difference between {a} and {b}?",
    "Can you subtract {b} from {a}?",
    "{a} minus {b}",
    "What's left if I take {b} from {a}?",
    "Tell me {a} - {b}.",
    "Solve {a} - {b}.",
)
MULTIPLY = (
    "What is {a} × {b}?",
    "What is {a} x {b}?",
    "What is {a} * {b}?",
    "{a} × {b}",
    "{a} x {b}",
    "{a}*{b}",
    "{a} * {b} = ?",
    "Multiply {a} by {b}.",
    "Multiply {a} and {b}.",
    "What is {a} times {b}?",
    "{a} times {b}",
    "What is the product of {a} and {b}?",
    "Compute {a} times {b}.",
    "How much is {a} times {b}?",
    "Calculate {a} * {b}.",
    "Work out {a} × {b}.",
    "Can you multiply {a} by {b}?",
    "Find the product: {a} × {b}",
    "What's {a} times {b}?",
    "Solve {a} x {b}.",
)
DIVIDE = (
    "What is {a} ÷ {b}?",
    "What is {a} / {b}?",
    "{a} / {b}",
    "{a} ÷ {b}",
    "{a}/{b}",
    "Divide {a} by {b}.",
    "What is {a} divided by {b}?",
    "Compute {a} divided by {b}.",
    "How much is {a} divided by {b}?",
    "Calculate {a} / {b}.",
    "Work out {a} ÷ {b}.",
    "{a} divided by {b}",
    "How many times does {b} go into {a}?",
    "Can you divide {a} by {b}?",
    "Solve {a} / {b}.",
)
SUM3 = (
    "What is {a} + {b} + {c}?",
    "Add {a}, {b} and {c}.",
    "{a} + {b} + {c}",
    "{a}+{b}+{c}",
    "What is the sum of {a}, {b} and {c}?",
    "Add up {a}, {b} and {c}.",
    "Calculate {a} + {b} + {c}.",
    "How much is {a} plus {b} plus {c}?",
    "Find the total of {a}, {b} and {c}.",
)
MIXED = (
    "What is {e}?",
    "{e}",
    "Calculate {e}.",
    "Work out {e}.",
    "Compute {e}.",
    "Solve {e}.",
    "{e} = ?",
    "How much is {e}?",
    "Evaluate {e}.",
    "Tell me {e}.",
)
AVERAGE = (
    "What is the average of {n}?",
    "Find the average of {n}.",
    "What is the mean of {n}?",
    "Calculate the average of these numbers: {n}.",
    "Average of {n}?",
    "Compute the mean of {n}.",
    "Can you average {n}?",
    "Give me the average of {n}.",
    "What's the mean of these numbers: {n}?",
)
PERCENT = (
    "What is {p}% of {a}?",
    "{p}% of {a}",
    "Find {p}% of {a}.",
    "Calculate {p} percent of {a}.",
    "How much is {p}% of {a}?",
    "What is {p} percent of {a}?",
    "Work out {p}% of {a}.",
    "{p} percent of {a}?",
    "Take {p}% of {a}.",
)


def _worked(question: str, lines: list[str], result: object, problem: str) -> Problem:
    return Problem(question, lines, f"Answer: {result}", problem)


def addition(rng: random.Random) -> Problem:
    """A sum of two numbers of up to four digits."""
    a, b = number(rng, 4), number(rng, 4)
    return _worked(ask(rng, ADD, a=a, b=b), steps.add(a, b), a + b, key("add", *sorted((a, b))))


def subtraction(rng: random.Random) -> Problem:
    """A difference of two numbers of up to four digits."""
    a, b = sorted((number(rng, 4), number(rng, 4)), reverse=True)
    return _worked(ask(rng, SUBTRACT, a=a, b=b), steps.subtract(a, b), a - b, key("sub", a, b))


def multiplication(rng: random.Random) -> Problem:
    """A product of two numbers up to 99."""
    a, b = number(rng, 2), number(rng, 2)
    question = ask(rng, MULTIPLY, a=a, b=b)
    return _worked(question, steps.multiply(a, b), a * b, key("mul", *sorted((a, b))))


def division(rng: random.Random) -> Problem:
    """A quotient with a divisor up to 9, one time in four with a remainder."""
    b = rng.randint(2, 9)
    a = b * number(rng, 2) + (rng.randrange(b) if rng.random() < 0.25 else 0)
    result = str(a // b) + (f" remainder {a % b}" if a % b else "")
    return _worked(ask(rng, DIVIDE, a=a, b=b), steps.divide(a, b), result, key("div", a, b))


def three_terms(rng: random.Random) -> Problem:
    """A sum of three numbers."""
    a, b, c = (number(rng, 3) for _ in range(3))
    question = ask(rng, SUM3, a=a, b=b, c=c)
    return _worked(question, steps.total([a, b, c]), a + b + c, key("sum", *sorted((a, b, c))))


def expression(rng: random.Random) -> Problem:
    """Two operations, of which the product or the bracket comes first."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    shape = rng.randrange(4)
    sign = rng.choice(("×", "x", "*"))
    if shape == 0:
        text, value = f"{a} + {b} × {c}", a + b * c
        lines = [*steps.multiply(b, c), *steps.add(a, b * c)]
    elif shape == 1:
        text, value = f"{b} × {c} + {a}", b * c + a
        lines = [*steps.multiply(b, c), *steps.add(b * c, a)]
    elif shape == 2:
        text, value = f"({a} + {b}) × {c}", (a + b) * c
        lines = [*steps.add(a, b), *steps.multiply(a + b, c)]
    else:
        a, b = max(a, b) + 1, min(a, b)
        text, value = f"({a} - {b}) × {c}", (a - b) * c
        lines = [*steps.subtract(a, b), *steps.multiply(a - b, c)]
    question = ask(rng, MIXED, e=text.replace("×", sign))
    return _worked(question, lines, value, key("expr", text.replace(" ", "")))


def average(rng: random.Random) -> Problem:
    """The mean of three to five numbers whose sum divides evenly."""
    size = rng.randint(3, 5)
    numbers = [rng.randint(1, 60) for _ in range(size - 1)]
    last = rng.randint(1, 60)
    numbers.append(last + -(sum(numbers) + last) % size)
    rng.shuffle(numbers)
    value = sum(numbers) // size
    text = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    lines = [*steps.total(numbers), *steps.divide(sum(numbers), size)]
    return _worked(ask(rng, AVERAGE, n=text), lines, value, key("mean", *numbers))


def percentage(rng: random.Random) -> Problem:
    """A multiple of ten percent of a multiple of ten."""
    p, a = 10 * rng.randint(1, 9), 10 * rng.randint(1, 99)
    lines = [f"10% of {a} is {a // 10}"]
    if p > 10:
        lines += steps.multiply(a // 10, p // 10)
    return _worked(ask(rng, PERCENT, p=p, a=a), lines, a * p // 100, key("percent", p, a))


PROBLEMS: tuple[tuple[Callable[[random.Random], Problem], float], ...] = (
    (addition, 3),
    (subtraction, 3),
    (multiplication, 4),
    (division, 3),
    (three_terms, 1.5),
    (expression, 2),
    (average, 1.5),
    (percentage, 1.5),
)


def then(rng: random.Random, value: int) -> Problem:
    """A follow-up that works on with the last result."""
    b = rng.randint(2, 99)
    choice = rng.randrange(6)
    if choice == 0:
        question = rng.choice((f"now add {b}", f"Add {b} to that.", f"plus {b}?", f"and plus {b}?"))
        return _worked(question, steps.add(value, b), value + b, key("add", *sorted((value, b))))
    if choice == 1 and value > b:
        question = rng.choice(
            (f"now subtract {b}", f"Take away {b}.", f"minus {b}?", f"and minus {b}?")
        )
        return _worked(question, steps.subtract(value, b), value - b, key("sub", value, b))
    if choice == 2 and value < 1000:
        question = rng.choice(("now double it", "Double that.", "and twice that?", "times 2?"))
        return _worked(
            question, steps.multiply(value, 2), value * 2, key("mul", *sorted((value, 2)))
        )
    if choice == 3 and value < 1000:
        b = rng.randint(3, 9)
        question = rng.choice((f"times {b}?", f"now times {b}", f"Multiply that by {b}."))
        return _worked(
            question, steps.multiply(value, b), value * b, key("mul", *sorted((value, b)))
        )
    if choice == 4 and value % 2 == 0 and value > 2:
        question = rng.choice(("now halve it", "Half of that?", "and half of it?", "Halve that."))
        return _worked(question, steps.divide(value, 2), value // 2, key("div", value, 2))
    return addition(rng)


@kind("arithmetic", 9)
def arithmetic(rng: random.Random) -> Sample:
    """One calculation, at times with another that follows on from it."""
    asked = [pick(rng, PROBLEMS)(rng)]
    while rng.random() < 0.2 and len(asked) < 3:
        result = asked[-1].last.removeprefix("Answer: ")
        if not result.isdigit():
            break
        asked.append(then(rng, int(result)).roughened(rng))
    return dialogue(asked)
