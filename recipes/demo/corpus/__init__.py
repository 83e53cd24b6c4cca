"""The synthetic corpus: a small world of conversations, written by seeded templates."""

from . import (  # noqa: F401  (each module registers its kinds)
    arithmetic,
    code,
    geometry,
    letters,
    lists,
    measures,
    money,
    numbers,
    problems,
    records,
    smalltalk,
    stories,
    tables,
    terms,
)
from .core import KINDS, Answer, Kind, Message, Sample, held_out, judge
from .generate import Question, conversation, evaluation, training, write

__all__ = [
    "KINDS",
    "Answer",
    "Kind",
    "Message",
    "Question",
    "Sample",
    "conversation",
    "evaluation",
    "held_out",
    "judge",
    "training",
    "write",
]
