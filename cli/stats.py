"""What an answer cost and what cut it, in words."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Remedies:
    """What to do about what cuts an answer, in the words of the place where it was asked for."""

    max_tokens: str
    context: str
    no_thinking: str
    always_draft: str


BY_FLAG = Remedies("--max-tokens", "Send less", "--no-think", "--mode parallel")
BY_COMMAND = Remedies(
    "/set max_tokens", "/undo or /clear makes room", "/set thinking off", "/set mode parallel"
)
FEW = 16  # tokens: a shorter answer says nothing of how drafts would do


def cut_line(
    last: Any, remedies: Remedies, *, stopped: str | None, thinks: bool, noun: str = ""
) -> str | None:
    """Say what cut an answer short and what to do; None if it came to its own end.

    Args:
        last: the last response; None if there was none.
        remedies: what to do about it.
        stopped: what stopped it: Ctrl-C, or a signal; None if nothing did.
        thinks: whether the model was still thinking.
        noun: what a constraint asks for: "JSON" or "text".
    """
    where = " while thinking, before the answer began" if thinks else ""
    if last is not None and last.complete is False and not thinks:
        where = f" with the {noun} unfinished"
    cut = last.cut if last is not None else None
    if cut == "max_tokens":
        flag, count = remedies.max_tokens, last.generation_tokens
        line = (
            f"Cut off at max_tokens ({count}){where}: {flag} {2 * count} for more, "
            "-1 for all that fits"
        )
        return f"{line}; {remedies.no_thinking} thinks less." if thinks else f"{line}."
    if cut == "context":
        return f"Cut off{where}: the context is full. {remedies.context}."
    if cut is not None:
        return f"Ended{where} by a {cut}."
    if stopped and (last is None or last.finish_reason is None):
        return f"Stopped by {stopped}{where}."
    return f"The model ended{where}." if thinks else None


@dataclass
class Totals:
    """Counts over the answers of a session."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    forward_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    prompt_tokens: int = 0  # read
    reused_tokens: int = 0  # found in the cache
    near_ties: int = 0
    peak_memory: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of drafts that stood."""
        return self.accepted_tokens / max(self.drafted_tokens, 1)

    def add(self, last: Any, reused: int = 0) -> None:
        """Count an answer, given its last response."""
        self.answers += 1
        self.tokens += last.generation_tokens
        self.seconds += last.generation_tokens / max(last.generation_tps, 1e-9)
        self.forward_passes += last.forward_passes
        self.drafted_tokens += last.drafted_tokens
        self.accepted_tokens += last.accepted_tokens
        self.prompt_tokens += last.prompt_tokens
        self.reused_tokens += reused
        self.near_ties += last.near_ties or 0
        self.peak_memory = max(self.peak_memory, last.peak_memory)


def totals_of(last: Any, reused: int = 0) -> Totals:
    """Count one answer alone."""
    totals = Totals()
    totals.add(last, reused)
    return totals


def acceptance(totals: Totals) -> str:
    """Say how many drafts stood."""
    if not totals.drafted_tokens:
        return "no drafts"
    return f"{totals.acceptance:.0%} of {plural(totals.drafted_tokens, 'draft')} accepted"


def speed(totals: Totals) -> str:
    """Say how fast the answer came, in time and in forward passes."""
    per_second = totals.tokens / max(totals.seconds, 1e-9)
    per_forward = totals.tokens / max(totals.forward_passes, 1)
    return f"{per_second:.1f} tok/s · {per_forward:.2f} tokens per forward"


def chat_line(last: Any, reused: int, sampled: bool) -> str:
    """Sum up one answer of a chat in a line."""
    totals = totals_of(last, reused)
    parts = [
        plural(totals.tokens, "token"),
        f"{last.generation_tps:.1f} tok/s",
        f"{last.tokens_per_forward:.2f} per forward",
        f"{totals.acceptance:.0%} accepted" if totals.drafted_tokens else "no drafts",
        f"prompt {reused + last.prompt_tokens} ({reused} reused)",
    ]
    if sampled:
        parts.append(f"seed {last.seed}")
    if totals.near_ties:
        parts.append(plural(totals.near_ties, "near-tie"))
    return " · ".join(parts)


def generation_lines(last: Any, sampled: bool) -> list[str]:
    """Report one generation in mlx-lm's layout, and what drafting added."""
    totals = totals_of(last)
    lines = [
        f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.3f} tokens-per-sec",
        f"Drafting: {last.tokens_per_forward:.2f} tokens per forward, {acceptance(totals)}",
        f"Peak memory: {last.peak_memory:.3f} GB",
    ]
    if sampled:
        lines.append(f"Seed: {last.seed}")
    if totals.near_ties:
        lines.append(
            f"Near-ties: {totals.near_ties} (--numerics exact makes every mode agree on them)"
        )
    return lines


def no_drafts_line(last: Any, mode: str, remedies: Remedies) -> str | None:
    """Say why `auto` wrote a whole answer without a draft; None if it did draft."""
    if mode != "auto" or last.drafted_tokens or last.generation_tokens < FEW:
        return None
    return (
        "No drafts: by what passes cost on this device, AR steps were expected to be faster for "
        f"this text. {remedies.always_draft} drafts always; `orthrus-mlx bench` compares them."
    )


def plural(count: int, noun: str) -> str:
    """Count things: "1 token", "2 tokens"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
