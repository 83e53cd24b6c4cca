"""`TrainOptions`: the settings of one training run, checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..checkpoint.config import LIMITS
from ..checkpoint.tensors import DTYPE_NAMES, FLOATS
from ..decoding.consensus import MAX_SEED
from ..errors import TrainingError
from ..files import OPTIONS_BYTES, expanded, read_text

DTYPES = tuple(DTYPE_NAMES[code] for code in FLOATS)
# Settings that do not change the result: a resumed run may change them.
OBSERVERS = frozenset(
    {"output", "resume", "save_every", "steps_per_report", "steps_per_eval", "val_batches"}
    | {"val_prompts", "val_max_tokens", "grad_checkpoint", "model", "data"}
)


@dataclass(frozen=True)
class TrainOptions:
    """All options of `orthrus-mlx train`, named as its flags; a bad value raises TrainingError.

    Attributes:
        model: the base: a Qwen3 or Orthrus checkpoint, a folder or a Hub id.
        data: the folder that holds `train.jsonl` and `valid.jsonl`.
        output: the folder to write the checkpoint to; must not exist, or be empty.
        revision: branch, tag or commit of a Hub id.
        block_size: rows of a block, the anchor included; None for the checkpoint's, else 32.
        mask_token_id: the id of a mask; None for the checkpoint's, else the first id that the
            tokenizer leaves unused.
        regenerate: train on the base model's own greedy answers in place of those in the data.
        chat_template_config: arguments for the chat template.
        iters: optimizer steps.
        batch_size: texts per step.
        anchors: blocks per text; None for one per eight tokens of the padded batch.
        max_seq_length: longer texts are cut.
        learning_rate: the peak of the cosine schedule.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: AdamW's.
        max_grad_norm: gradients are scaled down to this norm.
        dtype: type to compute in; None for the base's own. The weights under training also have a
            float32 copy.
        grad_checkpoint: recompute each layer in the backward pass instead of keeping it.
        seed: seed of the data order and the anchors.
        save_every: steps between saves of the run's state.
        steps_per_report: steps between reports of the loss.
        steps_per_eval: steps between validations; 0 for none.
        val_batches: batches in a validation; -1 for all.
        val_prompts: prompts on which a validation measures tokens per cycle; 0 for none.
        val_max_tokens: most tokens in an answer to such a prompt.
        resume: continue the run saved for `output`.
    """

    model: str
    data: Path
    output: Path
    revision: str | None = None
    block_size: int | None = None
    mask_token_id: int | None = None
    regenerate: bool = False
    chat_template_config: dict[str, Any] = field(default_factory=dict)
    iters: int = 1000
    batch_size: int = 4
    anchors: int | None = None
    max_seq_length: int = 2048
    learning_rate: float = 2e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dtype: str | None = None
    grad_checkpoint: bool = False
    seed: int = 0
    save_every: int = 500
    steps_per_report: int = 10
    steps_per_eval: int = 200
    val_batches: int = 25
    val_prompts: int = 8
    val_max_tokens: int = 128
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "data", "output"):
            value = str(getattr(self, name))
            path = value if name == "model" else expanded(value, TrainingError)
            object.__setattr__(self, name, path)
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm"):
            object.__setattr__(self, name, _float(name, getattr(self, name)))
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            if value is None and name in ("block_size", "mask_token_id", "anchors"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise TrainingError(f"{name} is {value!r}; expected a whole number from {least}.")
        for name in ("regenerate", "grad_checkpoint", "resume"):
            if not isinstance(getattr(self, name), bool):
                raise TrainingError(f"{name} is {getattr(self, name)!r}; expected true or false.")
        if self.block_size is not None and self.block_size > LIMITS["block_size"]:
            raise TrainingError(f"block_size is {self.block_size}; at most {LIMITS['block_size']}.")
        if self.seed > MAX_SEED:
            raise TrainingError(f"seed is {self.seed}; at most {MAX_SEED}.")
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise TrainingError("learning_rate and max_grad_norm must be above 0.")
        if not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise TrainingError("warmup goes from 0 to below 1, and weight_decay from 0 up.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise TrainingError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        if not isinstance(self.chat_template_config, dict):
            raise TrainingError("chat_template_config must be an object (a mapping of names).")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that determine the result, as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in OBSERVERS}

    def with_changes(self, **changes: Any) -> TrainOptions:
        """The same options with some of them replaced."""
        return replace(self, **changes)


_WHOLE = {
    "block_size": 2,
    "mask_token_id": 0,
    "iters": 1,
    "batch_size": 1,
    "anchors": 1,
    "max_seq_length": 2,
    "seed": 0,
    "save_every": 1,
    "steps_per_report": 1,
    "steps_per_eval": 0,
    "val_batches": -1,
    "val_prompts": 0,
    "val_max_tokens": 1,
}


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file, by the names of `TrainOptions`.

    Raises:
        TrainingError: for an unreadable file or an unknown name.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(read_text(path, TrainingError, OPTIONS_BYTES))
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: 2026-02-30
        raise TrainingError(f"The configuration {path} cannot be read: {e}.") from e
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise TrainingError(f"{path} should hold names and values, such as `iters: 1000`.")
    known = [f.name for f in fields(TrainOptions)]
    given = {str(name).replace("-", "_"): value for name, value in content.items()}
    if unknown := sorted(given.keys() - set(known)):
        raise TrainingError(
            f"{path} sets {', '.join(map(repr, unknown))}, which is no option. Known are "
            + ", ".join(map(repr, known))
            + "."
        )
    return given


def _float(name: str, value: Any) -> float:
    # YAML reads 1e-5, which has no dot, as a string.
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise TrainingError(f"{name} is {value!r}; expected a number.")
    return number
