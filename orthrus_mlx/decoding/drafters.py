"""Who proposes drafts, apart from a draft pass of the diffusion view.

A draft is only a guess at the AR view's choice: whatever a drafter proposes, the ids stay the same.
A drafter reads the text that is written so far, costs no forward pass, and names its source, by
which the scheduler learns how often its drafts are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Many

from .plan import COPY, DIFFUSION, FORCED, PREDICTION
from .sequence import Sequence


class BlockDrafter:
    """What the blocks of the last pass guessed beyond the tokens that it decided."""

    source = DIFFUSION

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """What the last cycle left over."""
        if sequence.last is None or sequence.in_flight is not None:
            return []
        rest = sequence.last.left_over(sequence.accepted)
        if sequence.grammar is None or rest.logits is None:
            return rest.ids[:limit]
        return sequence.grammar.guess(rest.logits[:limit])


class ForcedDrafter:
    """What the grammar says must come next. Whatever the model, most of it is accepted.

    Not all: a text that must come can be split into tokens in several ways.
    """

    source = FORCED

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """The ids that must come next."""
        return [] if sequence.grammar is None else sequence.grammar.forced(limit)


class PredictionDrafter:
    """A text that the caller expects the answer to be, or to be much like."""

    source = PREDICTION
    SHORTEST = 2  # ids that must match where the answer went another way

    def __init__(self, prediction: Many[int]) -> None:
        self._prediction = list(prediction)
        self._index = SuffixIndex(self.SHORTEST)
        self._index.read(self._prediction, len(self._prediction))
        self._place = 0  # in the prediction, behind the ids that were last found there
        self._seen = 0  # ids of the answer at that time

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """The prediction from the place on that the answer has come to."""
        text, ids = sequence.text, self._prediction
        new = text[sequence.start + self._seen :]
        if ids[self._place : self._place + len(new)] == new:
            self._place += len(new)
        else:
            # Of several places the one next to where the answer was.
            near = self._place + len(new)
            said = text[max(sequence.start, len(text) - SuffixIndex.LONGEST) :]
            ends = dict(self._index.matches(ids, said))
            if not ends:
                return []
            self._place = max(ends, key=lambda end: (ends[end], -abs(end - near), -end))
        self._seen = len(text) - sequence.start
        return ids[self._place : self._place + limit]


class CopyDrafter:
    """What followed where the text had the longest suffix that it ends with now.

    Texts repeat their prompts: edits of code, records of one shape, summaries. The idea is prompt
    lookup decoding's.
    """

    source = COPY
    SHORTEST = 4  # ids that must match: shorter repetitions are chance

    def __init__(self) -> None:
        self._index = SuffixIndex(self.SHORTEST)

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """What followed the longest match, the latest of equally long ones."""
        text = sequence.text
        self._index.read(text, len(text) - 1)  # its end is what is looked for
        best, longest = len(text), 0
        for end, length in self._index.matches(text, text):
            if length > longest:
                best, longest = end, length
            if longest == SuffixIndex.LONGEST:
                break
        return text[best : best + limit]


class SuffixIndex:
    """Where a text has what another one ends with: an index of its n-grams of `shortest` ids."""

    LONGEST = 32  # ids by which matches are compared
    CANDIDATES = 16  # the last places of an n-gram that are compared

    def __init__(self, shortest: int) -> None:
        self._shortest = shortest
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where each n-gram ended, in order
        self._read = 0  # ids of the text that are in the index

    def read(self, text: Many[int], length: int) -> None:
        """Take in the first `length` ids of a text that has only grown since the last time."""
        for end in range(max(self._read + 1, self._shortest), length + 1):
            self._ends.setdefault(tuple(text[end - self._shortest : end]), []).append(end)
        self._read = max(self._read, length)

    def matches(self, text: Many[int], said: Many[int]) -> Iterator[tuple[int, int]]:
        """Ends of places in the text that equal the end of `said`, and by how many ids.

        The latest come first.
        """
        ends = self._ends.get(tuple(said[-self._shortest :]), [])[-self.CANDIDATES :]
        tail = said[-self.LONGEST :]
        return ((end, self._match(text, end, tail)) for end in reversed(ends))

    def _match(self, text: Many[int], end: int, said: Many[int]) -> int:
        most = min(end, len(said))
        if text[end - most : end] == said[-most:]:
            return most
        return next((n for n in range(most) if text[end - 1 - n] != said[-1 - n]), most)
