"""Who proposes drafts, apart from a draft pass of the diffusion view.

A draft is only a guess at the AR view's choice: whatever a drafter proposes, the ids stay the same.
A drafter reads the text that is written so far, costs no forward pass, and names its source, by
which the scheduler learns how often its drafts are accepted.
"""

from __future__ import annotations

from .plan import DIFFUSION
from .sequence import Sequence


class BlockDrafter:
    """What the blocks of the last pass guessed beyond the tokens that it decided."""

    source = DIFFUSION

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """What the last cycle left over."""
        if sequence.last is None or sequence.in_flight is not None:
            return []
        guesses, _ = sequence.last.left_over(sequence.accepted)
        return guesses[:limit]


class CopyDrafter:
    """What followed where the text had the longest suffix that it ends with now.

    Texts repeat their prompts: edits of code, records of one shape, summaries. The idea is prompt
    lookup decoding's; the search is an index of all n-grams of `SHORTEST` ids.
    """

    source = "copy"
    SHORTEST = 4  # ids that must match: shorter repetitions are chance
    LONGEST = 32  # ids by which matches are compared
    CANDIDATES = 16  # the last places of an n-gram that are compared

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where each n-gram ended, in order
        self._indexed = 0  # ids of the text that are in the index

    def propose(self, sequence: Sequence, limit: int) -> list[int]:
        """What followed the longest match, the latest of equally long ones."""
        text = sequence.text
        # The n-gram at the very end is what is looked up: it enters the index with the next id.
        for end in range(max(self._indexed, self.SHORTEST), len(text)):
            self._ends.setdefault(tuple(text[end - self.SHORTEST : end]), []).append(end)
        self._indexed = max(self._indexed, len(text))
        ends = self._ends.get(tuple(text[-self.SHORTEST :]), [])[-self.CANDIDATES :]
        if not ends or limit < 1:
            return []
        end = max(ends, key=lambda end: (self._match(text, end), end))
        return text[end : end + limit]

    def _match(self, text: list[int], end: int) -> int:
        """How many ids before `end` equal those at the end of the text."""
        most = min(end, self.LONGEST)
        last = len(text)
        return next(
            (n for n in range(self.SHORTEST, most) if text[end - 1 - n] != text[last - 1 - n]), most
        )
