"""A run from start to end: load the base, read the data, train, write the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from ..errors import DataError, TrainingError
from .base import Base, load_base, view_names
from .data import Example, fit, read_split
from .events import Finished, Note, Report, silent
from .export import digest, write_checkpoint
from .options import TrainOptions
from .regenerate import regenerate
from .run import Run
from .state import Workspace, file_digest

SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        output: the checkpoint's folder; None if the run was interrupted.
        step: steps taken in all.
        losses: the reported (step, training loss) pairs of this call.
        validations: the (step, validation loss, tokens per cycle) triples of this call.
        base_digest: sha256 of the base tensors, the same before and after; None if interrupted.
    """

    output: Path | None
    step: int
    losses: list[tuple[int, float]]
    validations: list[tuple[int, float, float | None]]
    base_digest: str | None

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped, and saved, before its end."""
        return self.output is None


def train(options: TrainOptions, report: Report = silent) -> Result:
    """Train a diffusion view for a base, and write an Orthrus checkpoint.

    Ctrl-C saves the run and returns. `options.resume` continues it, and ends with the weights of an
    uninterrupted run.

    Raises:
        OrthrusError: saying what is wrong with the checkpoint, the data or the settings.
    """
    workspace = Workspace(options.output)
    workspace.check(options.resume)
    base = load_base(options)
    splits = {split: _read(options, base, split, report) for split in SPLITS}
    if not splits["train"]:
        raise DataError(f"{options.data / 'train.jsonl'} holds nothing to train on.")
    if not splits["valid"]:
        valid = options.data / "valid.jsonl"
        report(Note(f"{valid} is missing or empty: training without validation"))
    before = _digest(base, base.names)
    workspace.claim(_settings(options, base, before))
    if options.regenerate:
        longest = _longest(options, base)
        try:
            for split in SPLITS:
                answers = regenerate(base, splits[split], split, longest, workspace.folder, report)
                splits[split] = fit(answers, longest)
        except KeyboardInterrupt:
            return Result(None, 0, [], [], None)

    run = Run(options, base, splits["train"], splits["valid"], workspace, report)
    finished = run.run()
    if _digest(base, base.names) != before:
        raise TrainingError("A frozen weight changed during training: a bug. Nothing was written.")
    if not finished:
        return Result(None, run.step, run.losses, run.validations, None)
    written = write_checkpoint(base, run.master, options.output)
    workspace.remove()
    report(Finished(options.output, written, len(base.names)))
    return Result(options.output, run.step, run.losses, run.validations, written)


def _read(options: TrainOptions, base: Base, split: str, report: Report) -> list[Example]:
    """The examples of a split, cut to the longest length, that hold an answer."""
    longest = _longest(options, base)
    examples = read_split(options.data, split, base.tokenizer, options.chat_template_config)
    kept = fit(examples, longest)
    dropped, cut = len(examples) - len(kept), sum(len(e.ids) > longest for e in examples)
    if cut:
        report(
            Note(
                f"{split}: {cut} of {len(examples)} texts are longer than {longest} tokens "
                f"(--max-seq-length) and are cut; {dropped} of them have no answer left"
            )
        )
    if any(np.max(example.ids) >= base.config.vocab_size for example in kept):
        raise TrainingError(
            f"The tokenizer of {base.folder} gives ids beyond the model's vocabulary of "
            f"{base.config.vocab_size}."
        )
    return kept


def _longest(options: TrainOptions, base: Base) -> int:
    return min(options.max_seq_length, base.config.max_position_embeddings)


def _settings(options: TrainOptions, base: Base, digest: str) -> dict[str, Any]:
    """All that determines the result, and that a resumed run must share."""
    return {
        **options.settings,
        "block_size": base.config.block_size,
        "mask_token_id": base.config.mask_token_id,
        "base": digest,
        "view": _digest(base, view_names(base.config)),
        **{f"{split}.jsonl": file_digest(options.data / f"{split}.jsonl") for split in SPLITS},
    }


def _digest(base: Base, names: list[str]) -> str:
    """The digest of the named weights in memory."""
    weights = dict(tree_flatten(base.model.parameters()))
    return digest((name, weights[name]) for name in names)
