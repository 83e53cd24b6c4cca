"""Word problems about people and things, worked in steps."""

import random
from collections.abc import Callable

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick, upper_first
from .words import HE, ITEMS, count, invent, name, person, two_names


def gains_and_losses(rng: random.Random) -> Problem:
    """Somebody has some, gets some, gives some away: one to three changes."""
    who, she, _, _ = person(rng)
    if rng.random() < 0.12:
        who, she = invent(rng), "they"
    other = name(rng)
    item = rng.choice(ITEMS)
    many = item[1]
    have = rng.randint(2, 99)
    start = rng.choice(
        (
            "{w} has {c}.",
            "{w} starts with {c}.",
            "{w} owns {c}.",
            "There are {c} in {w}'s bag.",
            "{w} collected {c}.",
        )
    ).format(w=who, c=count(have, item))
    lines, changes, value = [], [], have
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        n = rng.randint(2, 60)
        if rng.random() < 0.5 or n > value:
            verb = rng.choice(("buys", "finds", "gets", "receives", "wins"))
            more = rng.choice((f"{n} more", f"{n} more {many}", f"{n} {many}"))
            clause = rng.choice((f"{verb} {more}", f"{verb} {more} from {other}"))
            lines += steps.add(value, n)
            value, signed = value + n, n
        else:
            verb = rng.choice(("gives away", "loses", "sells", "uses", f"gives {other}"))
            clause = f"{verb} {rng.choice((str(n), f'{n} {many}', f'{n} of them'))}"
            lines += steps.subtract(value, n)
            value, signed = value - n, -n
        subject = who if she == "they" else rng.choice((she, who))
        changes.append((f"{subject} {clause}", signed))
    joiner = rng.choice(("Then", "Later", "After that,", "Next,"))
    middle = ". ".join(
        upper_first(c) if i == 0 else f"{joiner} {c}" for i, (c, _) in enumerate(changes)
    )
    final = rng.choice(
        (
            f"How many {many} does {who} have now?",
            f"How many {many} does {who} have?",
            f"How many {many} are left?" if changes[-1][1] < 0 else f"How many {many} in total?",
            f"How many {many} does {who} have in the end?",
        )
    )
    last = f"{who} has {count(value, item)}."
    problem = key("changes", have, *(n for _, n in changes))
    return Problem(f"{start} {middle}. {final}", lines, last, problem)


def equal_groups(rng: random.Random) -> Problem:
    """So many groups of so many things."""
    groups, each = rng.randint(2, 50), rng.randint(2, 50)
    item = rng.choice(ITEMS)
    many = item[1]
    who = name(rng)
    box = rng.choice(("box", "bag", "basket", "jar", "pack", "shelf", "row", "table"))
    boxes = {"box": "boxes", "shelf": "shelves"}.get(box, f"{box}s")
    forms = (
        "{w} has {g} {bs}. Each {b} has {e} {m}. How many {m} does {w} have?",
        "There are {g} {bs} with {e} {m} each. How many {m} are there?",
        "How many {m} are in {g} {bs} if each {b} has {e}?",
        "Each {b} has {e} {m}. How many {m} are in {g} {bs}?",
        "{w} fills {g} {bs} with {e} {m} each. How many {m} is that?",
        "If one {b} has {e} {m}, how many {m} are in {g} {bs}?",
        "{g} {bs}, {e} {m} in each. How many {m} in total?",
        "A shop has {g} {bs} of {m} and every {b} has {e} {m}. How many {m} are there?",
    )
    text = rng.choice(forms).format(w=who, g=groups, bs=boxes, b=box, e=each, m=many)
    last = f"There are {groups * each} {many}."
    return Problem(text, steps.multiply(groups, each), last, key("groups", *sorted((groups, each))))


