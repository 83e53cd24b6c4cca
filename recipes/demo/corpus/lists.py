"""Rewriting lists: sorting, reversing, numbering, changing items."""

import random
from collections.abc import Callable

from .core import Answer, Sample, chat, key, kind, pick, roughen, upper_first
from .words import ANIMALS, COLORS, FOODS, FRUITS, HOBBIES, JOBS, TOOLS

POOLS = (FRUITS, ANIMALS, COLORS, TOOLS, FOODS, HOBBIES, JOBS)
# Short enough for a small model to keep every item; with repeats, one more.
MOST = 6
# A request, the words that introduce the result, the result, its layout: "joined" by commas, in
# "lines", or "marked": joined, below a line that marks the repeats.
Rewrite = tuple[str, str, list[str], str]

# {r} is the request, {R} the same with a capital.
FORMS = (
    "{R} this list: {l}",
    "{R} this list: {l}.",
    "{R} the list {l}",
    "{R} these: {l}",
    "Please {r} this list: {l}",
    "Can you {r} these: {l}?",
    "{l}. {R} the list.",
    "{l}\n{R} this list.",
    "Here is a list: {l}. {R} it.",
    "I have {l}. {R} this list.",
    "How does it look if you {r} this: {l}?",
    "{R} this: {l}",
)
AGAIN = ("now {r} it", "{r} it", "and {r} it", "Now {r} it.", "Then {r} it.", "{R} that list.")


def _joined(items: list[str]) -> str:
    return ", ".join(items)


def _lines(items: list[str]) -> str:
    return "\n".join(items)


def _sort(rng: random.Random, items: list[str]) -> Rewrite:
    result = sorted(items, key=str.lower)
    return rng.choice(("sort", "alphabetize", "order")), "Sorted from A to Z:", result, "joined"


def _backwards(rng: random.Random, items: list[str]) -> Rewrite:
    return rng.choice(("reverse", "turn around")), "In reverse order:", items[::-1], "joined"


def _upper(rng: random.Random, items: list[str]) -> Rewrite:
    request = rng.choice(("uppercase", "capitalize all of"))
    return request, "In capital letters:", [item.upper() for item in items], "joined"


def _title(rng: random.Random, items: list[str]) -> Rewrite:
    request = rng.choice(("capitalize the first letters of", "title case"))
    return request, "With a capital each:", [item.capitalize() for item in items], "joined"


def _dedupe(rng: random.Random, items: list[str]) -> Rewrite:
    request = rng.choice(("remove the duplicates from", "dedupe", "remove repeats from"))
    return request, "Without duplicates:", list(dict.fromkeys(items)), "marked"


def _number(rng: random.Random, items: list[str]) -> Rewrite:
    result = [f"{i}. {item}" for i, item in enumerate(items, 1)]
    return rng.choice(("number", "put numbers before")), "Numbered:", result, "lines"


def _bullets(rng: random.Random, items: list[str]) -> Rewrite:
    request = rng.choice(("make bullet points of", "bullet", "put bullets before"))
    return request, "As bullet points:", [f"- {item}" for item in items], "lines"


def _rows(rng: random.Random, items: list[str]) -> Rewrite:
    request = rng.choice(("put one item a line of", "split into lines"))
    return request, "One on each line:", list(items), "lines"


def _remove(rng: random.Random, items: list[str]) -> Rewrite:
    gone = rng.choice(items)
    rest = [item for item in items if item != gone]
    request = rng.choice((f"remove {gone} from", f"take {gone} out of", f"delete {gone} from"))
    return request, f"Without {gone}:", rest, "joined"


def _append(rng: random.Random, items: list[str]) -> Rewrite:
    new = rng.choice(rng.choice(POOLS))
    request = rng.choice((f"add {new} to", f"append {new} to", f"put {new} at the end of"))
    return request, f"With {new}:", [*items, new], "joined"


