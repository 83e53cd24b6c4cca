"""A request in text, checked and turned into ids; what comes of it is noted beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from ..decoding.checks import as_list, checked_ends
from ..decoding.options import GenerationOptions, options_from
from ..decoding.sequence import Progress
from ..decoding.stats import DecodeStats
from ..errors import GenerationError
from .prompt import encode_text
from .stop_strings import StopStrings


@dataclass
class TextWork:
    """A request in text, checked.

    Attributes:
        ids: the prompt.
        ends: ids that end the answer.
        options: everything else; progress and totals go through `watch`.
        stops: the stop strings.
        watch: how long the run takes, and what it has come to.
        tokenizer: as the caller gave it, wrapped as mlx-lm wraps it.
        detokenizer: turns ids into text.
    """

    ids: Any
    ends: frozenset[int]
    options: GenerationOptions
    stops: StopStrings
    watch: Watch
    tokenizer: Any
    detokenizer: Any

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        prompt: str | Sequence[int] | mx.array,
        max_tokens: int,
        stop: str | Sequence[str] | None,
        eos_token_ids: Collection[int] | None,
        options: dict[str, Any],
    ) -> TextWork:
        """What `stream_generate` was asked for; raises `GenerationError` if it is unusable."""
        tokenizer = checked_tokenizer(tokenizer)
        if isinstance(prompt, str):
            # mlx-lm's rule: special tokens are added unless the text already starts with one.
            bos = tokenizer.bos_token
            add_bos = not bos or not prompt.startswith(bos)
            ids: Any = encode_text(tokenizer, prompt, add_special_tokens=add_bos)
        else:
            ids = prompt
        ends = checked_ends(
            "eos_token_ids", tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids
        )
        asked = options_from({"max_tokens": max_tokens, **options})
        watch = Watch(asked.prompt_progress_callback, asked.on_stats)
        given = replace(asked, prompt_progress_callback=watch.progress, on_stats=watch.ended)
        texts = as_list(() if stop is None else stop)
        if not all(isinstance(text, str) for text in texts):
            raise GenerationError(f"stop is {stop!r}; expected a string, or a list of strings.")
        return cls(ids, ends, given, StopStrings(texts), watch, tokenizer, tokenizer.detokenizer)


class Watch:
    """Notes how long reading and writing take and what the run came to, and passes it on.

    Attributes:
        stats: the totals, once the run has ended.
    """

    def __init__(
        self, on_progress: Progress | None, on_stats: Callable[[DecodeStats], None] | None
    ):
        self.on_progress = on_progress
        self.on_stats = on_stats
        self.stats = DecodeStats()
        self._prompt_read = 0.0
        self.start()

    def start(self) -> None:
        """The run begins now."""
        self._started = time.perf_counter()

    @property
    def read_seconds(self) -> float:
        """From the start until the prompt was read."""
        return max(self._prompt_read - self._started, 1e-9)

    @property
    def write_seconds(self) -> float:
        """From then until now."""
        return max(time.perf_counter() - self._prompt_read, 1e-9)

    def progress(self, done: int, total: int) -> None:
        """As `prompt_progress_callback`."""
        if done == total:
            self._prompt_read = time.perf_counter()
        if self.on_progress is not None:
            self.on_progress(done, total)

    def ended(self, stats: DecodeStats) -> None:
        """As `on_stats`."""
        self.stats = stats
        if self.on_stats is not None:
            self.on_stats(stats)


def checked_tokenizer(tokenizer: Any) -> Any:
    """Anything that can do what mlx-lm's wrapper can, or a tokenizer of transformers, wrapped."""
    if all(hasattr(tokenizer, name) for name in ("encode", "detokenizer", "eos_token_ids")):
        return tokenizer
    if all(hasattr(tokenizer, name) for name in ("encode", "decode", "eos_token_id", "get_vocab")):
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        return TokenizerWrapper(tokenizer)
    raise GenerationError(
        f"The tokenizer is a {type(tokenizer).__module__}.{type(tokenizer).__name__}; expected one "
        "from orthrus_mlx.load, or a tokenizer of transformers."
    )
