"""Names, things and places that the templates are filled with."""
# ruff: noqa: SIM905

import random

SHE = (
    "Anna Mia Nora Ella Zoe Ruby Maya Lena Iris Clara Sofia Amara Yuki Leila Hana Rosa Ingrid "
    "Tess Priya Carmen Alice Dora Freya Gina Holly Julia Kate Laura Olive Wendy"
).split()
HE = (
    "Ben Tom Omar Leo Max Ivan Hugo Sam Noah Finn Raj Kofi Mateo Jonas Eli Oscar Felix Victor "
    "Diego Arlo Adam Carl David Emil Frank George Henry Jack Peter Simon"
).split()
NAMES = SHE + HE
SURNAMES = (
    "Reed Cole Hart Lane Moss Park Stone West Young Black Fox Grant Hill King Marsh Novak Okoye "
    "Silva Tanaka Weber Rossi Khan Berg Quinn"
).split()
CITIES = (
    "Oslo Lima Cairo Rome Paris Kyoto Delhi Accra Quito Berlin Madrid Dublin Boston Austin "
    "Geneva Lisbon Prague Vienna Warsaw Zurich Toronto Nairobi Hanoi Seoul Athens Bergen"
).split()
COUNTRIES = (
    "Norway Peru Egypt Italy France Japan India Ghana Spain Ireland Canada Kenya Vietnam Greece "
    "Chile Poland Austria Portugal"
).split()
COLORS = "red blue green yellow orange purple brown black white pink gray gold silver".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
HOBBIES = (
    "chess tennis painting reading cooking running hiking swimming music dancing gardening "
    "cycling photography drawing knitting football"
).split()
JOBS = (
    "teacher doctor baker driver pilot nurse farmer painter writer singer lawyer cook gardener "
    "mechanic librarian carpenter"
).split()
FRUITS = (
    "apple pear plum peach cherry banana lemon lime mango grape melon fig kiwi orange apricot "
    "papaya coconut berry date olive"
).split()
ANIMALS = (
    "cat dog fox owl bear wolf horse rabbit mouse lion tiger goat sheep cow duck goose frog "
    "turtle whale eagle hawk otter badger zebra camel"
).split()
TOOLS = (
    "hammer saw drill rope ladder nail screw wrench shovel bucket brush lamp knife tape chisel"
).split()
FOODS = "bread cheese milk rice soup pasta salad honey butter sugar salt tea coffee egg".split()


def _with_plurals(words: str) -> tuple[tuple[str, str], ...]:
    """Words with their plurals: "leaf/leaves", or "pear" where the plural only adds an s."""
    pairs = (word.partition("/") for word in words.split())
    return tuple((one, many or f"{one}s") for one, _, many in pairs)


# Things that can be counted.
ITEMS = _with_plurals(
    "apple pear orange cookie marble sticker book pencil coin shell stamp card flower egg "
    "candle balloon button cherry/cherries toy ticket peach/peaches muffin stone bead lemon "
    "postcard tomato/tomatoes brush/brushes photo leaf/leaves box/boxes chair cup bottle "
    "plate key"
)
# Things with a price.
GOODS = _with_plurals(
    "notebook pen book mug lamp chair shirt hat scarf/scarves ball ticket poster plant toy "
    "game sandwich/sandwiches pizza bag brush/brushes kite umbrella orange basket candle "
    "radio clock"
)

_ONSETS = "b c d f g h j k l m n p r s t v w z br ch dr gr kr st tr th".split()
_VOWELS = "a e i o u ia oo ea".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "nd", "th"]


def a(word: str) -> str:
    """The word with its indefinite article."""
    return f"{'an' if word[0].lower() in 'aeio' or word.startswith('um') else 'a'} {word}"


def count(number: int, item: tuple[str, str]) -> str:
    """A number of things: "1 apple", "3 apples"."""
    return f"{number} {item[0] if number == 1 else item[1]}"


def listing(words: list[str]) -> str:
    """Words joined by commas and a last "and"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def invent(rng: random.Random) -> str:
    """A made-up name, so that copying is learned and not a list of names."""
    syllables = rng.randint(1, 3)
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return (word + rng.choice(_CODAS)).capitalize()


def name(rng: random.Random) -> str:
    """A first name, now and then a made-up one."""
    return invent(rng) if rng.random() < 0.12 else rng.choice(NAMES)


def place(rng: random.Random) -> str:
    """A city, now and then a made-up one."""
    return invent(rng) if rng.random() < 0.12 else rng.choice(CITIES)


def two_names(rng: random.Random) -> tuple[str, str]:
    """Two different first names."""
    first = name(rng)
    while (second := name(rng)) == first:
        pass
    return first, second


def person(rng: random.Random) -> tuple[str, str, str, str]:
    """A first name with its pronouns: name, she, her (possessive), her (object)."""
    if rng.random() < 0.5:
        return rng.choice(SHE), "she", "her", "her"
    return rng.choice(HE), "he", "his", "him"


def number(rng: random.Random, digits: int) -> int:
    """A number of at most so many digits, each count of digits equally likely."""
    size = rng.randint(1, digits)
    return rng.randint(1 if size == 1 else 10 ** (size - 1), 10**size - 1)