def _replace(rng: random.Random, items: list[str]) -> Rewrite:
    old, new = rng.choice(items), rng.choice(rng.choice(POOLS))
    request = rng.choice((f"replace {old} with {new} in", f"change {old} to {new} in"))
    return (
        request,
        f"With {new} in place of {old}:",
        [new if item == old else item for item in items],
        "joined",
    )


def _swap(rng: random.Random, items: list[str]) -> Rewrite:
    result = [items[-1], *items[1:-1], items[0]]
    return "swap the first and last item of", "With the ends swapped:", result, "joined"


REWRITES: tuple[tuple[Callable[[random.Random, list[str]], Rewrite], float], ...] = (
    (_sort, 6),
    (_backwards, 3),
    (_upper, 3),
    (_title, 2),
    (_dedupe, 6),
    (_number, 2),
    (_bullets, 2),
    (_rows, 1),
    (_remove, 2),
    (_append, 2),
    (_replace, 2),
    (_swap, 1),
)


def _marked(items: list[str]) -> str:
    return _joined([f"({x})" if x in items[:i] else x for i, x in enumerate(items)])


def _reply(given: list[str], lead: str, result: list[str], layout: str) -> str:
    reply = f"{lead}\n{_lines(result) if layout == 'lines' else _joined(result)}"
    return f"Repeats in brackets: {_marked(given)}\n{reply}" if layout == "marked" else reply


def _request(rng: random.Random, forms: tuple[str, ...], verb: str, items: str) -> str:
    return rng.choice(forms).format(r=verb, R=upper_first(verb), l=items)


def _numbers_sorted(rng: random.Random) -> Sample:
    size = rng.randint(3, MOST)
    numbers = [rng.randint(1, rng.choice((20, 99, 999))) for _ in range(size)]
    down = rng.random() < 0.5
    text = _joined([str(n) for n in numbers])
    order = rng.choice(
        ("from large to small", "in descending order", "from high to low")
        if down
        else ("from small to large", "in ascending order", "from low to high", "")
    )
    forms = (
        "Sort these numbers {o}: {l}",
        "Put these numbers in order {o}: {l}",
        "Sort {l} {o}.",
        "Order {l} {o}.",
        "Arrange the numbers {l} {o}.",
        "Can you sort {l} {o}?",
        "Sort the list {l} {o}.",
        "Please sort {o}: {l}",
    )
    question = " ".join(rng.choice(forms).format(o=order, l=text).split())
    question = question.replace(" .", ".").replace(" ?", "?").replace(" :", ":")
    lead = "From large to small:" if down else "From small to large:"
    reply = f"{lead}\n{_joined([str(n) for n in sorted(numbers, reverse=down)])}"
    problem = key("sort_numbers", down, *numbers)
    return Sample(chat(roughen(rng, question), reply), (problem,), Answer("exact", reply))


@kind("lists", 7)
def lists(rng: random.Random) -> Sample:
    """A list rewritten in one way, at times in a second way after that."""
    if rng.random() < 0.2:
        return _numbers_sorted(rng)
    pool = rng.choice(POOLS) if rng.random() < 0.7 else [w for pool in POOLS for w in pool]
    items = rng.sample(pool, rng.randint(3, MOST))
    maker = pick(rng, REWRITES)
    if maker is _dedupe:
        repeats = rng.randint(1, 3)
        items = items[: MOST + 1 - repeats]
        items += [rng.choice(items) for _ in range(repeats)]
        rng.shuffle(items)
    verb, lead, result, layout = maker(rng, items)
    question = _request(rng, FORMS, verb, _joined(items))
    reply = _reply(items, lead, result, layout)
    turns, keys = [roughen(rng, question, lower=False), reply], [key(f"list {lead}", *items)]
    while rng.random() < 0.25 and len(turns) < 6 and 2 < len(result) <= MOST and layout != "lines":
        verb, lead, after, layout = pick(rng, REWRITES)(rng, result)
        keys.append(key(f"list {lead}", *result))
        reply = _reply(result, lead, after, layout)
        turns += [_request(rng, AGAIN, verb, ""), reply]
        result = after
    return Sample(chat(*turns), tuple(keys), Answer("exact", reply))
