"""Counting things in a text, and small Markdown tables."""

import random

from . import steps
from .core import Answer, Sample, ask, chat, key, kind, roughen
from .words import ANIMALS, COLORS, FRUITS, HOBBIES, ITEMS, JOBS, a, name, place

COUNT_WORD = (
    'How many times does "{w}" appear in: {l}?',
    "How often does {w} appear in this list: {l}?",
    "Count {w} in: {l}",
    "How many times is {w} in the list {l}?",
    "In {l}, how often do you see {w}?",
    "Count how many times {w} occurs: {l}.",
    "How many times do you see {w} here: {l}?",
    "count {w} in {l}",
)
COUNT_ALL = (
    "How many items are in this list: {l}?",
    "Count the items: {l}",
    "How many words are there: {l}?",
    "How long is this list: {l}?",
    "Count these: {l}.",
    "How many things are listed here: {l}?",
    "count the entries of {l}",
    "How many entries has this list: {l}?",
)
TALLY = (
    "Count how often each word appears: {l}",
    "Make a table of how often each one occurs: {l}",
    "Tally these: {l}",
    "How many of each: {l}?",
    "Give me the counts as a table: {l}",
    "Make a frequency table of {l}.",
    "Count each of these and show a table: {l}",
    "table of counts: {l}",
)
MAKE = (
    "Make a table: {r}.",
    "Make a table of this: {r}.",
    "Put this in a table: {r}.",
    "Show as a Markdown table: {r}.",
    "Turn this into a table: {r}.",
    "Can you make a table from this? {r}.",
    "Write a Markdown table for: {r}.",
    "I need a table: {r}.",
    "Format this as a table: {r}.",
    "Table please: {r}.",
    "{r}. Make a table of that.",
    "Here is my data: {r}. Show it as a table.",
)
TOTAL = (
    "Add a total row.",
    "now add the total",
    "And the total?",
    "Now with a total row.",
    "add a row with the total",
    "Can you add a total?",
)


def _counted(words: list[str], wanted: str | None) -> str:
    marked, seen = [], 0
    for word in words:
        if wanted is None or word == wanted:
            seen += 1
            marked.append(f"{word} ({seen})")
        else:
            marked.append(word)
    return ", ".join(marked)


def _tallied(words: list[str]) -> str:
    return ", ".join(f"{word} ({words[: i + 1].count(word)})" for i, word in enumerate(words))


@kind("counting", 4)
def counting(rng: random.Random) -> Sample:
    """How many items a list has, or how often one of them occurs."""
    pool = rng.choice((FRUITS, ANIMALS, COLORS))
    if rng.random() < 0.35:
        words = rng.sample(pool, rng.randint(3, 11))
        question = ask(rng, COUNT_ALL, l=", ".join(words))
        last, wanted = f"There are {len(words)} items.", None
        problem = key("count", *words)
    else:
        few = rng.sample(pool, rng.randint(2, 4))
        words = [rng.choice(few) for _ in range(rng.randint(4, 11))]
        wanted = rng.choice(few)
        times = words.count(wanted)
        question = ask(rng, COUNT_WORD, w=wanted, l=", ".join(words))
        last = f"The word {wanted} appears {times} time{'s' * (times != 1)}."
        problem = key("count_of", wanted, *words)
    return Sample(
        chat(question, f"{_counted(words, wanted)}\n{last}"), (problem,), Answer("last_line", last)
    )


