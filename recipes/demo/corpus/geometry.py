"""Areas, perimeters and volumes of simple shapes, with follow-up questions."""

import random

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick

UNITS = ("", "", "", "cm", "m", "mm", "km", "feet", "inches", "meters")


SINGULAR = {"feet": "foot", "inches": "inch", "meters": "meter"}


def _length(value: int | str, unit: str, power: str = "") -> str:
    if value == 1:
        unit = SINGULAR.get(unit, unit)
    return f"{value} {power}{unit}" if unit else str(value)


def _area(value: int, unit: str) -> str:
    return _length(value, unit, "square ")


def _volume(value: int, unit: str) -> str:
    return _length(value, unit, "cubic ")


def rectangle_area(question: str, a: int, b: int, unit: str) -> Problem:
    """Length times width."""
    return Problem(
        question,
        [f"Area = length × width = {a} × {b}", *steps.multiply(a, b)],
        f"The area is {_area(a * b, unit)}.",
        key("rect_area", *sorted((a, b))),
    )


def rectangle_perimeter(question: str, a: int, b: int, unit: str) -> Problem:
    """Twice the sum of length and width."""
    return Problem(
        question,
        [
            f"Perimeter = 2 × (length + width) = 2 × ({a} + {b})",
            *steps.add(a, b),
            *steps.multiply(2, a + b),
        ],
        f"The perimeter is {_length(2 * (a + b), unit)}.",
        key("rect_perimeter", *sorted((a, b))),
    )


def square_area(question: str, a: int, unit: str) -> Problem:
    """Side times side."""
    return Problem(
        question,
        [f"Area = side × side = {a} × {a}", *steps.multiply(a, a)],
        f"The area is {_area(a * a, unit)}.",
        key("square_area", a),
    )


def square_perimeter(question: str, a: int, unit: str) -> Problem:
    """Four sides."""
    return Problem(
        question,
        [f"Perimeter = 4 × side = 4 × {a}", *steps.multiply(4, a)],
        f"The perimeter is {_length(4 * a, unit)}.",
        key("square_perimeter", a),
    )


def triangle_area(question: str, a: int, b: int, unit: str) -> Problem:
    """Half of base times height."""
    product = a * b
    return Problem(
        question,
        [
            f"Area = base × height ÷ 2 = {a} × {b} ÷ 2",
            *steps.multiply(a, b),
            *steps.divide(product, 2),
        ],
        f"The area is {_area(product // 2, unit)}.",
        key("triangle_area", a, b),
    )


def box_volume(question: str, a: int, b: int, c: int, unit: str) -> Problem:
    """Length times width times height."""
    return Problem(
        question,
        [
            f"Volume = length × width × height = {a} × {b} × {c}",
            *steps.multiply(a, b),
            *steps.multiply(a * b, c),
        ],
        f"The volume is {_volume(a * b * c, unit)}.",
        key("box_volume", *sorted((a, b, c))),
    )


def _hundredths(value: int) -> str:
    return f"{value // 100}.{value % 100:02d}"


