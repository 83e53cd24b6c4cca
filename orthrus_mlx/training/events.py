"""The events that a run reports; `str` of an event is its log line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Note:
    """Something worth knowing."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Regenerated:
    """Answers of one split regenerated so far."""

    split: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.split}: {self.done}/{self.total} answers regenerated"


@dataclass(frozen=True)
class Started:
    """The run starts; a resumed one continues after `step`."""

    step: int
    iters: int
    n_train: int
    n_valid: int
    trained_parameters: int
    parameters: int

    def __str__(self) -> str:
        share = 100 * self.trained_parameters / self.parameters
        begin = f"Resuming at step {self.step}" if self.step else "Training"
        return (
            f"{begin}: {self.n_train} texts, {self.n_valid} for validation, {self.iters} steps, "
            f"{self.trained_parameters / 1e6:.3f}M of {self.parameters / 1e6:.3f}M parameters "
            f"({share:.1f}%)"
        )


@dataclass(frozen=True)
class Trained:
    """Means over the steps since the last report."""

    step: int
    iters: int
    loss: float
    learning_rate: float
    steps_per_second: float
    tokens_per_second: float  # without padding
    peak_memory: float  # GB

    def __str__(self) -> str:
        return (
            f"Iter {self.step}: train loss {self.loss:.4f}, learning rate "
            f"{self.learning_rate:.3e}, it/s {self.steps_per_second:.2f}, tokens/s "
            f"{self.tokens_per_second:.0f}, peak memory {self.peak_memory:.3f} GB"
        )


@dataclass(frozen=True)
class Validated:
    """Loss on the validation set, and tokens per two-pass cycle on some of its prompts."""

    step: int
    loss: float
    tokens_per_cycle: float | None
    seconds: float

    def __str__(self) -> str:
        gain = f", tokens/cycle {self.tokens_per_cycle:.2f}" if self.tokens_per_cycle else ""
        return f"Iter {self.step}: val loss {self.loss:.4f}{gain}, val took {self.seconds:.1f} s"


@dataclass(frozen=True)
class Saved:
    """The run's state is on disk and can be resumed."""

    step: int
    folder: Path

    def __str__(self) -> str:
        return f"Iter {self.step}: saved to {self.folder}"


@dataclass(frozen=True)
class Finished:
    """The checkpoint is written, and its base tensors equal the base's."""

    folder: Path
    base_digest: str
    n_base: int

    def __str__(self) -> str:
        return (
            f"Wrote {self.folder}; its {self.n_base} base tensors are unchanged, "
            f"sha256 {self.base_digest}"
        )


Event = Note | Regenerated | Started | Trained | Validated | Saved | Finished
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report nothing."""
