"""Unit conversions and questions about clocks and days."""

import random

from . import steps
from .core import Problem, Sample, ask, dialogue, key, kind, pick
from .words import DAYS

# From, to, factor, the largest amount.
UNITS = (
    ("kilometers", "meters", 1000, 99),
    ("km", "m", 1000, 99),
    ("meters", "centimeters", 100, 99),
    ("m", "cm", 100, 99),
    ("centimeters", "millimeters", 10, 99),
    ("kilograms", "grams", 1000, 99),
    ("kg", "g", 1000, 99),
    ("liters", "milliliters", 1000, 99),
    ("hours", "minutes", 60, 48),
    ("minutes", "seconds", 60, 60),
    ("days", "hours", 24, 60),
    ("weeks", "days", 7, 99),
    ("years", "months", 12, 60),
    ("feet", "inches", 12, 60),
    ("yards", "feet", 3, 99),
    ("dozen", "pieces", 12, 40),
    ("dollars", "cents", 100, 99),
    ("gallons", "quarts", 4, 99),
)
ONE = {
    "feet": "foot",
    "inches": "inch",
    "dozen": "dozen",
    "km": "km",
    "kg": "kg",
    "m": "m",
}
FORMS = (
    "How many {t} are in {a} {f}?",
    "Convert {a} {f} to {t}.",
    "What is {a} {f} in {t}?",
    "{a} {f} in {t}",
    "{a} {f} to {t}",
    "How many {t} is {a} {f}?",
    "Express {a} {f} in {t}.",
    "Change {a} {f} into {t}.",
    "I have {a} {f}. How many {t} is that?",
    "Please convert {a} {f} into {t}.",
    "{a} {f} = ? {t}",
    "Can you convert {a} {f} to {t}?",
    "What's {a} {f} in {t}?",
    "Turn {a} {f} into {t}.",
)


def _unit(amount: int, unit: str) -> str:
    one = ONE.get(unit, unit.removesuffix("s"))
    return f"{amount} {one if amount == 1 else unit}"


def _convert(question: str, a: int, row: tuple[str, str, int, int], back: bool) -> Problem:
    big, small, factor, _ = row
    one = f"1 {ONE.get(big, big.removesuffix('s'))} = {factor} {small}"
    if back:
        lines = [one]
        total = a * factor
        if factor < 10:
            lines += steps.divide(total, factor)
        elif factor in (10, 100, 1000):
            lines += [f"{total} ÷ {factor} = {a}"]
        else:
            tens, ones = a // 10 * 10, a % 10
            if tens and ones:
                part, rest = factor * tens, factor * ones
                lines += [f"{factor} × {tens} = {part}", f"{total} - {part} = {rest}"]
                lines += [f"{factor} × {ones} = {rest}", f"{tens} + {ones} = {a}"]
            else:
                lines += [f"{factor} × {a} = {total}"]
        last = f"{_unit(total, small)} = {_unit(a, big)}"
        return Problem(question, lines, last, key("convert_back", big, small, total))
    lines = [one, *steps.multiply(a, factor)]
    last = f"{_unit(a, big)} = {_unit(a * factor, small)}"
    return Problem(question, lines, last, key("convert", big, small, a))


@kind("units", 5)
def units(rng: random.Random) -> Sample:
    """One conversion, at times the same one for another amount."""
    row = rng.choice(UNITS)
    big, small, factor, most = row
    back = rng.random() < 0.35
    if back and factor not in (10, 100, 1000):
        most = min(most, 60)
    amount = rng.randint(1, most)
    source, target = (small, big) if back else (big, small)

    def shown(n: int) -> int:
        return n * factor if back else n

    question = ask(rng, FORMS, a=shown(amount), f=source, t=target)
    if shown(amount) == 1:
        question = question.replace(f"1 {source}", _unit(1, source))
    asked = [_convert(question, amount, row, back)]
    while len(asked) < 3 and rng.random() >= 0.75:
        amount = rng.randint(2, most)
        again = ("and {a} {f}?", "And {a}?", "What about {a} {f}?", "and for {a} {f}?")
        question = ask(rng, again, a=shown(amount), f=source)
        asked.append(_convert(question, amount, row, back))
    return dialogue(asked)


def _clock(minutes: int) -> str:
    minutes %= 24 * 60
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


