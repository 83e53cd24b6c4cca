"""Short stories, put together from many plots, places, things and sentences."""

import random

from .core import Sample, chat, key, kind, roughen, upper_first
from .plots import PLOTS
from .words import COLORS, HE, SHE, a

PLACES = (
    "village by the sea", "town in the hills", "city full of bridges", "farm near the forest",
    "valley of windmills", "house at the end of the road", "harbor town", "castle on a rock",
    "camp in the desert", "street of bakers", "island with one lighthouse", "cabin in the snow",
    "garden behind the school", "market by the river", "station where few trains stop",
    "tower above the clouds", "mill beside a stream", "quiet part of the city",
)  # fmt: skip
THINGS = (
    "lantern", "map", "key", "violin", "kite", "compass", "letter", "watch", "bell", "boat",
    "mirror", "book", "coin", "drum", "seed", "telescope", "painting", "music box", "blanket",
    "umbrella", "bicycle", "teapot", "feather", "puzzle", "hat", "notebook", "ring", "clock",
)  # fmt: skip
ANIMALS = (
    "fox", "owl", "bear", "rabbit", "mouse", "otter", "badger", "goose", "frog", "turtle", "crow",
    "hedgehog", "cat", "dog", "squirrel", "donkey",
)  # fmt: skip
TRAITS = (
    "curious", "brave", "quiet", "clever", "kind", "stubborn", "shy", "cheerful", "patient",
    "careful", "lonely", "honest", "young", "old", "tired", "gentle",
)  # fmt: skip
SKIES = (
    "The morning was clear and cold.", "Rain was falling on the roofs.",
    "Fog lay over everything.", "The sun had just come up.", "It was the first day of spring.",
    "Snow had fallen all night.", "The evening was warm and still.", "A strong wind was blowing.",
    "The leaves were turning red.", "There was not a cloud in the sky.",
    "Thunder rolled far away.", "The moon was bright and round.",
)  # fmt: skip
FEELINGS = (
    "happy", "proud", "calm", "surprised", "relieved", "grateful", "a little sad", "full of hope",
    "wide awake", "lighter than before",
)  # fmt: skip
STARTS = (
    "{N} was {who} who lived in {a_place}.",
    "In {a_place} there lived {who} named {n}.",
    "Once there was {who} called {n}, who lived in {a_place}.",
    "Everyone in the {place} knew {n}, {who}.",
    "Long ago, {who} named {n} came to {a_place}.",
    "{N}, {who}, had always lived in {a_place}.",
    "There was {who} in {a_place}, and {pos} name was {n}.",
    "Of all who lived in the {place}, nobody was like {n}, {who}.",
)
ENDS = (
    "That night {n} felt {feel}.",
    "From that day on, {n} was never bored again.",
    "{N} went home, {feel}, and slept until noon.",
    "And the {thing}? It still stands by the window.",
    "People in the {place} still tell this story.",
    "{N} looked at the sky and felt {feel}.",
    '"Tomorrow," said {o}, "we do it all again." {N} laughed.',
    "{N} kept the {thing} and remembered that day for a long time.",
    "Some days change very little. This one changed {n}.",
    "In the end, {n} and {o} walked home side by side.",
    "{N} wrote it all down, so that nobody would forget.",
    "After that, the {thing} always had a place of its own.",
)
ABOUT = (
    "Write a short story about {s}.",
    "Tell me a story about {s}.",
    "Can you write a story about {s}?",
    "I would like a story about {s}.",
    "Write a little tale about {s}.",
    "Please tell a short story about {s}.",
    "Make up a story about {s}.",
    "a story about {s}",
    "Tell a bedtime story about {s}.",
    "Give me a short story about {s}.",
    "story: {s}",
    "Could you invent a story about {s}?",
)
ANY = (
    "Tell me a story.",
    "Write a short story.",
    "Do you know a story?",
    "tell me something nice, a story",
    "I want to hear a story.",
    "Make up a story for me.",
    "Can you tell me a bedtime story?",
    "Write a story, any story.",
)
AGAIN = (
    "another one",
    "Tell me another story.",
    "one more, about {s}",
    "Now one about {s}.",
    "And a story about {s}?",
    "Another, please.",
)


def _story(rng: random.Random) -> tuple[list[str], str, str]:
    """Subjects to ask for, the story and its key."""
    she = rng.random() < 0.5
    n = rng.choice(SHE if she else HE)
    o = rng.choice([other for other in SHE + HE if other != n])
    trait, thing, place = rng.choice(TRAITS), rng.choice(THINGS), rng.choice(PLACES)
    animal = rng.choice(ANIMALS) if rng.random() < 0.4 else None
    color = rng.choice(COLORS)
    being = animal or rng.choice(("girl", "woman") if she else ("boy", "man"))
    plot = rng.choice(sorted(PLOTS))
    values = {
        "n": n, "N": n, "o": o, "trait": trait, "thing": thing, "place": place, "a_place": a(place),
        "who": f"{a(trait)} {being}", "feel": rng.choice(FEELINGS), "color": color,
        "a_thing": a(thing), "ac_thing": f"{a(color)} {thing}", "a_color": a(color), "O_": o,
        "she": "she" if she else "he", "She": "She" if she else "He",
        "pos": "her" if she else "his", "him": "her" if she else "him",
        "k": rng.choice(("three", "four", "five", "seven", "ten")),
    }  # fmt: skip
    parts = [rng.choice(STARTS)]
    if rng.random() < 0.5:
        parts.append(rng.choice(SKIES))
    parts += [rng.choice(stage) for stage in PLOTS[plot]]
    named = any("thing}" in part for part in parts)
    parts.append(rng.choice(ENDS if named else [end for end in ENDS if "{thing}" in end]))
    text = " ".join(part.format(**values) for part in parts)
    subjects = [
        f"{n} and {a(thing)}",
        f"{a(being)} and {a(thing)}",
        f"{a(trait)} {being} named {n}",
        f"{n} in {a(place)}",
        f"{a(being)} called {n} and {a(thing)}",
        f"{n}, {o} and {a(thing)}",
    ]
    if rng.random() < 0.5:
        text = f"{upper_first(rng.choice(('the', f'{n} and the')))} {upper_first(thing)}\n\n{text}"
    return subjects, text, key("story", plot, n, thing, place)


@kind("stories", 8)
def stories(rng: random.Random) -> Sample:
    """A story about given persons and things, or any story; at times a second one."""
    subjects, text, problem = _story(rng)
    form = rng.choice(ABOUT) if rng.random() < 0.85 else rng.choice(ANY)
    turns = [roughen(rng, form.format(s=rng.choice(subjects)), lower=False), text]
    keys = [problem]
    if rng.random() < 0.08:
        subjects, text, problem = _story(rng)
        turns += [roughen(rng, rng.choice(AGAIN).format(s=rng.choice(subjects)), lower=False), text]
        keys.append(problem)
    return Sample(chat(*turns), tuple(keys))
