"""Which ids may come next in an answer under a constraint.

Everything here depends on the ids of the answer alone, never on how they were drafted. So every
mode writes the same.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import ConstraintError
from .constraints import LEXER_FUEL, Constraint, described, library, readable

END = "<|end of the constrained answer|>"
TEXT = "/(.|\\n)*/"  # of thinking: anything but single-token tags, which text never matches


class Matcher:
    """Follows one answer through its grammar.

    An end token is allowed where the answer may end, and alone where nothing can follow. It is not
    followed: there is nothing behind it. Never is it part of the answer, even if it is an id of
    ordinary text.

    Args:
        matcher: llguidance's, which has one end of its own.
        end: the id of that, which no model writes.
        vocab_size: ids that the model has logits for.
        ends: ids that end an answer.

    Attributes:
        complete_behind: whether the answer may end behind each of the ids last followed.
    """

    def __init__(self, matcher: Any, end: int, vocab_size: int, ends: frozenset[int]):
        self.complete_behind = list[bool]()
        self._matcher, self._end, self.vocab_size, self.ends = matcher, end, vocab_size, ends
        self._spare: Any = None  # at the same place, to try drafts on; none while it moves
        self._check()

    def fork(self) -> Matcher:
        """A matcher of its own at the same place."""
        return Matcher(self._matcher.deep_copy(), self._end, self.vocab_size, self.ends)

    def check_rollback(self) -> None:
        """Refuse a grammar that cannot go back, as it must behind each draft.

        Raises:
            ConstraintError: saying what keeps it.
        """
        text = [int(token) for token in self.allowed_ids() if token not in self.ends][:1]
        trial = self.fork()
        if text and trial._matcher.consume_tokens(text):
            trial._matcher.rollback(1)
            trial._check()

    def advance(self, tokens: Sequence[int]) -> int:
        """Go on behind these ids of the answer.

        Returns:
            how many of them it followed: all, unless it has an `error` behind some.

        Raises:
            ConstraintError: if the grammar cannot follow the first of them.
        """
        text = [token for token in tokens if token not in self.ends]
        spare, self._spare, self.complete_behind = self._spare, None, []
        for n, token in enumerate(tokens):
            followed = token in self.ends or self._matcher.consume_token(token)
            if not followed and self._matcher.is_error():
                if not n:
                    self._check()
                return n
            self.complete_behind.append(bool(self._matcher.is_accepting()))
        if spare is not None and spare.consume_tokens(text):
            self._spare = spare
        return len(tokens)

    def allowed(self, drafts: Sequence[int]) -> np.ndarray:
        """What may come at the next place and behind each draft.

        Returns:
            int32 [1 + len(drafts), ceil(vocab_size / 32)]: one bit an id, lowest first. Behind a
            draft that is not allowed all ids are.
        """
        from llguidance import numpy as masks

        size = max(self.vocab_size, self._end + 1)
        bits = masks.allocate_token_bitmask(1 + len(drafts), size)
        if drafts:
            trial = self._trial()
            run = [(trial, 0, list(drafts))]
            masks.fill_next_token_bitmask_par_with_draft_tokens(_executor(), run, bits)
            if trial.is_error():  # behind one of the drafts: at the last, or before
                before = self.allowed(drafts[:-1])
                return np.concatenate([before, np.full_like(before[:1], -1)])
        else:
            masks.fill_next_token_bitmask(self._matcher, bits)
        self._check()
        words = bits.view(np.uint32)
        may_end = words[:, self._end // 32] >> (self._end % 32) & 1
        for token in (self._end, *self.ends):
            words[:, token // 32] &= ~np.uint32(1 << token % 32)
        for token in self.ends:
            words[:, token // 32] |= may_end << np.uint32(token % 32)
        return bits[:, : -(-self.vocab_size // 32)]

    def cut(self, drafts: Sequence[int]) -> list[int]:
        """The drafts up to the first that is not allowed."""
        ids = list(drafts)
        text = next((n for n, token in enumerate(ids) if token in self.ends), len(ids))
        fits = self._trial().validate_tokens(ids[:text])
        if fits == text < len(ids) and _has(self.allowed(ids[:text])[-1], ids[text]):
            fits += 1
        return ids[:fits]

    def forced(self, limit: int) -> list[int]:
        """The ids that must come next, at most `limit`."""
        return self._walk(limit, None)

    def guess(self, logits: np.ndarray) -> list[int]:
        """The likeliest ids that may come next.

        Args:
            logits: float32 [n, vocab_size] of consecutive places, the next one first.

        Returns:
            up to n ids: at each place the one that must come, or else the likeliest one allowed.
        """
        return self._walk(len(logits), logits)

    def _walk(self, limit: int, logits: np.ndarray | None) -> list[int]:
        found: list[int] = []
        walker = Matcher(self._trial(), self._end, self.vocab_size, self.ends)
        no_text, followed, self._spare = {*self.ends, self._end}, 0, None
        while len(found) < limit:
            # Several at once, where whole texts are forced: cheaper, and as the tokenizer splits.
            must = walker._matcher.compute_ff_tokens()[: limit - len(found)]
            ids = list(itertools.takewhile(lambda token: token not in no_text, must))
            try:
                if not ids:
                    row = None if logits is None else logits[len(found)]
                    ids = walker._only() if row is None else walker._likeliest(row)
            except ConstraintError:  # a dead end that plain decoding may never come to
                break
            if not ids:
                break
            found += ids
            if ids[-1] in self.ends or not walker._matcher.consume_tokens(ids):
                break
            followed = len(found)
        if not walker._matcher.is_error() and walker._matcher.rollback(followed):
            self._spare = walker._matcher
        return found

    def _trial(self) -> Any:
        """Another matcher to try drafts on: an error behind a draft is none of the answer.

        It follows the answer too: copies take the longer, the longer that is.
        """
        if self._spare is None or self._spare.is_error():
            self._spare = self._matcher.deep_copy()
        return self._spare

    def _only(self) -> list[int]:
        """The one id that may come next, if there is one."""
        ids = self.allowed_ids()
        return ids.tolist() if len(ids) == 1 else []

    def _likeliest(self, row: np.ndarray) -> list[int]:
        """The likeliest id that may come next; none where nothing may."""
        best = int(np.argmax(row))
        if _has(self.allowed(())[0], best):
            return [best]
        ids = self.allowed_ids()
        return [int(ids[row[ids].argmax()])] if len(ids) else []

    def allowed_ids(self) -> np.ndarray:
        """The ids that may come next."""
        octets = self.allowed(())[0].view(np.uint8)
        return np.flatnonzero(np.unpackbits(octets, count=self.vocab_size, bitorder="little"))

    @property
    def error(self) -> ConstraintError | None:
        """Why it cannot go on; None while it can."""
        if not self._matcher.is_error():
            return None
        problem = readable(self._matcher.get_error())
        if problem == "NoExtensionBias":
            problem = "this tokenizer cannot write what it asks for"
        return ConstraintError(f"The constraint cannot be followed: {problem}.")

    def _check(self) -> None:
        if (error := self.error) is not None:
            raise error


def _has(bits: np.ndarray, token: int) -> bool:
    """Whether a row of `Matcher.allowed` allows an id."""
    return bool(bits[token // 32] >> (token % 32) & 1)


@functools.cache
def _executor() -> Any:
    return library().LLExecutor(1)


def mask(logits: mx.array, bits: np.ndarray) -> mx.array:
    """`logits` [n, vocab_size] with -inf for ids that `bits` (see `Matcher.allowed`) leave out."""
    n, vocab_size = logits.shape
    octets = mx.array(bits.view(np.uint8))[:, :, None]
    allowed = ((octets >> mx.arange(8, dtype=mx.uint8)) & 1).reshape(n, -1)[:, :vocab_size]
    return mx.where(allowed.astype(mx.bool_), logits, mx.array(-mx.inf, logits.dtype))


def compile_constraint(
    constraint: Constraint,
    tokenizer: Any,
    vocab_size: int,
    ends: frozenset[int],
    before: Sequence[int],
    written: Sequence[int] = (),
) -> Matcher:
    """The matcher of an answer.

    Where the tokenizer has tags for thinking, the grammar has them too: one grammar from the first
    token on. Thinking is free text; the constraint holds behind it.

    Args:
        constraint: what the answer may be.
        tokenizer: mlx-lm's `TokenizerWrapper` of a fast tokenizer.
        vocab_size: ids that the model has logits for.
        ends: ids that end an answer.
        before: ids of the prompt. Thinking that it opened goes on; if it ends with closed thinking,
            there is none.
        written: ids of the answer that an earlier call wrote.

    Raises:
        ConstraintError: if the tokenizer cannot write what is asked for, or did not in `written`.
    """
    llguidance = library()
    ends = frozenset(token for token in ends if 0 <= token < vocab_size)
    if not ends:
        raise ConstraintError("A constraint needs an id that ends the answer; there is none.")
    vocabulary = _vocabulary(tokenizer, vocab_size)

    def tag(text: str) -> str:
        ids = vocabulary.tokenize_str(text, parse_special=True)
        return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)

    body = constraint.body(tag)
    thinking = _thinking(tokenizer, before, tag)
    if thinking:
        whole = [{"lark_grammar": f"start: {thinking} @body"}, {"name": "body", **body}]
    else:
        whole = [body]
    limits = llguidance.LLParserLimits(initial_lexer_fuel=LEXER_FUEL, verbose_errors=False)
    compiled = llguidance.LLMatcher(vocabulary, described(whole), log_level=0, limits=limits)
    matcher = Matcher(compiled, vocabulary.eos_token, vocab_size, ends)
    if len(matcher.allowed_ids()) == 0:
        raise ConstraintError("The constraint allows no answer that this tokenizer could write.")
    matcher.check_rollback()
    with suppress(ConstraintError):
        if matcher.advance(written) == len(written):
            return matcher
    raise ConstraintError("The answer begins with text that the constraint does not allow.")


def _thinking(tokenizer: Any, before: Sequence[int], tag: Any) -> str:
    """What stands before the answer: nothing, or thinking, as a grammar."""
    if not getattr(tokenizer, "has_thinking", False):
        return ""
    ids = list(before)
    opened, closed = tokenizer.rfind_think_start(ids), tokenizer.rfind_think_end(ids)
    rest = f'{TEXT} {tag(tokenizer.think_end)} "\\n\\n"'
    if opened > closed:
        return rest
    if closed >= 0 and not tokenizer.decode(ids[closed + 1 :]).strip():
        return ""
    return f"({tag(tokenizer.think_start)} {rest})?"


_vocabularies: weakref.WeakKeyDictionary[Any, dict[int, Any]] = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Any, vocab_size: int) -> Any:
    """Llguidance's view of a tokenizer, kept as long as that: a large one takes seconds.

    It has an end of its own, for any ends that an answer may have: where llguidance allows this
    one, the answer may end. An id of the tokenizer would not do: where text has that id too, there
    is no telling them apart.
    """
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    kept = _vocabularies.setdefault(inner, {})
    if vocab_size not in kept:
        try:
            kept[vocab_size] = _with_end(inner, vocab_size)
        except (AttributeError, ValueError) as error:
            raise ConstraintError(
                f"This tokenizer ({type(inner).__name__}) cannot be constrained: {error}."
            ) from None
    return kept[vocab_size]


def _with_end(tokenizer: Any, vocab_size: int) -> Any:
    backend = copy.copy(tokenizer.backend_tokenizer)  # a whole one
    backend.no_padding()
    backend.no_truncation()
    size = backend.get_vocab_size()
    if size > vocab_size:
        raise ValueError(f"it has {size:,} ids, and the model {vocab_size:,}")
    backend.add_special_tokens([END])
    end = backend.token_to_id(END)
    return library().LLTokenizer(backend.to_str(), n_vocab=max(vocab_size, end + 1), eos_token=end)