def circumference(question: str, d: int, unit: str) -> Problem:
    """Diameter times 3.14, the tens and ones of the hundredths apart."""
    part, tens, ones = (_hundredths(14 * n) for n in (d, d // 10 * 10, d % 10))
    value = _hundredths(314 * d)
    lines = [f"Circumference = 3.14 × diameter = 3.14 × {d}", f"3 × {d} = {3 * d}"]
    if d < 10 or d % 10 == 0:
        lines += [f"0.14 × {d} = {part}"]
    else:
        lines += [
            f"0.14 × {d // 10 * 10} = {tens}",
            f"0.14 × {d % 10} = {ones}",
            f"{tens} + {ones} = {part}",
        ]
    return Problem(
        question,
        [*lines, f"{3 * d} + {part} = {value}"],
        f"The circumference is about {_length(value, unit)}.",
        key("circumference", d),
    )


SIDES = (
    "length {a} and width {b}",
    "a length of {a} and a width of {b}",
    "width {b} and length {a}",
    "sides of {a} and {b}",
    "sides {a} and {b}",
    "length {a}, width {b}",
)
RECT = (
    "If a rectangle has {sides}, what is its {what}?",
    "What is the {what} of a rectangle with {sides}?",
    "A rectangle has {sides}. What is its {what}?",
    "Find the {what} of a rectangle with {sides}.",
    "A rectangle is {a} by {b}. Find the {what}.",
    "What is the {what} of a {a} by {b} rectangle?",
    "Calculate the {what} of a rectangle that is {a} long and {b} wide.",
    "A {thing} is {a} long and {b} wide. What is its {what}?",
    "A {thing} has {sides}. What is its {what}?",
    "My {thing} is {a} by {b}. What is the {what}?",
    "{what} of a rectangle, {sides}",
    "rectangle {a} x {b}, {what}?",
    "{what} of a {a} x {b} rectangle",
    "What's the {what} of a rectangle {a} by {b}?",
    "The length of a rectangle is {a} and its width is {b}. What is the {what}?",
    "How do I find the {what} of a rectangle with {sides}?",
    "Work out the {what}: rectangle, {sides}.",
    "Given a rectangle with {sides}, compute its {what}.",
    "Can you tell me the {what} of a {thing} that is {a} by {b}?",
    "The {thing} measures {a} by {b}. What is its {what}?",
    "I have a {thing} with {sides}. What is the {what}?",
    "If the length is {a} and the width is {b}, what is the {what} of the rectangle?",
)
THINGS = (
    *("garden", "room", "field", "carpet", "table", "wall", "door", "pool", "floor", "park"),
    *("desk", "yard", "poster"),
)
SQUARE = (
    "What is the {what} of a square with side {a}?",
    "A square has sides of {a}. What is its {what}?",
    "Find the {what} of a square of side {a}.",
    "If a square has side {a}, what is its {what}?",
    "The side of a square is {a}. What is the {what}?",
    "{what} of a square with side length {a}",
    "Calculate the {what} of a square whose side is {a}.",
    "Each side of a square is {a}. Work out its {what}.",
    "square with side {a}, {what}?",
)
TRIANGLE = (
    "What is the area of a triangle with base {a} and height {b}?",
    "A triangle has a base of {a} and a height of {b}. What is its area?",
    "Find the area of a triangle with base {a} and height {b}.",
    "If a triangle has base {a} and height {b}, what is its area?",
    "Calculate the area of a triangle: base {a}, height {b}.",
    "triangle with base {a} and height {b}, area?",
    "The base of a triangle is {a} and its height is {b}. What is the area?",
    "area of a triangle, base {a}, height {b}",
)
BOX = (
    "What is the volume of a box with length {a}, width {b} and height {c}?",
    "A box is {a} by {b} by {c}. What is its volume?",
    "Find the volume of a box that is {a} long, {b} wide and {c} high.",
    "If a box measures {a} by {b} by {c}, what is its volume?",
    "Calculate the volume of a {a} x {b} x {c} box.",
    "A box has length {a}, width {b} and height {c}. What is its volume?",
    "volume of a box {a} by {b} by {c}",
    "How much fits in a box of {a} by {b} by {c}? Give the volume.",
)
CIRCLE = (
    "What is the circumference of a circle with diameter {a}?",
    "A circle has a diameter of {a}. What is its circumference?",
    "Find the circumference of a circle with diameter {a}.",
    "If the diameter of a circle is {a}, what is its circumference?",
    "How far is it around a circle of diameter {a}?",
    "circumference of a circle, diameter {a}",
    "Calculate the circumference of a circle {a} across.",
)


OTHER_SIDE = (
    "and if the {s} is {n}?",
    "What if the {s} is {n}?",
    "And with a {s} of {n}?",
    "Now the {s} is {n}.",
    "Same question with {s} {n}.",
    "what about {s} {n}?",
)
OTHER_MEASURE = (
    "now the {w}",
    "And the {w}?",
    "What is its {w}?",
    "What about the {w}?",
    "Now find the {w}.",
    "and what is the {w}?",
)


def _ask_rectangle(rng: random.Random, what: str, a: int, b: int, unit: str) -> str:
    la, lb = _length(a, unit), _length(b, unit)
    sides = rng.choice(SIDES).format(a=la, b=lb)
    thing = rng.choice(THINGS)
    return ask(rng, RECT, sides=sides, a=la, b=lb, what=what, thing=thing)


def _rectangle(rng: random.Random, unit: str) -> list[Problem]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    if rng.random() < 0.4:
        a, b = rng.randint(1, 30), rng.randint(1, 30)
    solve = {"area": rectangle_area, "perimeter": rectangle_perimeter}
    what = rng.choice(("area", "area", "perimeter"))
    asked = [solve[what](_ask_rectangle(rng, what, a, b, unit), a, b, unit)]
    while rng.random() < 0.35 and len(asked) < 4:
        change = rng.randrange(3)
        if change == 0:
            b = rng.randint(1, 99)
            question = ask(rng, OTHER_SIDE, s="width", n=_length(b, unit))
        elif change == 1:
            a = rng.randint(1, 99)
            question = ask(rng, OTHER_SIDE, s="length", n=_length(a, unit))
        else:
            what = "perimeter" if what == "area" else "area"
            question = ask(rng, OTHER_MEASURE, w=what)
        asked.append(solve[what](question, a, b, unit))
    return asked


def _square(rng: random.Random, unit: str) -> list[Problem]:
    a = rng.randint(1, 99)
    solve = {"area": square_area, "perimeter": square_perimeter}
    what = rng.choice(("area", "perimeter"))
    asked = [solve[what](ask(rng, SQUARE, what=what, a=_length(a, unit)), a, unit)]
    if rng.random() < 0.3:
        if rng.random() < 0.5:
            what = "perimeter" if what == "area" else "area"
            question = ask(rng, OTHER_MEASURE[:4], w=what)
        else:
            a = rng.randint(1, 99)
            forms = ("and if the side is {n}?", "And for side {n}?", "What if the side is {n}?")
            question = ask(rng, forms, n=_length(a, unit))
        asked.append(solve[what](question, a, unit))
    return asked


def _other(rng: random.Random, unit: str) -> list[Problem]:
    shape = rng.choice(("triangle", "triangle", "box", "box", "circle"))
    if shape == "triangle":
        a, b = rng.randint(1, 60), rng.randint(1, 60)
        b += a * b % 2
        question = ask(rng, TRIANGLE, a=_length(a, unit), b=_length(b, unit))
        return [triangle_area(question, a, b, unit)]
    if shape == "box":
        a, b, c = rng.randint(1, 20), rng.randint(1, 20), rng.randint(1, 9)
        texts = {n: _length(v, unit) for n, v in zip("abc", (a, b, c), strict=True)}
        return [box_volume(ask(rng, BOX, **texts), a, b, c, unit)]
    d = rng.randint(1, 99)
    return [circumference(ask(rng, CIRCLE, a=_length(d, unit)), d, unit)]


@kind("geometry", 9)
def geometry(rng: random.Random) -> Sample:
    """A shape and its area, perimeter or volume."""
    unit = rng.choice(UNITS)
    makers = ((_rectangle, 5), (_square, 2), (_other, 3))
    return dialogue(pick(rng, makers)(rng, unit))