LATER = (
    "It is {t}. What time will it be in {d}?",
    "What time is it {d} after {t}?",
    "A film starts at {t} and lasts {d}. When does it end?",
    "A class begins at {t} and takes {d}. When is it over?",
    "The train leaves at {t} and the trip takes {d}. When does it arrive?",
    "If it is {t} now, what time is it in {d}?",
    "Add {d} to {t}.",
    "{t} plus {d}?",
    "I start at {t} and work for {d}. When do I finish?",
    "The bus leaves at {t}. The ride is {d} long. When does it arrive?",
)
BETWEEN = (
    "How long is it from {s} to {e}?",
    "How much time is there between {s} and {e}?",
    "A film runs from {s} to {e}. How long is it?",
    "The train leaves at {s} and arrives at {e}. How long is the trip?",
    "A class starts at {s} and ends at {e}. How long does it last?",
    "From {s} until {e}, how long is that?",
    "How many hours and minutes are there from {s} to {e}?",
    "time between {s} and {e}?",
)
TWELVE = (
    "What is {t} in 12-hour time?",
    "Convert {t} to 12-hour time.",
    "Write {t} with am or pm.",
    "How do I say {t} in 12-hour time?",
    "{t} in am/pm?",
    "Is {t} am or pm? Give the 12-hour time.",
    "{t} to 12-hour clock",
    "Change {t} to the 12-hour clock.",
)
TWENTY_FOUR = (
    "What is {t} in 24-hour time?",
    "Convert {t} to 24-hour time.",
    "Write {t} in 24-hour time.",
    "{t} in 24-hour time?",
    "How is {t} written on a 24-hour clock?",
    "{t} to 24-hour clock",
    "Change {t} to the 24-hour clock.",
)
DAY = (
    "What day is it {n} days after {d}?",
    "Today is {d}. What day is it in {n} days?",
    "If today is {d}, what day will it be in {n} days?",
    "Which day comes {n} days after {d}?",
    "{n} days after {d} is which day?",
    "It is {d}. Which day is it {n} days from now?",
    "{d} plus {n} days?",
)


def _span(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    parts = []
    if hours:
        parts.append(f"{hours} hour{'s' if hours > 1 else ''}")
    if rest or not hours:
        parts.append(f"{rest} minute{'s' if rest != 1 else ''}")
    return " and ".join(parts)


def _later(rng: random.Random) -> Problem:
    start, length = rng.randrange(24 * 60), rng.randint(5, 300)
    if rng.random() < 0.5:
        start, length = start // 5 * 5, length // 5 * 5
    hours, minutes = divmod(length, 60)
    h, m = divmod(start, 60)
    lines = []
    if hours:
        lines.append(f"{_clock(start)} plus {_span(hours * 60)} is {_clock(start + hours * 60)}")
        h = (h + hours) % 24
    if minutes:
        lines.append(f"{m} + {minutes} = {m + minutes}")
        if m + minutes >= 60:
            lines.append(f"{m + minutes} - 60 = {m + minutes - 60}, so one hour more")
    end = _clock(start + length)
    question = ask(rng, LATER, t=_clock(start), d=_span(length))
    return Problem(question, lines, f"The time is {end}.", key("later", _clock(start), length))


def _between(rng: random.Random) -> Problem:
    start = rng.randrange(24 * 60 - 10)
    end = rng.randint(start + 5, min(start + 720, 24 * 60 - 1))
    if rng.random() < 0.5:
        start, end = start // 5 * 5, end // 5 * 5
    if start == end:
        end += 1
    hours, minutes = divmod(end - start, 60)
    lines = []
    if hours:
        middle = start + hours * 60
        lines.append(f"{_clock(start)} to {_clock(middle)} is {_span(hours * 60)}")
        if minutes:
            lines.append(f"{_clock(middle)} to {_clock(end)} is {_span(minutes)}")
    question = ask(rng, BETWEEN, s=_clock(start), e=_clock(end))
    last = f"That is {_span(end - start)}."
    return Problem(question, lines, last, key("between", _clock(start), _clock(end)))


def _twelve(rng: random.Random) -> Problem:
    t = rng.randrange(24 * 60)
    hour, minute = divmod(t, 60)
    half = "am" if hour < 12 else "pm"
    twelve = f"{hour % 12 or 12}:{minute:02d}"
    if rng.random() < 0.5:
        lines = [f"{hour} - 12 = {hour - 12}"] if hour > 12 else []
        question = ask(rng, TWELVE, t=_clock(t))
        return Problem(question, lines, f"{_clock(t)} is {twelve} {half}.", key("to12", _clock(t)))
    lines = [f"{hour - 12} + 12 = {hour}"] if hour > 12 else []
    question = ask(rng, TWENTY_FOUR, t=f"{twelve} {half}")
    return Problem(question, lines, f"{twelve} {half} is {_clock(t)}.", key("to24", _clock(t)))


def _day(rng: random.Random) -> Problem:
    day, n = rng.randrange(7), rng.randint(2, 40)
    lines, rest = [], n % 7
    if n >= 7:
        lines.append(f"{n} ÷ 7 = {n // 7} remainder {rest}")
    if rest:
        lines.append("Count on: " + ", ".join(DAYS[(day + i) % 7] for i in range(rest + 1)))
    question = ask(rng, DAY, lower=False, n=n, d=DAYS[day])
    return Problem(question, lines, f"It is {DAYS[(day + n) % 7]}.", key("day", DAYS[day], n))


@kind("clock", 5)
def clock(rng: random.Random) -> Sample:
    """A time later, a time span, a 12- or 24-hour time, or a day of the week."""
    makers = ((_later, 3), (_between, 3), (_twelve, 2), (_day, 2))
    return dialogue([pick(rng, makers)(rng)])
