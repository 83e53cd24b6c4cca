"""JSON objects from sentences."""

import json
import random
from collections.abc import Callable

from .core import Answer, Sample, chat, key, kind, roughen
from .words import (
    ANIMALS,
    CITIES,
    COLORS,
    COUNTRIES,
    DAYS,
    GOODS,
    HOBBIES,
    JOBS,
    MONTHS,
    SURNAMES,
    invent,
    listing,
    name,
    place,
)

Record = dict[str, object]
EVENTS = ("meeting", "party", "concert", "lesson", "match", "dinner", "trip", "wedding")
# What is asked before or after the sentence.
BEFORE = (
    "Make JSON from this: {s}",
    "Turn this into JSON: {s}",
    "Convert to JSON: {s}",
    "Write this as JSON: {s}",
    "JSON for: {s}",
    "Give me a JSON object for this sentence: {s}",
    "Extract the data as JSON: {s}",
    "Parse into JSON: {s}",
    "Please return JSON: {s}",
    "Can you write this as a JSON object? {s}",
    "Represent this as JSON: {s}",
    "{s} Give me that as JSON.",
    "{s} As JSON, please.",
    "{s} Turn it into JSON.",
    "{s} Write this as JSON.",
    "to json: {s}",
)


def _full_name(rng: random.Random) -> str:
    last = invent(rng) if rng.random() < 0.15 else rng.choice(SURNAMES)
    return f"{name(rng)} {last}" if rng.random() < 0.4 else name(rng)


def _person(rng: random.Random) -> tuple[Record, list[str]]:
    r: Record = {"name": _full_name(rng), "age": rng.randint(3, 95), "city": place(rng)}
    w, a, c = r.values()
    return r, [
        f"{w} is {a} years old and lives in {c}.",
        f"{w}, aged {a}, lives in {c}.",
        f"{w} is {a} and comes from {c}.",
        f"My friend {w} from {c} is {a} years old.",
        f"Name {w}, age {a}, city {c}.",
        f"{w} lives in {c} and is {a} years old.",
    ]


def _job(rng: random.Random) -> tuple[Record, list[str]]:
    r: Record = {"name": _full_name(rng), "job": rng.choice(JOBS), "city": place(rng)}
    w, j, c = r.values()
    return r, [
        f"{w} is a {j} in {c}.",
        f"{w} works as a {j} in {c}.",
        f"{w} from {c} is a {j}.",
        f"In {c}, {w} works as a {j}.",
        f"{w}, a {j}, lives in {c}.",
    ]


def _product(rng: random.Random) -> tuple[Record, list[str]]:
    price: float = rng.randint(1, 99)
    if rng.random() < 0.4:
        price += rng.choice((0.25, 0.5, 0.75, 0.99))
    good = rng.choice(GOODS)
    r: Record = {"item": good[0], "price": price, "quantity": rng.randint(1, 60)}
    q = r["quantity"]
    shown = f"${price:.2f}" if isinstance(price, float) else f"${price}"
    many = good[0] if q == 1 else good[1]
    return r, [
        f"We have {q} {many} at {shown} each.",
        f"{q} {many} at {shown} each.",
        f"The shop sells {q} {many} for {shown} each.",
        f"Order {q} {many} at {shown}.",
        f"Each {good[0]} costs {shown} and there {'is' if q == 1 else 'are'} {q}.",
    ]


def _event(rng: random.Random) -> tuple[Record, list[str]]:
    event = rng.choice(EVENTS)
    r: Record = {
        "event": event,
        "day": rng.choice(DAYS),
        "time": f"{rng.randint(7, 22)}:{rng.choice(('00', '15', '30', '45'))}",
        "place": place(rng),
    }
    e, d, t, p = r.values()
    return r, [
        f"The {e} is on {d} at {t} in {p}.",
        f"There is a {e} in {p} on {d} at {t}.",
        f"On {d} at {t} we have a {e} in {p}.",
        f"The {e} in {p} starts at {t} on {d}.",
        f"{d}, {t}: {e} in {p}.",
    ]


def _pet(rng: random.Random) -> tuple[Record, list[str]]:
    r: Record = {
        "name": name(rng),
        "animal": rng.choice(ANIMALS),
        "color": rng.choice(COLORS),
        "age": rng.randint(2, 20),
    }
    n, k, c, a = r.values()
    return r, [
        f"{n} is a {c} {k}, {a} years old.".replace(" a orange", " an orange"),
        f"The {c} {k} {n} is {a} years old.",
        f"My {c} {k} is called {n} and is {a} years old.",
        f"We have a {a} year old {c} {k} named {n}.".replace("a 8 y", "an 8 y")
        .replace("a 11 y", "an 11 y")
        .replace("a 18 y", "an 18 y"),
    ]


