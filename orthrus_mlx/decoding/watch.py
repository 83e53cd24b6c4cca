"""Whether the time that cycles take contradicts what costs say of them.

It changes the plan of no cycle, so a run repeats exactly. What an answer contradicts is dropped
once it is written.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from .cost_model import Costs, plan_cost
from .sequence import Sequence

# Cycles that draft, of which a median is taken: a stall or two among so many do not move it.
ENOUGH = 8
# How many times as dear as told, against AR steps, drafting must be. Good costs came to 1.1 at most
# on a quiet machine. Where drafting seems so much cheaper than it is, auto is slower than AR mode.
OFF = 1.5
# How many times as fast as told AR steps must be. More than `OFF`: processors change their clocks.
FASTER = 2.0
# Share of a cycle that the caller may have had. The device works on meanwhile, so a cycle takes no
# longer for it; if it did, it would seem dearer by a third, which is less than `OFF`.
CALLERS = 0.25
# Tokens in the cache, beyond which attention costs what was never measured.
REACH = 1024


class Watch:
    """The cycles of one answer in mode "auto", by the time they took.

    Only what is dearer than told counts against the costs of drafting. Sizes between two measured
    ones are told as the larger, on purpose, and what is told too dear hardly runs.

    Attributes:
        ar: seconds of each AR step, by what was told.
        drafted: seconds of each other cycle, by what was told.
    """

    def __init__(self, costs: Costs, drop: Callable[[], None]):
        """Watch an answer.

        Args:
            costs: by which it is planned, in seconds.
            drop: called once it has contradicted them.
        """
        self._costs, self._drop = costs, drop
        self._decided = self._ended = -math.inf  # of the last cycle, and of its step
        self.ar, self.drafted = list[float](), list[float]()

    def saw(self, sequence: Sequence, started: float, ended: float) -> None:
        """Count the cycle that a step from `started` to `ended` finished, of this text alone."""
        began, handed_out, cycle = self._decided, self._ended, sequence.last
        self._decided, self._ended = sequence.decided_at, ended
        if cycle is None or sequence.error is not None or cycle.start > REACH:
            return
        if sequence.stats.cycles == 1:  # its step began it; others began in the step before
            began = handed_out = started
        took = sequence.decided_at - began
        if started - handed_out <= CALLERS * took < math.inf:
            told = plan_cost(self._costs, cycle.plan, len(cycle.drafts))
            (self.ar if cycle.plan.is_ar else self.drafted).append(took / told)

    @property
    def contradicts(self) -> bool:
        """Whether the costs are not those of this device.

        A time can be too long by any chance, but never too short. So one AR step is enough to find
        that they are faster than told, or that drafting costs more of them: the first step of each
        answer is one. While AR steps are slow, the machine is busy, and nothing is found.
        """
        if not self.ar:
            return False
        step = statistics.median(self.ar)
        if step * FASTER < 1:
            return True
        dear = len(self.drafted) >= ENOUGH and statistics.median(self.drafted) > OFF * step
        return dear and step < OFF

    def end(self) -> bool:
        """Drop the costs if the answer contradicts them; says whether it does."""
        found = self.contradicts
        if found:
            self._drop()
        return found