def sharing(rng: random.Random) -> Problem:
    """Things shared equally, at times with some left over."""
    people = rng.randint(2, 9)
    each = rng.randint(2, 40)
    left = rng.randrange(people) if rng.random() < 0.3 else 0
    things = people * each + left
    item = rng.choice(ITEMS)
    many = item[1]
    who = name(rng)
    group = rng.choice(("friends", "children", "students", "neighbors", "people", "players"))
    forms = (
        "{w} shares {t} {m} equally among {p} {g}. How many {m} does each get?",
        "{t} {m} are shared equally by {p} {g}. How many does each one get?",
        "If {p} {g} share {t} {m} equally, how many {m} does each get?",
        "{w} has {t} {m} for {p} {g}. How many {m} are there for each?",
        "Divide {t} {m} equally among {p} {g}. How many each?",
        "There are {t} {m} and {p} {g}. Each gets the same number of {m}. How many is that?",
        "How many {m} does each of {p} {g} get if they share {t} {m} equally?",
    )
    text = rng.choice(forms).format(w=who, t=things, m=many, p=people, g=group)
    last = f"Each gets {count(each, item)}."
    if left:
        last = f"Each gets {count(each, item)}, with {left} left over."
    return Problem(text, steps.divide(things, people), last, key("share", things, people))


def more_or_fewer(rng: random.Random) -> Problem:
    """Two people, one of whom has more or fewer; how many together."""
    first, second = two_names(rng)
    item = rng.choice(ITEMS)
    many = item[1]
    a, d = rng.randint(12, 99), rng.randint(2, 11)
    more = rng.random() < 0.5
    b = a + d if more else a - d
    word = "more" if more else "fewer"
    together = rng.random() < 0.6
    start = rng.choice(
        (
            f"{first} has {a} {many}. {second} has {d} {word} {many} than {first}.",
            f"{first} has {a} {many} and {second} has {d} {word}.",
            f"{second} has {d} {word} {many} than {first}, who has {a}.",
        )
    )
    lines = steps.add(a, d) if more else steps.subtract(a, d)
    if together:
        end = rng.choice(
            (
                f"How many {many} do they have together?",
                f"How many {many} do they have in total?",
                f"How many {many} do {first} and {second} have altogether?",
            )
        )
        lines = [*lines, *steps.add(a, b)]
        last = f"Together they have {a + b} {many}."
    else:
        end = rng.choice((f"How many {many} does {second} have?", f"How many has {second}?"))
        last = f"{second} has {count(b, item)}."
    problem = key("compare", a, d if more else -d, together)
    return Problem(f"{start} {end}", lines, last, problem)


def times_as_many(rng: random.Random) -> Problem:
    """One person has several times as many as the other."""
    first, second = two_names(rng)
    item = rng.choice(ITEMS)
    many = item[1]
    a, k = rng.randint(2, 60), rng.randint(2, 9)
    times = {2: "twice", 3: rng.choice(("three times", "3 times"))}.get(k, f"{k} times")
    start = rng.choice(
        (
            f"{first} has {a} {many}. {second} has {times} as many.",
            f"{first} has {a} {many} and {second} has {times} as many {many}.",
            f"{second} has {times} as many {many} as {first}. {first} has {a}.",
        )
    )
    lines = steps.multiply(a, k)
    if rng.random() < 0.5:
        lines += steps.add(a * k, a)
        end = rng.choice(
            (
                f"How many {many} do they have together?",
                f"How many {many} do {first} and {second} have in total?",
            )
        )
        last = f"Together they have {a * k + a} {many}."
        return Problem(f"{start} {end}", lines, last, key("times_sum", a, k))
    end = rng.choice((f"How many {many} does {second} have?", f"How many does {second} have?"))
    last = f"{second} has {count(a * k, item)}."
    return Problem(f"{start} {end}", lines, last, key("times", a, k))


def speed(rng: random.Random) -> Problem:
    """Distance from speed and time."""
    who, _, _, _ = person(rng)
    v, t = rng.randint(2, 99), rng.randint(2, 24)
    mover, verb = rng.choice(
        (
            ("A car", "drives"),
            ("A train", "goes"),
            ("A bus", "drives"),
            (who, "cycles"),
            ("A ship", "sails"),
            (who, "drives"),
        )
    )
    unit = rng.choice(("km", "miles"))
    forms = (
        f"{mover} {verb} at {v} {unit} per hour for {t} hours. How far is that?",
        f"{mover} {verb} {v} {unit} every hour. How far does it get in {t} hours?"
        if mover.startswith("A ")
        else f"{mover} {verb} {v} {unit} every hour. How far is that in {t} hours?",
        f"How many {unit} is it if {mover[0].lower() + mover[1:] if mover[:2] == 'A ' else mover} "
        f"{verb} for {t} hours at {v} {unit} per hour?",
        f"Speed {v} {unit} per hour, time {t} hours. What is the distance?",
        f"At {v} {unit} per hour, how far do you get in {t} hours?",
    )
    lines = [f"Distance = speed × time = {v} × {t}", *steps.multiply(v, t)]
    return Problem(rng.choice(forms), lines, f"The distance is {v * t} {unit}.", key("speed", v, t))


