"""Save and resume a run: weights, optimizer, step, settings.

The working folder `OUTPUT.training` holds all of it, beside the output, until the run is over.
The order of the data is not saved: it is a function of the seed and the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from ..errors import DataError, OutputError, TrainingError, brief
from ..files import OPTIONS_BYTES, check_tensor_file, open_file, read_json
from .loss import DiffWeights

RUN_FILE = "run.json"
STATE_FILE = "state.safetensors"


class Workspace:
    """The working folder of the run that writes to `output`."""

    def __init__(self, output: Path):
        self.output = output
        self.folder = output.parent / f"{output.name}.training"
        self.resume = False

    def check(self, resume: bool) -> None:
        """Check that a new run overwrites nothing, or that there is a run to resume.

        Raises:
            OutputError: if the output exists, or an unfinished run would be lost.
            TrainingError: if there is nothing to resume.
        """
        if self.output.is_file() or (self.output.is_dir() and any(self.output.iterdir())):
            raise OutputError(f"{self.output} exists already. Remove it, or name another --output.")
        if resume and not (self.folder / RUN_FILE).is_file():
            raise TrainingError(
                f"There is no unfinished run in {self.folder} to resume. Start one without "
                "--resume."
            )
        if not resume and self._work_done():
            raise OutputError(
                f"{self.folder} holds an unfinished run. Add --resume to go on with it, or remove "
                "it to start afresh."
            )
        self.resume = resume

    def _work_done(self) -> bool:
        """Whether the folder holds more than the settings of a run."""
        return self.folder.is_dir() and any(p.name != RUN_FILE for p in self.folder.iterdir())

    def claim(self, settings: dict[str, Any]) -> None:
        """Create the folder and write the settings; for a resumed run, check that they agree.

        Raises:
            TrainingError: naming each setting that differs.
        """
        path = self.folder / RUN_FILE
        settings = json.loads(json.dumps(settings))
        if not self.resume:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise OutputError(f"The folder {self.folder} cannot be made: {e}.") from e
            _write_whole(path, json.dumps(settings, indent=2).encode() + b"\n")
            return
        saved = read_json(path, TrainingError, OPTIONS_BYTES)
        if not isinstance(saved, dict):
            raise TrainingError(
                f"{path} does not hold the settings of a run. Remove {self.folder} to start afresh."
            )
        names = sorted(saved.keys() | settings.keys())
        if changed := [n for n in names if saved.get(n) != settings.get(n)]:
            differ = "; ".join(f"{n} was {saved.get(n)!r}, is {settings.get(n)!r}" for n in changed)
            raise TrainingError(
                f"The run in {self.folder} was started with other settings, so resuming it would "
                f"not continue the same run: {differ}. Use the old settings, or remove the folder."
            )

    def save(self, step: int, view: DiffWeights, optimizer: optim.Optimizer) -> None:
        """Save the run after `step` steps, in place of any earlier save."""
        state = {f"weight:{name}": a for name, a in view.items()}
        for name in view:
            state |= {f"{part}:{name}": a for part, a in optimizer.state[name].items()}
        state["optimizer:step"] = optimizer.state["step"]
        partial = self.folder / f"partial.{STATE_FILE}"
        try:
            mx.save_safetensors(str(partial), state, metadata={"step": str(step)})
            partial.replace(self.folder / STATE_FILE)
        except (OSError, RuntimeError) as e:
            _remove(partial)
            raise OutputError(
                f"The run cannot be saved to {self.folder}: {brief(e)}. Is the disk full? Make "
                "room and run the command again, with --resume if anything was saved before."
            ) from e

    def restore(self, view: DiffWeights, optimizer: optim.Optimizer) -> int:
        """Load the last save into `view` and `optimizer`; return its step, 0 if there is none."""
        path = self.folder / STATE_FILE
        if not path.exists():
            return 0
        check_tensor_file(path, TrainingError)
        try:
            loaded: Any = mx.load(str(path), return_metadata=True)
            state, metadata = loaded
            for name in view:
                view[name] = _like(view[name], state[f"weight:{name}"])
                for part, now in optimizer.state[name].items():
                    optimizer.state[name][part] = _like(now, state[f"{part}:{name}"])
            optimizer.state["step"] = _like(optimizer.state["step"], state["optimizer:step"])
            step = int(metadata["step"])
            mx.eval(view, optimizer.state)
        except (RuntimeError, KeyError, ValueError, TypeError) as e:
            raise TrainingError(
                f"{path} is not a whole save of this run ({e}). Remove {self.folder} to start "
                "afresh."
            ) from e
        return step

    def remove(self) -> None:
        """Remove the folder: the run is over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _like(now: mx.array, saved: mx.array) -> mx.array:
    """A saved array, which must have the shape and type of the one that it replaces."""
    if saved.shape != now.shape or saved.dtype != now.dtype:
        raise ValueError(f"{saved.dtype} {saved.shape} for {now.dtype} {now.shape}")
    return saved


def file_digest(path: Path) -> str | None:
    """The sha256 of a file's bytes; None where there is none."""
    if not os.path.lexists(path):
        return None
    with open_file(path, DataError) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f"partial.{path.name}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as e:
        _remove(partial)
        raise OutputError(f"{path} cannot be written: {e}.") from e


def _remove(partial: Path) -> None:
    """Remove what could not be written whole: on a full disk, it takes the room of the rest."""
    with contextlib.suppress(OSError):
        partial.unlink()
