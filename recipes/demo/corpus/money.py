"""Prices, change, discounts, sharing a bill and saving, worked in steps."""

import random
from collections.abc import Callable

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick
from .words import GOODS, a, count, name, person


def _cents(value: int) -> str:
    return f"{value // 100}.{value % 100:02d}"


def _price(value: int) -> str:
    return f"${value // 100}" if value % 100 == 0 else f"${_cents(value)}"


def _times(price: int, n: int) -> list[str]:
    dollars, cents = divmod(price, 100)
    if not cents:
        return steps.multiply(dollars, n)
    whole, part = dollars * n, cents * n
    return [
        f"{dollars} × {n} = {whole}",
        f"0.{cents} × {n} = {_cents(part)}",
        f"{whole} + {_cents(part)} = {_cents(whole * 100 + part)}",
    ]


def _cost(question: str, n: int, price: int) -> Problem:
    last = f"The total is {_price(price * n)}."
    return Problem(question, _times(price, n), last, key("cost", n, price))


def cost(rng: random.Random) -> Problem:
    """Several things at one price."""
    good = rng.choice(GOODS)
    n = rng.randint(2, 12)
    price = 100 * rng.randint(1, 60)
    if rng.random() < 0.4:
        n, price = rng.randint(2, 9), 100 * rng.randint(1, 20) + rng.choice((25, 50, 75))
    things = count(n, good)
    forms = (
        f"A {good[0]} costs {_price(price)}. How much do {things} cost?",
        f"How much are {things} at {_price(price)} each?",
        f"What do {things} cost if one costs {_price(price)}?",
        f"{name(rng)} buys {things} for {_price(price)} each. What is the total?",
        f"One {good[0]} is {_price(price)}. What is the price of {things}?",
        f"I want {things}. Each {good[0]} is {_price(price)}. How much is that?",
        f"{things} at {_price(price)} each, how much in total?",
        f"The price of one {good[0]} is {_price(price)}. Find the cost of {things}.",
    )
    question = rng.choice(forms).replace(f"A {good[0]}", a(good[0]).capitalize())
    return _cost(question, n, price)


