"""Letters and short messages: thanks, invitations, apologies, requests, news."""
# ruff: noqa: E501

import random
from collections.abc import Callable

from .core import Sample, chat, key, kind, roughen
from .words import CITIES, DAYS, NAMES, a

# The wish as in "write a letter ...", the body's paragraphs, the key's values.
Letter = tuple[str, list[str], str]

GIFTS = (
    "book", "scarf", "plant", "mug", "lamp", "painting", "game", "clock", "basket of fruit", "puzzle",
    "box of tea", "kite", "radio", "cake",
)  # fmt: skip
EVENTS = (
    "birthday party", "dinner", "picnic", "concert", "game night", "housewarming party",
    "book evening", "barbecue", "wedding", "farewell party",
)  # fmt: skip
GREETINGS = ("Dear {to},", "Hello {to},", "Hi {to},", "Dear {to},")
CLOSINGS = (
    "Best wishes,", "Kind regards,", "Yours,", "With love,", "See you soon,", "Warm regards,",
    "All the best,",
)  # fmt: skip
ASK = (
    "Write a letter {w}.",
    "Write a short letter {w}.",
    "Can you write a letter {w}?",
    "Please write a letter {w}.",
    "I need a letter {w}.",
    "Write an email {w}.",
    "Help me write a letter {w}.",
    "Write a message {w}.",
    "Could you write a note {w}?",
    "a letter {w}",
    "Draft a letter {w}.",
    "Write me a friendly letter {w}.",
)
SIGNED = (" Sign it {me}.", " My name is {me}.", " It is from {me}.", " Sign as {me}.")


def _one(rng: random.Random, *forms: str) -> str:
    return rng.choice(forms)


def _thanks(rng: random.Random, to: str) -> Letter:
    gift = rng.choice(GIFTS)
    body = [
        _one(rng, f"thank you so much for the {gift}!", f"many thanks for the beautiful {gift}.",
             f"what a surprise! The {gift} arrived today.", f"I was so happy about the {gift}."),
        _one(rng, "It is just what I needed.", "I did not expect it at all.",
             "I use it every day.", "It has found the best place in my room.",
             "You always know what I like.", "My whole family admires it."),
        _one(rng, "I hope that we can meet soon, so that I can thank you in person.",
             "You made my week.", "Please come and visit me soon.",
             "I will think of you whenever I see it.", "Next time the coffee is on me."),
    ]  # fmt: skip
    return f"to thank {to} for {a(gift)}", body, f"thanks {gift}"


def _invitation(rng: random.Random, to: str) -> Letter:
    event, day, city = rng.choice(EVENTS), rng.choice(DAYS), rng.choice(CITIES)
    hour = rng.randint(3, 8)
    body = [
        _one(rng, f"I would like to invite you to {a(event)} on {day}.",
             f"on {day} I am giving {a(event)}, and I would love to see you there.",
             f"would you like to come to {a(event)} on {day}?",
             f"please come to my {event} on {day}!"),
        _one(rng, f"It starts at {hour} pm in {city}.", f"We meet in {city} at {hour} pm.",
             f"The place is in {city}, and we begin at {hour} pm.",
             f"Be in {city} by {hour} pm, if you can."),
        _one(rng, "There will be music, good food and old friends.",
             "You do not need to bring anything.", "Bring a friend if you like.",
             "If it rains, we will stay inside.", "I am baking two cakes."),
        _one(rng, "Please tell me if you can come.", "I hope to see you there.",
             "Let me know by the end of the week.", "It would not be the same without you."),
    ]  # fmt: skip
    return f"to invite {to} to {a(event)} on {day} in {city}", body, f"invite {event} {day} {city}"


def _apology(rng: random.Random, to: str) -> Letter:
    did, wish = rng.choice(
        (
            ("forgot your birthday", "forgetting a birthday"),
            ("missed our meeting", "missing a meeting"),
            ("came late", "coming late"),
            ("broke your cup", "breaking a cup"),
            ("did not call back", "not calling back"),
            ("lost your book", "losing a book"),
            ("was so impatient", "being impatient"),
            ("could not come to your party", "not coming to the party"),
        )
    )
    body = [
        _one(rng, f"I am sorry that I {did}.", f"I want to say sorry. I {did}.",
             f"please forgive me. I {did}, and I feel bad about it.",
             f"I owe you an apology, because I {did}."),
        _one(rng, "It was a very full week, but that is no excuse.",
             "There was no good reason, and I know it.", "I should have thought of you.",
             "I was careless, and it will not happen again.", "I had it in my calendar on the wrong day."),
        _one(rng, "May I invite you to dinner to make up for it?",
             "I would like to make it up to you this weekend.", "I hope that you are not too angry.",
             "Tell me how I can put it right.", "Next time I will do better."),
    ]  # fmt: skip
    return f"to say sorry to {to} for {wish}", body, f"sorry {wish}"


def _day_off(rng: random.Random, to: str) -> Letter:
    day = rng.choice(DAYS[:5])
    reason, wish = rng.choice(
        (
            ("I am moving to a new flat", "moving house"),
            ("I have an appointment with the doctor", "a doctor's appointment"),
            ("my sister is getting married", "a wedding"),
            ("my parents are visiting me", "a family visit"),
            ("I have an exam", "an exam"),
            ("my son starts school", "the first day of school"),
        )
    )
    body = [
        _one(rng, f"I would like to ask for a day off on {day}.",
             f"may I take {day} off?", f"I am writing to ask for a free day on {day}.",
             f"I would need {day} off, if possible."),
        _one(rng, f"The reason is that {reason}.", f"On that day {reason}.",
             f"I ask because {reason}."),
        _one(rng, "My work for that day will be done in advance.",
             "A colleague has agreed to take my place.", "I can work longer on the other days.",
             "Nothing urgent is planned for that day."),
        _one(rng, "Thank you for your understanding.", "Please let me know if this is possible.",
             "Thank you for your answer."),
    ]  # fmt: skip
    return f"to ask {to} for a day off on {day} because of {wish}", body, f"off {day} {wish}"


