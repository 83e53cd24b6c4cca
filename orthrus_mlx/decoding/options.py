"""How an answer is to be written: one record of options, checked once at the door."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..errors import ConstraintError, GenerationError
from .cache import KV_BITS, KV_GROUP_SIZES
from .choosers import LogitsProcessor
from .consensus import Sampling
from .constraints import Constraint
from .penalties import CONTEXT, Penalties
from .scheduler import CYCLES, MODES, CycleKind, Evidence, Mode
from .sequence import Progress
from .stats import DecodeStats

NUMERICS = ("fast", "exact")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How an answer is to be written.

    Attributes:
        max_tokens: ids to write at most; -1 for as many as the context holds.
        temperature: 0 is greedy.
        top_p: keep the likeliest tokens up to this total probability (1: all).
        top_k: keep the k likeliest tokens (0: all).
        min_p: drop tokens below this fraction of the top probability (0: none).
        seed: keys the sampling noise; None draws a fresh one, which the stats report.
        mode: "parallel" always drafts full blocks, "ar" never does, "auto" decides as it goes
            from what passes cost on this device (measured at first use, then kept on disk) and
            from how many drafts are accepted.
        cycle: how drafts are made: "two-pass" (the paper's: a draft pass, then a verify pass),
            "one-pass" (a pass verifies one block while it drafts the next) or "alternating" (an AR
            step that drafts a block beside its row takes turns with a pass that verifies it).
            "auto" leaves the choice to mode="auto", and is the paper's in mode="parallel".
        numerics: "fast" picks row counts by cost alone; "exact" keeps every pass within row counts
            that this device was found to compute bit-identically, so that every mode gives the
            same ids in any precision. The first exact call probes the device (some seconds, then
            kept on disk).
        prompt_cache: a cache from `mlx_lm.models.cache.make_prompt_cache(model)` to continue.
            However the iterator ends, it then holds all ids but the last one handed out; start
            the next call's prompt with that one.
        logits_processors: as mlx-lm's: `processor(tokens, logits [1, vocab])` -> logits, called
            once for each token handed out, with the ids before it in this call.
        on_stats: called once with the `DecodeStats` of the run when the iterator ends.
        block_size: rows of the largest block to draft, anchor included; None for the checkpoint's.
        calibrate: measure costs at first use of mode="auto"; otherwise assume typical ones.
        prefill_step_size: prompt ids in one prefill pass.
        prompt_progress_callback: called with (prompt ids read, prompt ids in all).
        probe_progress_callback: called with (steps done, steps in all) while this device is
            measured: probed by the first exact call, calibrated by the first of mode="auto".
        cached_ids: the ids that `prompt_cache` holds, where the caller knows them: mode="auto" may
            copy drafts from them.
        kv_bits: bits of a value in the KV cache (2, 3, 4, 5, 6 or 8); None leaves it as it is.
        kv_group_size: values of a quantized KV cache that share a scale.
        quantized_kv_start: tokens in the KV cache from which on it is quantized.
        constraint: what the answer may be: `JsonSchema`, `Regex`, `Grammar`, `Choices` or
            `ToolCalls`. Thinking, where the model does it, stays free text in front. Drafts follow
            the constraint; what it forces is verified several ids at a time in every mode.
        written: ids of the answer that an earlier call wrote, the last ones of the prompt: the
            constraint and the prediction go on behind them.
        prediction: text or ids that the answer is expected to be, or to be much like: drafts that
            cost nothing to make, whatever they are worth. Not with mode="ar", which does not draft.
        logit_bias: added to the logits of these ids; the next six are mlx-lm's too, and look back
            on the ids of this call. All rows of a pass are penalized at once.
        repetition_penalty: divides the logits of ids said lately, or multiplies negative ones.
        repetition_context_size: how many ids back that is.
        presence_penalty: taken off the logit of each id said lately.
        presence_context_size: how many ids back that is.
        frequency_penalty: taken off the logit of an id for each time that it was said lately.
        frequency_context_size: how many ids back that is.
        evidence: what earlier answers showed about drafts; mode="auto" goes on from it and adds to
            it. Empty or None: with the little that this model's earlier texts say, kept on disk.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    mode: Mode = "auto"
    cycle: CycleKind = "auto"
    numerics: str = "fast"
    prompt_cache: list[Any] | None = None
    logits_processors: Sequence[LogitsProcessor] | None = None
    on_stats: Callable[[DecodeStats], None] | None = None
    block_size: int | None = None
    calibrate: bool = True
    prefill_step_size: int = 2048
    prompt_progress_callback: Progress | None = None
    probe_progress_callback: Progress | None = None
    cached_ids: Sequence[int] = ()
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0
    constraint: Constraint | None = None
    written: Sequence[int] = ()
    prediction: str | Sequence[int] | None = None
    logit_bias: Mapping[int, float] | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = CONTEXT
    presence_penalty: float | None = None
    presence_context_size: int = CONTEXT
    frequency_penalty: float | None = None
    frequency_context_size: int = CONTEXT
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("cycle", self.cycle, CYCLES)
        _one_of("numerics", self.numerics, NUMERICS)
        if not _is_count(self.max_tokens) and self.max_tokens != -1:
            raise GenerationError(
                f"max_tokens is {self.max_tokens!r}; expected a whole number, or -1 for no limit "
                "but the context."
            )
        if not _is_count(self.prefill_step_size) or self.prefill_step_size < 1:
            raise GenerationError(
                f"prefill_step_size is {self.prefill_step_size!r}; expected 1 or more."
            )
        if self.block_size is not None and (not _is_count(self.block_size) or self.block_size < 2):
            raise GenerationError(f"block_size is {self.block_size!r}; expected 2 rows or more.")
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise GenerationError(f"kv_bits is {self.kv_bits!r}; expected one of {KV_BITS}.")
        if self.kv_group_size not in KV_GROUP_SIZES:
            raise GenerationError(
                f"kv_group_size is {self.kv_group_size!r}; expected one of {KV_GROUP_SIZES}."
            )
        if not _is_count(self.quantized_kv_start):
            raise GenerationError(
                f"quantized_kv_start is {self.quantized_kv_start!r}; expected 0 or more tokens."
            )
        if self.kv_bits is not None and self.numerics == "exact":
            raise GenerationError(
                'kv_bits cannot be combined with numerics="exact": the probe compares passes over '
                "a KV cache that is not quantized."
            )
        for name in CALLABLES:
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise GenerationError(f"{name} is {value!r}; expected a function, or None.")
        processors = self.logits_processors
        if processors is not None and not (
            isinstance(processors, Sequence) and all(map(callable, processors))
        ):
            raise GenerationError(
                f"logits_processors is {processors!r}; expected a list of functions, or None."
            )
        for name in ("cached_ids", "written"):
            ids = getattr(self, name)
            if isinstance(ids, str) or not isinstance(ids, Sequence):
                raise GenerationError(f"{name} is {ids!r}; expected a list of ids.")
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise ConstraintError(
                f"constraint is a {type(self.constraint).__name__}; expected JsonSchema(...), "
                "Regex(...), Grammar(...), Choices(...) or ToolCalls(...)."
            )
        if self.prediction is not None and not isinstance(self.prediction, Sequence):
            raise GenerationError(
                f"prediction is {self.prediction!r}; expected text, or a list of ids."
            )
        if self.prediction is not None and self.mode == "ar":
            raise GenerationError('prediction= gives drafts, and mode="ar" does not draft.')
        if not isinstance(self.calibrate, bool):
            raise GenerationError(f"calibrate is {self.calibrate!r}; expected True or False.")
        if self.evidence is not None and not isinstance(self.evidence, Evidence):
            raise GenerationError(f"evidence is {self.evidence!r}; expected an Evidence, or None.")
        self.sampling(0)
        self.penalties()

    def penalties(self) -> Penalties:
        """What is taken off the logits."""
        return Penalties(
            self.logit_bias or {},
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            self.repetition_context_size,
            self.presence_context_size,
            self.frequency_context_size,
        )

    def sampling(self, seed: int) -> Sampling:
        """How tokens are chosen, with `seed` where the caller gave none."""
        given = seed if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, self.top_k, self.min_p, given)


CALLABLES = ("on_stats", "prompt_progress_callback", "probe_progress_callback")


# What mlx-lm's generators take and these do not, and what to use instead.
_XTC = "XTC draws once a call, not once a position, so it could not be the same in every mode"
INSTEAD = {
    "sampler": "sampling is keyed by seed and position, so that every mode writes the same: use "
    "temperature=, top_p=, top_k=, min_p= and seed=",
    "temp": "use temperature=",
    "xtc_probability": _XTC,
    "xtc_threshold": _XTC,
    "min_tokens_to_keep": "min_p= always keeps the likeliest token",
    "max_kv_size": "a cache that forgets its oldest tokens cannot be rolled back",
    "draft_model": "drafts come from the model's own diffusion view: use mode= and block_size=",
    "num_draft_tokens": "use block_size=",
    "response_format": "use constraint=JsonSchema(...)",
    "json_schema": "use constraint=JsonSchema(...)",
    "grammar": "use constraint=Grammar(...)",
    "input_embeddings": "a prompt is text or ids",
    "eos_token_ids": "use eos_token_id=, one id or several",  # of mlx_generate
    "stop": "stop strings are text: use stream_generate",
    "verbose": "nothing is printed: print the text of the responses",
}


def options_from(given: dict[str, Any]) -> GenerationOptions:
    """The options of these names, or what to use instead of a name that is none.

    Raises:
        GenerationError: naming the option.
    """
    known = {f.name for f in fields(GenerationOptions)}
    for name in given.keys() - known:
        near = get_close_matches(name, known, n=1)
        instead = INSTEAD.get(name) or (f"did you mean {near[0]}=?" if near else "")
        raise GenerationError(
            f"There is no option {name}="
            + (f"; {instead}" if instead else "")
            + ". See orthrus_mlx.GenerationOptions."
        )
    return GenerationOptions(**given)


def takes_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show every option by name in the signature of a function that takes `**options`."""
    own = list(inspect.signature(function).parameters.values())[:-1]
    more = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default)
        for f in fields(GenerationOptions)
        if f.name not in {p.name for p in own} and f.default is not MISSING
    ]
    signature = inspect.signature(function).replace(parameters=[*own, *more])
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GenerationError(f"{name} is {value!r}; expected one of {', '.join(known)}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