def change(rng: random.Random) -> Problem:
    """Several things paid with a note."""
    good = rng.choice(GOODS)
    who, she, _, _ = person(rng)
    note = rng.choice((10, 20, 50, 100, 200))
    n = rng.randint(1, 9)
    price = rng.randint(1, max(1, min(60, (note - 1) // n)))
    total = n * price
    things = count(n, good) if n > 1 else a(good[0])
    each = " each" if n > 1 else ""
    forms = (
        f"{who} buys {things} for ${price}{each} and pays with a ${note} bill. How much change "
        f"does {she} get?",
        f"I buy {things} at ${price}{each} and pay with ${note}. What is my change?",
        f"How much change do I get from ${note} if I buy {things} for ${price}{each}?",
        f"{who} pays ${note} for {things} at ${price}{each}. What is the change?",
        f"Change from ${note} for {things} at ${price}{each}?",
    )
    lines = steps.multiply(n, price) if n > 1 else []
    lines += steps.subtract(note, total)
    last = f"The change is ${note - total}."
    return Problem(rng.choice(forms), lines, last, key("change", n, price, note))


def discount(rng: random.Random) -> Problem:
    """A price less a multiple of ten percent, or with it added."""
    good = rng.choice(GOODS)
    price, percent = 10 * rng.randint(1, 60), 10 * rng.randint(1, 9)
    tenth = price // 10
    part = tenth * percent // 10
    lines = [f"10% of {price} is {tenth}"]
    if percent > 10:
        lines += steps.multiply(tenth, percent // 10)
    if rng.random() < 0.7:
        forms = (
            f"{a(good[0]).capitalize()} costs ${price}. It is {percent}% off. What is the new "
            "price?",
            f"A ${price} {good[0]} has a discount of {percent}%. What does it cost now?",
            f"What is the price of a ${price} {good[0]} after {percent}% off?",
            f"How much do I pay for a ${price} {good[0]} with {percent}% off?",
            f"{percent}% off ${price}, what is the price?",
            f"A shop takes {percent}% off {a(good[0])} of ${price}. What is the sale price?",
            f"Find the sale price: ${price}, {percent}% discount.",
        )
        lines += steps.subtract(price, part)
        last, problem = f"The new price is ${price - part}.", key("discount", price, percent)
        return Problem(rng.choice(forms), lines, last, problem)
    forms = (
        f"A bill is ${price}. With a tip of {percent}%, what is the total?",
        f"What is ${price} plus {percent}% tax?",
        f"A ${price} {good[0]} gets {percent}% more expensive. What is the new price?",
        f"Add a {percent}% tip to ${price}.",
        f"The price of ${price} goes up by {percent}%. What is it now?",
    )
    lines += steps.add(price, part)
    last = f"The new total is ${price + part}."
    return Problem(rng.choice(forms), lines, last, key("markup", price, percent))


def split(rng: random.Random) -> Problem:
    """A bill shared equally."""
    people = rng.randint(2, 9)
    each = rng.randint(3, 60)
    bill = people * each
    forms = (
        f"{people} friends share a bill of ${bill}. How much does each pay?",
        f"Split ${bill} between {people} people.",
        f"A dinner costs ${bill} and {people} people share it equally. What does each pay?",
        f"How much is ${bill} split {people} ways?",
        f"We are {people} people and the bill is ${bill}. How much is that each?",
        f"If {people} people share ${bill} equally, how much does each one get?",
    )
    lines, last = steps.divide(bill, people), f"Each pays ${each}."
    return Problem(rng.choice(forms), lines, last, key("split", bill, people))


def saving(rng: random.Random) -> Problem:
    """Saving so much a week, with something to start from."""
    who, she, _, _ = person(rng)
    start, per, weeks = rng.randint(5, 200), rng.randint(2, 60), rng.randint(2, 30)
    period, periods = rng.choice((("week", "weeks"), ("month", "months"), ("day", "days")))
    forms = (
        f"{who} has ${start} and saves ${per} a {period}. How much does {she} have after {weeks} "
        f"{periods}?",
        f"{who} starts with ${start} and adds ${per} every {period}. How much is there after "
        f"{weeks} {periods}?",
        f"If {who} has ${start} and earns ${per} each {period}, how much money is that after "
        f"{weeks} {periods}?",
        f"How much money does {who} have after {weeks} {periods}, starting with ${start} and "
        f"saving ${per} a {period}?",
    )
    lines = [*steps.multiply(per, weeks), *steps.add(start, per * weeks)]
    last = f"After {weeks} {periods} {who} has ${start + per * weeks}."
    return Problem(rng.choice(forms), lines, last, key("saving", start, per, weeks))


def two_goods(rng: random.Random) -> Problem:
    """Two kinds of things with two prices."""
    first, second = rng.sample(GOODS, 2)
    n, m = rng.randint(2, 9), rng.randint(2, 9)
    p, q = rng.randint(1, 30), rng.randint(1, 30)
    one, two = count(n, first), count(m, second)
    forms = (
        f"{name(rng)} buys {one} at ${p} each and {two} at ${q} each. What is the total?",
        f"How much are {one} at ${p} and {two} at ${q}?",
        f"I buy {one} for ${p} each and {two} for ${q} each. How much do I pay?",
        f"What is the cost of {one} at ${p} each plus {two} at ${q} each?",
    )
    lines = [*steps.multiply(n, p), *steps.multiply(m, q), *steps.add(n * p, m * q)]
    last = f"The total is ${n * p + m * q}."
    return Problem(rng.choice(forms), lines, last, key("two_goods", n, p, m, q))


PROBLEMS: tuple[tuple[Callable[[random.Random], Problem], float], ...] = (
    (cost, 4),
    (change, 3),
    (discount, 3),
    (split, 1.5),
    (saving, 2),
    (two_goods, 2),
)


@kind("money", 7)
def money(rng: random.Random) -> Sample:
    """One money question; after a cost, at times the same price for another number."""
    maker = pick(rng, PROBLEMS)
    asked = [maker(rng).roughened(rng, lower=False)]
    while maker is cost and rng.random() < 0.35 and len(asked) < 3:
        price, n = int(asked[-1].key.split(",")[1]), rng.randint(2, 9)
        again = ("and for {n}?", "And {n} of them?", "What about {n}?", "and if I buy {n}?")
        asked.append(_cost(ask(rng, again, n=n), n, price))
    return dialogue(asked)
