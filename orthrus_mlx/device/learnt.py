"""What drafts have shown of a model's texts, kept on disk with its measurements.

A new text begins with it, for the weight of a few drafts: see `Evidence.of_another_text`.
"""

from __future__ import annotations

import math
from typing import Any

from ..decoding.scheduler import Evidence
from .measured import device_key, load, store

METHOD = 1  # to be raised with any change in what is counted: what is on disk is void then
MOST = 1e6  # no count comes near it


class Learnt:
    """The evidence of one model."""

    def __init__(self, model: Any):
        self._key = [device_key(model), METHOD]

    def evidence(self) -> Evidence:
        """What a new text begins with."""
        found = load("evidence", self._key, _decode)
        return Evidence() if found is None else found.of_another_text()

    def begin(self, evidence: Evidence) -> None:
        """Start evidence that is empty with what earlier texts showed."""
        if evidence == Evidence():
            vars(evidence).update(vars(self.evidence()))

    def keep(self, evidence: Evidence) -> None:
        """Begin the next text with this."""
        store("evidence", self._key, evidence.of_another_text(), vars)


def _decode(raw: Any) -> Evidence:
    counts = {str(source): _pair(pair) for source, pair in raw["counts"].items()}
    if any(rejected > tried for rejected, tried in counts.values()):
        raise ValueError("more drafts rejected than tried")
    return Evidence(counts, _checked(raw["credit"]), _pair(raw["doubts"]))


def _pair(raw: Any) -> tuple[float, float]:
    first, second = raw
    return _checked(first), _checked(second)


def _checked(raw: Any) -> float:
    value = float(raw)
    if not (math.isfinite(value) and 0 <= value < MOST):
        raise ValueError(f"{value} counts nothing")
    return value