def _date(rng: random.Random) -> tuple[Record, list[str]]:
    r: Record = {
        "name": _full_name(rng),
        "day": rng.randint(1, 28),
        "month": rng.choice(MONTHS),
        "year": rng.randint(1920, 2024),
    }
    n, d, m, y = r.values()
    return r, [
        f"{n} was born on {d} {m} {y}.",
        f"{n} was born on {m} {d}, {y}.",
        f"The birthday of {n} is {d} {m} {y}.",
        f"Born on {m} {d}, {y}: {n}.",
    ]


def _hobbies(rng: random.Random) -> tuple[Record, list[str]]:
    hobbies = rng.sample(HOBBIES, rng.randint(2, 4))
    r: Record = {"name": _full_name(rng), "hobbies": hobbies}
    n, text = r["name"], listing(hobbies)
    return r, [
        f"{n} likes {text}.",
        f"{n} enjoys {text}.",
        f"The hobbies of {n} are {text}.",
        f"{n} has these hobbies: {text}.",
    ]


def _order(rng: random.Random) -> tuple[Record, list[str]]:
    good = rng.choice(GOODS)
    n, paid = rng.randint(2, 40), rng.random() < 0.5
    r: Record = {"customer": _full_name(rng), "item": good[0], "quantity": n, "paid": paid}
    c = r["customer"]
    state = "has paid" if paid else "has not paid"
    return r, [
        f"{c} ordered {n} {good[1]} and {state}.",
        f"{c} bought {n} {good[1]} and {state} yet."
        if not paid
        else f"{c} bought {n} {good[1]} and {state}.",
        f"Order from {c}: {n} {good[1]}, {'paid' if paid else 'not paid'}.",
        f"{c} wants {n} {good[1]} and {state}.",
    ]


def _travel(rng: random.Random) -> tuple[Record, list[str]]:
    start, end = place(rng), place(rng)
    r: Record = {"from": start, "to": end, "day": rng.choice(DAYS), "price": rng.randint(9, 900)}
    d, p = r["day"], r["price"]
    return r, [
        f"A ticket from {start} to {end} on {d} costs ${p}.",
        f"On {d} the train from {start} to {end} is ${p}.",
        f"I fly from {start} to {end} on {d} for ${p}.",
        f"{start} to {end}, {d}, ${p}.",
    ]


RECORDS: tuple[Callable[[random.Random], tuple[Record, list[str]]], ...] = (
    _person,
    _job,
    _product,
    _event,
    _pet,
    _date,
    _hobbies,
    _order,
    _travel,
)


def _edit(rng: random.Random, record: Record) -> tuple[str, Record] | None:
    choice = rng.randrange(4)
    if choice == 0 and "age" in record:
        age = rng.randint(3, 95)
        forms = (f"set the age to {age}", f"Change the age to {age}.", f"Make the age {age}.")
        return rng.choice(forms), record | {"age": age}
    if choice == 1 and "country" not in record and ("city" in record or "place" in record):
        country = rng.choice(COUNTRIES)
        forms = (
            f"add the country {country}",
            f"Add country: {country}.",
            f"And add {country} as the country.",
        )
        return rng.choice(forms), record | {"country": country}
    if choice == 2 and len(record) > 2:
        gone = rng.choice(list(record)[1:])
        forms = (f"remove the {gone}", f"Delete the {gone}.", f"now without the {gone}")
        return rng.choice(forms), {k: v for k, v in record.items() if k != gone}
    for field in ("city", "place"):
        if choice == 3 and field in record:
            city = rng.choice(CITIES)
            forms = (f"set the {field} to {city}", f"Change the {field} to {city}.")
            return rng.choice(forms), record | {field: city}
    return None


@kind("json", 6)
def records(rng: random.Random) -> Sample:
    """A JSON object from a sentence, at times edited, indented or a list of two."""
    maker = rng.choice(RECORDS)
    record, texts = maker(rng)
    sentence = rng.choice(texts)
    value: object = record
    if rng.random() < 0.12:
        other, texts = maker(rng)
        sentence, value = f"{sentence} {rng.choice(texts)}", [record, other]
    question = roughen(rng, rng.choice(BEFORE).format(s=sentence), lower=False)
    reply = json.dumps(value)
    turns, keys = [question, reply], [key("json", reply)]
    while isinstance(value, dict) and len(turns) < 6 and rng.random() < 0.3:
        edit = _edit(rng, value)
        if edit is None:
            continue
        request, value = edit
        reply = json.dumps(value)
        turns += [roughen(rng, request, lower=False), reply]
        keys.append(key("json_edit", request, reply))
    if rng.random() < 0.12:
        reply = json.dumps(value, indent=2)
        request = rng.choice(("Indent it.", "pretty print it", "Format it nicely.", "with indents"))
        turns += [request, reply]
        keys.append(key("json_indent", reply))
    return Sample(chat(*turns), tuple(keys), Answer("json", reply))