def markdown(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _people(rng: random.Random, size: int) -> list[str]:
    names: list[str] = []
    while len(names) < size:
        if (new := name(rng)) not in names:
            names.append(new)
    return names


def _numbers(rng: random.Random) -> tuple[tuple[str, ...], list[tuple[object, ...]], str]:
    size = rng.randint(2, 5)
    shape = rng.randrange(4)
    if shape == 0:
        item = rng.choice(ITEMS)[1]
        rows = [(who, rng.randint(2, 30)) for who in _people(rng, size)]
        glue = rng.choice(("{} has {} {}", "{} {} {}", "{}: {} {}"))
        text = ", ".join(glue.format(w, n, item) for w, n in rows)
        return ("Name", item.capitalize()), list(rows), text
    if shape == 1:
        goods = rng.sample([item[0] for item in ITEMS], size)
        prices = [(g, f"${rng.randint(1, 90)}") for g in goods]
        glue = rng.choice(("{} {}", "{} costs {}", "{}: {}", "{} for {}"))
        return ("Item", "Price"), list(prices), ", ".join(glue.format(*r) for r in prices)
    if shape == 2:
        things = rng.sample([item[1] for item in ITEMS], size)
        rows = [(g, rng.randint(2, 60)) for g in things]
        text = ", ".join(f"{n} {g}" for g, n in rows)
        return ("Item", "Count"), list(rows), text
    rows = [(who, rng.randint(5, 90)) for who in _people(rng, size)]
    glue = rng.choice(("{} is {}", "{} is {} years old", "{}, {}", "{} ({})"))
    return ("Name", "Age"), list(rows), ", ".join(glue.format(*r) for r in rows)


def _texts(rng: random.Random) -> tuple[tuple[str, ...], list[tuple[object, ...]], str]:
    people = _people(rng, rng.randint(2, 4))
    shape = rng.randrange(4)
    if shape == 0:
        rows = [(w, rng.choice(JOBS), place(rng)) for w in people]
        text = ", ".join(f"{w} is a {j} in {c}" for w, j, c in rows)
        return ("Name", "Job", "City"), list(rows), text
    if shape == 1:
        rows2 = [(w, rng.randint(5, 90), place(rng)) for w in people]
        glue = rng.choice(("{} is {} and lives in {}", "{}, {}, {}", "{} ({}) from {}"))
        joiner = "; " if glue == "{}, {}, {}" else ", "
        text = joiner.join(glue.format(*r) for r in rows2)
        return ("Name", "Age", "City"), list(rows2), text
    if shape == 2:
        rows3 = [(w, rng.choice(COLORS), rng.choice(ANIMALS)) for w in people]
        text = ", ".join(f"{w} likes {c} and has {a(p)}" for w, c, p in rows3)
        return ("Name", "Color", "Pet"), list(rows3), text
    rows4 = [(w, rng.choice(HOBBIES)) for w in people]
    return ("Name", "Hobby"), list(rows4), ", ".join(f"{w} likes {h}" for w, h in rows4)


def _with_total(
    header: tuple[str, ...], rows: list[tuple[object, ...]]
) -> tuple[tuple[object, ...], list[str]]:
    dollar = "$" if str(rows[0][1]).startswith("$") else ""
    values = [int(str(row[1]).removeprefix("$")) for row in rows]
    return ("Total", f"{dollar}{sum(values)}"), steps.total(values)


@kind("tables", 6)
def tables(rng: random.Random) -> Sample:
    """A Markdown table from a sentence, at times with a total, or a table of counts."""
    if rng.random() < 0.35:
        few = rng.sample(rng.choice((FRUITS, ANIMALS, COLORS)), rng.randint(2, 4))
        words = few + [rng.choice(few) for _ in range(rng.randint(1, 7 - len(few)))]
        rng.shuffle(words)
        order = list(dict.fromkeys(words))
        table = markdown(("Word", "Count"), [(w, words.count(w)) for w in order])
        question = ask(rng, TALLY, l=", ".join(words))
        reply = f"{_tallied(words)}\n\n{table}"
        return Sample(chat(question, reply), (key("tally", *words),), Answer("exact", reply))
    numeric = rng.random() < 0.7
    header, rows, text = _numbers(rng) if numeric else _texts(rng)
    table = markdown(header, rows)
    cells = [cell for row in rows for cell in row]
    keys = [key("table", *cells)]
    turns = [ask(rng, MAKE, lower=False, r=text), table]
    if numeric and header[1] != "Age" and rng.random() < 0.4:
        row, lines = _with_total(header, rows)
        table = "\n".join([*lines, "", markdown(header, [*rows, row])])
        turns += [roughen(rng, rng.choice(TOTAL)), table]
        keys.append(key("table_total", *cells))
    elif rng.random() < 0.2:
        lead = rows[0][0]
        row = (name(rng) if header[0] == "Name" else "lamp", *rows[-1][1:])
        if row[0] != lead:
            shown = ", ".join(map(str, row))
            turns.append(
                ask(rng, ("Add this row: {r}", "add {r}", "And add {r}."), r=shown, lower=False)
            )
            table = markdown(header, [*rows, row])
            turns.append(table)
            keys.append(key("table_row", *cells, *row))
    return Sample(chat(*turns), tuple(keys), Answer("exact", table))
