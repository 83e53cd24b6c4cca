"""The training loop, with its reports, validations and saves."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from ..device.backend import wired
from ..errors import TrainingError
from ..signals import ends_held
from .base import Base, view_names
from .batches import Batch, Batches
from .data import Example
from .evaluate import pick_prompts, tokens_per_cycle
from .events import Report, Saved, Started, Trained, Validated
from .loss import DiffWeights, block_loss, cast, read_texts, set_weights
from .options import TrainOptions
from .state import Workspace

BETAS = [0.9, 0.95]


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
        # Copies: they are inputs of the compiled step, and none may also be a frozen weight.
        self.master: DiffWeights = {
            name: mx.array(weights[name].astype(mx.float32)) for name in view_names(base.config)
        }
        self.optimizer = optim.AdamW(
            learning_rate(options), BETAS, weight_decay=options.weight_decay, bias_correction=True
        )
        self.optimizer.init(self.master)
        self.step = workspace.restore(self.master, self.optimizer)
        self.stop = threading.Event()  # set by Ctrl-C
        self.losses: list[tuple[int, float]] = []
        self.validations: list[tuple[int, float, float | None]] = []
        # One compiled graph per batch shape: teacher, blocks, gradients and update.
        state = [self.master, self.optimizer.state]
        self._compiled_update = mx.compile(self._update, inputs=state, outputs=state)
        self._compiled_loss = mx.compile(self._loss_now, inputs=[self.master])

    def _batches(self, examples: list[Example]) -> Batches:
        o = self.options
        longest = min(o.max_seq_length, self.base.config.max_position_embeddings)
        return Batches(examples, min(o.batch_size, len(examples)), o.anchors, longest, o.seed)

    def take_step(self, batch: Batch) -> mx.array:
        """Update the weights (lazily); return the loss on the batch before the update, a scalar."""
        self.step += 1
        return self._compiled_update(*_arrays(batch))

    def valid_loss(self, batch: Batch) -> mx.array:
        """The loss of the current weights on a batch, a scalar."""
        return self._compiled_loss(*_arrays(batch))

    def _update(self, ids: mx.array, anchors: mx.array, ends: mx.array) -> mx.array:
        loss, gradients = mx.value_and_grad(self._loss)(self.master, ids, anchors, ends)
        gradients = clip(gradients, self.options.max_grad_norm)
        self.master.update(self.optimizer.apply_gradients(gradients, self.master))
        return loss

    def _loss_now(self, ids: mx.array, anchors: mx.array, ends: mx.array) -> mx.array:
        return self._loss(self.master, ids, anchors, ends)

    def _loss(
        self, view: DiffWeights, ids: mx.array, anchors: mx.array, ends: mx.array
    ) -> mx.array:
        model, view = self.base.model, cast(view, self.base.dtype)
        teacher = read_texts(model, ids)  # depends on no weight under training: no gradient
        return block_loss(model, view, teacher, ids, anchors, ends, self.options.grad_checkpoint)

    def run(self) -> bool:
        """Take all remaining steps; return whether the run reached its end."""
        self._announce()
        mx.reset_peak_memory()
        with ends_held(self.stop.set):  # SIGTERM and SIGHUP end the program once that is saved
            with wired(), _interrupts(self.stop):
                if self.step == 0:
                    self._validate()
                self._train()
            if self.step < self.options.iters:
                self._save()
        return self.step == self.options.iters

    def _announce(self) -> None:
        weights = dict(tree_flatten(self.base.model.parameters()))
        self.report(
            Started(
                step=self.step,
                iters=self.options.iters,
                n_train=len(self.batches.examples),
                n_valid=len(self.valid.examples) if self.valid else 0,
                trained_parameters=sum(a.size for a in self.master.values()),
                parameters=sum(a.size for a in weights.values()),
            )
        )

    def _train(self) -> None:
        o = self.options
        pending: list[mx.array] = []  # losses since the last report
        tokens, since = 0, time.perf_counter()
        while self.step < o.iters and not self.stop.is_set():
            batch = self.batches[self.step]
            pending.append(self.take_step(batch))
            mx.async_eval(pending[-1], self.master, self.optimizer.state)
            tokens += batch.n_tokens
            # At most one step is in flight while the host prepares the next batch.
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

    def _report(self, losses: list[mx.array], tokens: int, seconds: float) -> None:
        loss = mx.mean(mx.stack(losses)).item()
        assert isinstance(loss, float)
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} at step {self.step}. Try a lower --learning-rate or --dtype "
                f"float32; the last save is in {self.workspace.folder}."
            )
        self.losses.append((self.step, loss))
        self.report(
            Trained(
                step=self.step,
                iters=self.options.iters,
                loss=loss,
                learning_rate=self.optimizer.learning_rate.item(),
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
            if self.stop.is_set():
                return
            losses.append(self.valid_loss(self.valid[i]))
            mx.eval(losses[-1])
        loss = mx.mean(mx.stack(losses)).item()
        assert isinstance(loss, float)
        set_weights(self.base.model, cast(self.master, self.base.dtype))
        gain = tokens_per_cycle(
            self.base.model, self.base.tokenizer, self.prompts, o.val_max_tokens
        )
        self.validations.append((self.step, loss, gain))
        self.report(Validated(self.step, loss, gain, time.perf_counter() - since))

    def _save(self) -> None:
        self.workspace.save(self.step, self.master, self.optimizer)
        self.report(Saved(self.step, self.workspace.folder))


def learning_rate(options: TrainOptions) -> Callable[[Any], mx.array]:
    """The learning rate by step, from 0: a linear warmup, then a cosine decay to 0."""
    peak, warmup = options.learning_rate, round(options.warmup * options.iters)
    decay: Callable[[Any], mx.array] = optim.cosine_decay(peak, options.iters - warmup)
    if not warmup:
        return decay
    rise = optim.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optim.join_schedules([rise, decay], [warmup])


def clip(gradients: DiffWeights, max_norm: float) -> DiffWeights:
    """Gradients scaled down to a global norm of at most `max_norm`."""
    # As MLX's clip_grad_norm, whose one-by-one sum of squares takes long to compile.
    norm = mx.sqrt(mx.stack([g.square().sum() for g in gradients.values()]).sum())
    scale = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {name: g * scale for name, g in gradients.items()}


def _arrays(batch: Batch) -> tuple[mx.array, mx.array, mx.array]:
    return mx.array(batch.ids), mx.array(batch.anchors), mx.array(batch.ends)


@contextmanager
def _interrupts(stop: threading.Event) -> Generator[None, None, None]:
    """Let Ctrl-C set `stop`, which the loop checks between steps; a second one interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
