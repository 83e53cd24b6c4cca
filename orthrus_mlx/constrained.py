"""What can be asked of a constraint and a model apart from an answer: is it ready, is it met?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .decoding.constraints import Constraint
from .decoding.grammar import Matcher, compile_constraint


def prepare_constraint(
    constraint: Constraint, model: Any, tokenizer: Any, before: Sequence[int] = ()
) -> Matcher:
    """The matcher of an answer behind the prompt `before`.

    What it needs of the tokenizer is made once and kept, which takes seconds for a vocabulary of
    150,000: the answer itself then starts at once.

    Raises:
        ConstraintError: if the tokenizer cannot write what is asked for.
    """
    ends = frozenset(int(token) for token in tokenizer.eos_token_ids)
    return compile_constraint(constraint, tokenizer, model.config.vocab_size, ends, before)


def is_whole(matcher: Matcher, answer: Sequence[int]) -> bool:
    """Whether an answer of these ids may end where it does."""
    behind = matcher.fork()
    behind.advance(answer)
    return not behind.ends.isdisjoint(behind.allowed_ids().tolist())
