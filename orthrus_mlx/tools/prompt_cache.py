"""Prompt caches on disk, in mlx-lm's format: a long prompt is read once, then continued at will.

The file's metadata also hold the ids that the cache was made of, so that drafts can be copied from
them and a session can tell what it holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ChatTemplateError, GenerationError, OutputError, brief
from ..files import check_tensor_file, expanded
from ..generate import mlx_generate
from ..session import encode_chat

SUFFIX = ".safetensors"
QUERY = "<query>"  # stands for what is asked, while the place is looked for where it goes


@dataclass(frozen=True)
class CachedPrompt:
    """A prompt that was read before.

    Attributes:
        layers: its KV cache.
        ids: what the cache holds; None in a file that mlx-lm wrote.
        model: the name of the model that read it.
        revision: its revision on the Hub.
        adapter: the folder of the adapter that it had.
        raw: whether the ids are no part of a chat.
    """

    layers: list[Any]
    ids: list[int] | None = None
    model: str | None = None
    revision: str | None = None
    adapter: str | None = None
    raw: bool = False


def read_prompt(
    model: Any, ids: Sequence[int], progress: Any = None, prefill_step_size: int = 2048
) -> list[Any]:
    """The KV cache of `ids`, all of them."""
    layers: list[Any] = model.make_cache()
    # The cache of an answer holds all but its last token: with an answer of one, the prompt.
    options: Any = {"prompt_progress_callback": progress, "prefill_step_size": prefill_step_size}
    for _ in mlx_generate(model, ids, (), 1, mode="ar", prompt_cache=layers, **options):
        pass
    return layers


def save(path: str | Path, prompt: CachedPrompt) -> Path:
    """Write a prompt's cache, whole or not at all; the name ends in .safetensors.

    Raises:
        OutputError: if it cannot be written.
    """
    from mlx_lm.models.cache import save_prompt_cache

    if hasattr(prompt.layers, "key"):
        raise OutputError(
            "A prompt cache over several machines is in parts, which no file can hold. Start "
            "cache-prompt without mlx.launch."
        )
    file = with_suffix(path)
    partial = file.with_name(f".{file.stem}.{os.getpid()}{SUFFIX}")
    metadata = {
        "model": prompt.model or "",
        "tokenizer_config": "{}",  # mlx-lm reads this one
        "ids": json.dumps(prompt.ids),
        "revision": prompt.revision or "",
        "adapter": prompt.adapter or "",
        "raw": json.dumps(prompt.raw),
    }
    try:
        save_prompt_cache(os.fspath(partial), prompt.layers, metadata)
        partial.replace(file)
    except (OSError, RuntimeError) as e:
        raise OutputError(f"{file} cannot be written: {brief(e)}.") from e
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return file


def load(path: str | Path) -> CachedPrompt:
    """Read what `save`, or mlx-lm's `cache_prompt`, wrote.

    Raises:
        GenerationError: if there is no such file, or it holds something else.
    """
    from mlx_lm.models.cache import load_prompt_cache

    file = with_suffix(path)
    if not _is_file(file):
        raise GenerationError(
            f"There is no prompt cache {file}. `orthrus-mlx cache-prompt` writes one."
        )
    check_tensor_file(file, GenerationError)
    try:
        layers, metadata = load_prompt_cache(os.fspath(file), return_metadata=True)
        ids = json.loads(metadata.get("ids", "null"))
        raw = json.loads(metadata.get("raw", "false"))
        offsets = {layer.offset for layer in layers}
        if offsets != {len(ids)} if ids is not None else len(offsets) != 1:
            raise ValueError("its layers hold other numbers of tokens than it says")
    # The file names classes and shapes: whatever these lead to, it is not what it should be.
    except Exception as e:
        raise GenerationError(
            f"{file} cannot be read as a prompt cache: {brief(e)}. Write it again by "
            "`orthrus-mlx cache-prompt`."
        ) from e
    names = {key: metadata.get(key) or None for key in ("model", "revision", "adapter")}
    return CachedPrompt(layers, ids, raw=bool(raw), **names)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long
        return False


def with_suffix(path: str | Path) -> Path:
    """The file that is meant: MLX tells a format by the end of the name.

    Raises:
        GenerationError: for a path that names no file.
    """
    file = expanded(path, GenerationError)
    if not file.name or file.name == "..":
        raise GenerationError(f"{str(path)!r} names no file for a prompt cache.")
    return file if file.suffix == SUFFIX else file.with_name(file.name + SUFFIX)


def continue_chat(
    tokenizer: Any,
    message: str,
    template_config: Mapping[str, Any],
    prefill: str | None = None,
    apart: bool = False,
) -> tuple[list[int], str]:
    """The ids and text that go on with a cached chat's last message, and ask for the answer.

    As in mlx-lm, what was cached is the beginning of the user's message. `prefill` begins the
    answer; for `apart` see `encode_chat`.
    """
    answer = [] if prefill is None else [{"role": "assistant", "content": prefill}]

    def encode(content: str, skip: int = 0) -> tuple[list[int], str]:
        messages = [{"role": "user", "content": content}, *answer]
        return encode_chat(
            tokenizer, messages, template_config, unfinished=bool(answer), skip=skip, apart=apart
        )

    place = encode(QUERY)[1].find(QUERY)
    if place < 0:
        raise ChatTemplateError(
            "The chat template does not show what the user says as it stands, so a cached prompt "
            "cannot be continued. Send it raw (--ignore-chat-template)."
        )
    return encode(message, place)
