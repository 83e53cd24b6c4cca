"""Strings that end an answer."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, holding back what may become one.

    Attributes:
        found: whether a stop string came.
        which: the one that did.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found, self.which = False, ""

    def feed(self, text: str) -> str:
        """The part of everything fed so far that is safe to show and was not shown yet."""
        if self.found:
            return ""
        self.held += text
        starts = [(at, stop) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if starts:
            at, self.which = min(starts)
            self.found = True
            shown, self.held = self.held[:at], ""
            return shown
        keep = max((overlap(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        shown, self.held = self.held, ""
        return shown


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` could begin `tag`."""
    longest = min(len(tag) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