def _complaint(rng: random.Random, to: str) -> Letter:
    thing = rng.choice(("lamp", "chair", "radio", "bag", "clock", "shirt", "umbrella", "kettle"))
    fault = rng.choice(("is broken", "has a crack", "does not work", "has the wrong color",
                        "is too small", "arrived dirty"))  # fmt: skip
    days = rng.randint(2, 14)
    body = [
        _one(rng, f"{days} days ago I bought {a(thing)} from you.",
             f"I received the {thing} that I had ordered {days} days ago.",
             f"I am writing about the {thing} that I bought {days} days ago."),
        _one(rng, f"Sadly, it {fault}.", f"When I opened the box, I saw that it {fault}.",
             f"I am not happy with it, because it {fault}."),
        _one(rng, "Please send me a new one.", "I would like my money back.",
             "Could you exchange it?", "Please tell me how to return it."),
        _one(rng, "I have kept the receipt.", "I look forward to your answer.",
             "Until now I was always pleased with your shop.", "Thank you for your help."),
    ]  # fmt: skip
    return f"to {to} because {a(thing)} {fault}", body, f"complaint {thing} {fault}"


def _congratulation(rng: random.Random, to: str) -> Letter:
    what, wish = rng.choice(
        (
            ("your new job", "a new job"),
            ("your wedding", "a wedding"),
            ("your exam", "passing an exam"),
            ("your new house", "a new house"),
            ("your birthday", "a birthday"),
            ("winning the race", "winning a race"),
            ("your first book", "a first book"),
            ("the birth of your daughter", "the birth of a daughter"),
        )
    )
    body = [
        _one(rng, f"congratulations on {what}!", f"I just heard about {what}. Congratulations!",
             f"all my best wishes on {what}!"),
        _one(rng, "You have worked so hard for this.", "I was smiling all day when I heard it.",
             "Nobody deserves it more than you.", "I always knew it."),
        _one(rng, "I wish you much luck and joy.", "Let us celebrate soon.",
             "I hope that the coming year is full of good days.", "Tell me all about it when we meet."),
    ]  # fmt: skip
    return f"to congratulate {to} on {wish}", body, f"congratulate {wish}"


def _news(rng: random.Random, to: str) -> Letter:
    city, weeks = rng.choice(CITIES), rng.randint(2, 9)
    body = [
        _one(rng, f"I have been in {city} for {weeks} weeks now.", f"greetings from {city}!",
             f"you will not believe it: I am in {city}!"),
        _one(rng, "The streets are narrow and full of cats.", "Every morning I walk to the water.",
             "It rains a lot, but I do not mind.", "My room is small and has a view of a church.",
             "The bread here is better than at home."),
        _one(rng, "Yesterday I got lost and found the best café in town.",
             "On Sunday I climbed a tower with 300 steps.", "I have learned ten words of the language.",
             "My neighbor plays the violin at night.", "I am reading the book that you gave me."),
        _one(rng, "How are you, and how is your family?", "When will you visit me?",
             "Write soon!", "I miss our long talks."),
    ]  # fmt: skip
    return f"to {to} with news from {city}", body, f"news {city}"


def _cancel(rng: random.Random, to: str) -> Letter:
    day = rng.choice(DAYS)
    new = rng.choice([other for other in DAYS if other != day])
    body = [
        _one(rng, f"I am sorry, but I cannot come to our meeting on {day}.",
             f"unfortunately I have to cancel our meeting on {day}.",
             f"something came up, so {day} does not work for me."),
        _one(rng, "I have caught a cold.", "My train was canceled.", "I have to look after my niece.",
             "A pipe has burst in my kitchen.", "I must finish a report."),
        _one(rng, f"Could we meet on {new} instead?", f"How about {new}?",
             f"Would {new} suit you?"),
        _one(rng, "Sorry for the trouble.", "Thank you for your patience.", "I hope that is all right."),
    ]  # fmt: skip
    return f"to {to} to move the meeting from {day} to {new}", body, f"cancel {day} {new}"


LETTERS: tuple[Callable[[random.Random, str], Letter], ...] = (
    _thanks,
    _invitation,
    _apology,
    _day_off,
    _complaint,
    _congratulation,
    _news,
    _cancel,
)


@kind("letters", 6)
def letters(rng: random.Random) -> Sample:
    """A letter to somebody about something, signed if a name was given."""
    maker = rng.choice(LETTERS)
    to, me = rng.sample(NAMES, 2)
    if maker is _complaint:
        to = rng.choice(("the shop", "the store", "the company"))
    wish, body, problem = maker(rng, to)
    question = rng.choice(ASK).format(w=wish)
    signed = rng.random() < 0.6
    if signed:
        if question[-1] not in ".?!":
            question += "."
        question += rng.choice(SIGNED).format(me=me)
    greeting = rng.choice(GREETINGS).format(to=to)
    if maker is _complaint:
        greeting = rng.choice(("Dear Sir or Madam,", "Hello,", "Dear team,"))
    text = body[0][0].upper() + body[0][1:]
    text += rng.choice((" ", "\n\n")) + " ".join(body[1:])
    reply = f"{greeting}\n\n{text}\n\n{rng.choice(CLOSINGS)}\n{me if signed else '[Your name]'}"
    return Sample(
        chat(roughen(rng, question, lower=False), reply), (key("letter", problem, to, me),)
    )
