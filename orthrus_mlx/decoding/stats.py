"""What a run came to: its totals."""

from __future__ import annotations

from dataclasses import dataclass, field

from .plan import Plan


@dataclass
class DecodeStats:
    """Totals of one run; every count is of decoding, prefill apart.

    Attributes:
        prompt_tokens: prompt ids of this call.
        cached_tokens: ids that the prompt cache held before it.
        generation_tokens: ids decided and handed out.
        forward_passes: passes over the layers (a two-pass cycle counts two).
        cycles: cycles of any kind; an AR step is one.
        drafted_tokens: drafts that were verified.
        accepted_tokens: drafts that were accepted.
        drafted_at: how often a draft was verified at each place of a block, first place first.
        accepted_at: how often it was accepted there.
        drafted_by: drafts that were verified, by source.
        accepted_by: drafts that were accepted, by source.
        near_ties: tokens whose choice was so close that another row count could have chosen
            otherwise; None where that is not measured (exact numerics, or no probe).
        seed: the sampling seed used.
        finish_reason: "stop" or "length" once the last token is handed out.
        complete: whether what was decided is all that its constraint asks for; None without one.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    forward_passes: int = 0
    cycles: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_at: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    drafted_by: dict[str, int] = field(default_factory=dict)
    accepted_by: dict[str, int] = field(default_factory=dict)
    near_ties: int | None = None
    seed: int = 0
    finish_reason: str | None = None
    complete: bool | None = None

    @property
    def tokens_per_forward(self) -> float:
        """Tokens for each pass over the layers; AR decoding has 1."""
        return self.generation_tokens / self.forward_passes if self.forward_passes else 0.0

    @property
    def tokens_per_cycle(self) -> float:
        """Tokens for each cycle, the paper's "acceptance length" where all cycles are two-pass.

        Of two alternating passes each counts as a cycle.
        """
        return self.generation_tokens / self.cycles if self.cycles else 0.0

    @property
    def acceptance(self) -> float:
        """Share of verified drafts that were accepted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    def count(self, plan: Plan, n_drafts: int, accepted: int) -> None:
        """Add one finished cycle."""
        self.cycles += 1
        self.forward_passes += 2 if plan.draft_rows else 1
        self.drafted_tokens += n_drafts
        self.accepted_tokens += accepted
        for totals, n in ((self.drafted_at, n_drafts), (self.accepted_at, accepted)):
            totals.extend([0] * (n - len(totals)))
            for place in range(n):
                totals[place] += 1
        if n_drafts:
            for by, n in ((self.drafted_by, n_drafts), (self.accepted_by, accepted)):
                by[plan.source] = by.get(plan.source, 0) + n