def work(rng: random.Random) -> Problem:
    """A daily amount over several days or weeks."""
    who, she, _, _ = person(rng)
    per, days = rng.randint(2, 60), rng.randint(2, 31)
    verb, base, things = rng.choice(
        (
            ("reads", "read", "pages"),
            ("runs", "run", "laps"),
            ("writes", "write", "lines"),
            ("bakes", "bake", "rolls"),
            ("learns", "learn", "words"),
            ("plants", "plant", "trees"),
            ("draws", "draw", "cards"),
            ("walks", "walk", "blocks"),
        )
    )
    forms = (
        f"{who} {verb} {per} {things} a day. How many {things} does {she} {base} in {days} days?",
        f"If {who} {verb} {per} {things} each day, how many {things} is that in {days} days?",
        f"{who} {verb} {per} {things} every day for {days} days. How many {things} is that?",
        f"How many {things} does {who} {base} in {days} days at {per} {things} a day?",
        f"Every day {who} {verb} {per} {things}. How many {things} after {days} days?",
    )
    pronoun = "he" if who in HE else "she"
    last = f"In {days} days {pronoun} {verb} {per * days} {things}."
    return Problem(rng.choice(forms), steps.multiply(per, days), last, key("daily", per, days))


def ages(rng: random.Random) -> Problem:
    """Ages now, in some years, or some years ago."""
    first, second = two_names(rng)
    a, d, years = rng.randint(5, 60), rng.randint(1, 20), rng.randint(2, 30)
    forms = (
        f"{first} is {a} years old. {second} is {d} years older. How old will {second} be in "
        f"{years} years?",
        f"{second} is {d} years older than {first}, who is {a}. How old is {second} in {years} "
        "years?",
        f"{first} is {a} and {second} is {d} years older. What is {second}'s age in {years} years?",
    )
    lines = [*steps.add(a, d), *steps.add(a + d, years)]
    last = f"In {years} years {second} will be {a + d + years} years old."
    return Problem(rng.choice(forms), lines, last, key("age", a, d, years))


PROBLEMS: tuple[tuple[Callable[[random.Random], Problem], float], ...] = (
    (gains_and_losses, 4),
    (equal_groups, 3),
    (sharing, 2),
    (more_or_fewer, 2),
    (times_as_many, 2),
    (speed, 1.5),
    (work, 1.5),
    (ages, 1),
)


@kind("word problems", 9)
def word_problem(rng: random.Random) -> Sample:
    """One word problem."""
    return dialogue([pick(rng, PROBLEMS)(rng).roughened(rng, lower=False)])


@kind("recipes", 3)
def recipe(rng: random.Random) -> Sample:
    """Amounts for one portion or one thing, then for other numbers of them."""
    per = rng.randint(2, 60)
    thing, things = rng.choice(
        (("cake", "cakes"), ("pie", "pies"), ("loaf", "loaves"), ("pizza", "pizzas"))
    )
    stuff = rng.choice(
        ("eggs", "apples", "cups of flour", "spoons of sugar", "olives", "tomatoes", "nuts")
    )
    n = rng.randint(2, 30)
    forms: tuple[str, ...] = (
        "One {t} needs {p} {s}. How many {s} do I need for {n} {ts}?",
        "A {t} takes {p} {s}. How many {s} for {n} {ts}?",
        "I use {p} {s} for one {t}. How many {s} for {n} {ts}?",
        "If one {t} needs {p} {s}, how many {s} do {n} {ts} need?",
        "{p} {s} make one {t}. How many {s} for {n} {ts}?",
        "How many {s} do I need for {n} {ts} if one {t} takes {p}?",
    )
    asked: list[Problem] = []
    while True:
        question = ask(rng, forms, t=thing, ts=things, p=per, s=stuff, n=n)
        last = f"You need {per * n} {stuff} for {n} {things}."
        asked.append(Problem(question, steps.multiply(per, n), last, key("recipe", per, n)))
        if len(asked) > 2 or rng.random() < 0.55:
            return dialogue(asked)
        n = rng.randint(2, 30)
        forms = ("and for {n} {ts}?", "And for {n}?", "What about {n} {ts}?", "now for {n} {ts}")
