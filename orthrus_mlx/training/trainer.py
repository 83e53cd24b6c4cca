"""The run from start to end: load, step by step, look, save, write the checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from ..errors import DataError, TrainingError
from .base import Base, load_base, view_names
from .batches import Batch, Batches
from .data import Example, fit, read_split
from .evaluate import pick_prompts, tokens_per_cycle
from .events import Finished, Note, Report, Saved, Started, Trained, Validated, silent
from .export import digest, write_checkpoint
from .loss import View, block_loss, cast, put, read_texts
from .options import TrainOptions
from .state import Workspace, file_digest

BETAS = [0.9, 0.95]


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
    """Give a base a diffusion view: train it, and write an Orthrus checkpoint.

    Ctrl-C saves the run and returns; `options.resume` goes on with it, and ends with the weights
    that an uninterrupted run would have had.

    Raises:
        OrthrusError: saying what is wrong with the checkpoint, the data or the settings.
    """
    workspace = Workspace(options.output)
    workspace.open(options.resume)
    base = load_base(options)
    before = _frozen_digest(base)
    train_set, valid_set = _load_data(options, base, report)
    workspace.claim(
        {
            **options.settings,
            "base": before,
            "train.jsonl": file_digest(options.data / "train.jsonl"),
        }
    )
    run = Run(options, base, train_set, valid_set, workspace, report)
    finished = run.go()
    if _frozen_digest(base) != before:
        raise TrainingError("A frozen weight changed during training; this is a bug. Nothing kept.")
    if not finished:
        return Result(None, run.step, run.losses, run.validations, None)
    written = write_checkpoint(base, run.master, options.output)
    workspace.remove()
    report(Finished(options.output, written, len(base.names)))
    return Result(options.output, run.step, run.losses, run.validations, written)


def _load_data(
    options: TrainOptions, base: Base, report: Report
) -> tuple[list[Example], list[Example]]:
    splits = []
    for split in ("train", "valid"):
        examples = read_split(options.data, split, base.tokenizer, options.chat_template_config)
        longest = min(options.max_seq_length, base.config.max_position_embeddings)
        kept, dropped = fit(examples, longest)
        if dropped:
            report(
                Note(
                    f"{split}: left out {dropped} of {len(examples)} texts, whose prompts alone "
                    f"fill {longest} tokens (--max-seq-length)"
                )
            )
        if any(token >= base.config.vocab_size for e in kept for token in e.ids):
            raise TrainingError(
                f"The tokenizer of {base.folder} gives ids beyond the model's vocabulary of "
                f"{base.config.vocab_size}."
            )
        splits.append(kept)
    if not splits[0]:
        raise DataError(f"{options.data / 'train.jsonl'} holds nothing to train on.")
    if not splits[1]:
        report(Note(f"No {options.data / 'valid.jsonl'}: training without validation"))
    return splits[0], splits[1]


def _frozen_digest(base: Base) -> str:
    """The digest of the frozen weights in memory."""
    weights = dict(tree_flatten(base.model.parameters()))
    return digest((name, weights[name]) for name in base.names)


class Run:
    """The loop and its state: the weights under training (float32) and their optimizer."""

    def __init__(
        self,
        options: TrainOptions,
        base: Base,
        train_set: list[Example],
        valid_set: list[Example],
        workspace: Workspace,
        report: Report,
    ):
        self.options, self.base, self.workspace, self.report = options, base, workspace, report
        self.batches = self._batches(train_set)
        self.valid = self._batches(valid_set) if valid_set else None
        self.prompts = pick_prompts(
            valid_set, options.val_prompts, base.config.max_position_embeddings
        )
        weights = dict(tree_flatten(base.model.parameters()))
        self.master: View = {
            name: weights[name].astype(mx.float32) for name in view_names(base.config)
        }
        self.schedule = schedule(options)
        self.optimizer = optim.AdamW(
            self.schedule, BETAS, weight_decay=options.weight_decay, bias_correction=True
        )
        self.optimizer.init(self.master)
        self.step = workspace.restore(self.master, self.optimizer)
        self.losses: list[tuple[int, float]] = []
        self.validations: list[tuple[int, float, float | None]] = []
        # One compiled graph a batch shape: teacher, blocks, gradients and update.
        state = [self.master, self.optimizer.state]
        self._train_step = mx.compile(self._train_step, inputs=state, outputs=state)  # type: ignore[method-assign]
        self._valid_loss = mx.compile(self._valid_loss, inputs=[self.master])  # type: ignore[method-assign]

    def _batches(self, examples: list[Example]) -> Batches:
        o = self.options
        longest = min(o.max_seq_length, self.base.config.max_position_embeddings)
        return Batches(examples, min(o.batch_size, len(examples)), o.anchors, longest, o.seed)

    def _loss(self, view: View, ids: mx.array, anchors: mx.array, ends: mx.array) -> mx.array:
        model = self.base.model
        read = read_texts(model, ids)

        def loss(view: View) -> mx.array:
            view = cast(view, self.base.dtype)
            return block_loss(model, view, read, ids, anchors, ends, self.options.grad_checkpoint)

        return loss(view)

    def _train_step(self, ids: mx.array, anchors: mx.array, ends: mx.array) -> mx.array:
        loss, gradients = mx.value_and_grad(self._loss)(self.master, ids, anchors, ends)
        gradients, _ = optim.clip_grad_norm(gradients, self.options.max_grad_norm)
        self.master.update(self.optimizer.apply_gradients(gradients, self.master))
        return loss

    def _valid_loss(self, ids: mx.array, anchors: mx.array, ends: mx.array) -> mx.array:
        return self._loss(self.master, ids, anchors, ends)

    def go(self) -> bool:
        """Take all steps that are left; whether the run came to its end."""
        weights = tree_flatten(self.base.model.parameters())
        o, trained = self.options, sum(a.size for a in self.master.values())
        n_train, n_valid = (len(b.examples) if b else 0 for b in (self.batches, self.valid))
        total = sum(a.size for _, a in weights)
        self.report(Started(self.step, o.iters, n_train, n_valid, trained, total))
        mx.reset_peak_memory()
        if self.step == 0:
            self._validate()

        pending: list[mx.array] = []
        tokens, since = 0, time.perf_counter()
        with _interrupts() as interrupted:
            while self.step < o.iters and not interrupted.is_set():
                batch = self.batches[self.step]
                pending.append(self._train_step(*_arrays(batch)))
                mx.async_eval(pending[-1], self.master, self.optimizer.state)
                self.step += 1
                tokens += batch.n_tokens
                # Never more than one step ahead of the device: while it works, the next batch is
                # made ready here.
                mx.eval(pending[-2:-1])

                last = self.step == o.iters
                if self.step % o.steps_per_report == 0 or last:
                    self._report(pending, tokens, time.perf_counter() - since)
                    pending, tokens, since = [], 0, time.perf_counter()
                paused = time.perf_counter()
                if o.steps_per_eval and (self.step % o.steps_per_eval == 0 or last):
                    self._validate()
                if self.step % o.save_every == 0 and not last:
                    self._save()
                since += time.perf_counter() - paused
            mx.eval(self.master, self.optimizer.state)
        if self.step < o.iters:
            self._save()
        return self.step == o.iters

    def _report(self, losses: list[mx.array], tokens: int, seconds: float) -> None:
        loss = mx.mean(mx.stack(losses)).item()
        assert isinstance(loss, float)
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {self.step}. Try a lower --learning-rate or --dtype "
                f"float32; the last save is in {self.workspace.folder}."
            )
        self.losses.append((self.step, loss))
        rate = self.schedule(mx.array(self.step - 1)).item()
        assert isinstance(rate, float)
        self.report(
            Trained(
                step=self.step,
                iters=self.options.iters,
                loss=loss,
                learning_rate=rate,
                steps_per_second=len(losses) / seconds,
                tokens_per_second=tokens / seconds,
                peak_memory=mx.get_peak_memory() / 1e9,
            )
        )

    def _validate(self) -> None:
        o = self.options
        if self.valid is None or not o.steps_per_eval or o.val_batches == 0:
            return
        since = time.perf_counter()
        count = self.valid.per_epoch
        count = count if o.val_batches < 0 else min(count, o.val_batches)
        losses = []
        for i in range(count):
            losses.append(self._valid_loss(*_arrays(self.valid[i])))
            mx.eval(losses[-1])
        loss = mx.mean(mx.stack(losses)).item()
        assert isinstance(loss, float)
        put(self.base.model, cast(self.master, self.base.dtype))
        gain = tokens_per_cycle(
            self.base.model, self.base.tokenizer, self.prompts, o.val_max_tokens
        )
        self.validations.append((self.step, loss, gain))
        self.report(Validated(self.step, loss, gain, time.perf_counter() - since))

    def _save(self) -> None:
        self.workspace.save(self.step, self.master, self.optimizer)
        self.report(Saved(self.step, self.workspace.folder))


def schedule(options: TrainOptions) -> optim.schedulers.Callable:  # type: ignore[name-defined]
    """The learning rate by step: a linear rise, then half a cosine down to 0."""
    peak, warmup = options.learning_rate, round(options.warmup * options.iters)
    cosine = optim.cosine_decay(peak, max(1, options.iters - warmup))
    if warmup == 0:
        return cosine
    rise = optim.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optim.join_schedules([rise, cosine], [warmup])


def _arrays(batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
    return mx.array(batch.ids), mx.array(batch.anchors), mx.array(batch.ends)


@contextmanager
def _interrupts() -> Generator[threading.Event, None, None]:
    """Ctrl-C sets the event, for the loop to see between two steps; a second one breaks off."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
