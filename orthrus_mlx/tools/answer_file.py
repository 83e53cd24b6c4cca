"""Answers a file of prompts, many at once, into a file that a later run can go on with."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..batches import BatchEngine
from ..chat.prompt import encode_chat, encode_text
from ..errors import DataError, OutputError
from ..files import open_file, parse_json, read_lines, reason

# Fields of a line of their own; they come before what is asked of all.
OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Asked:
    """One line of the file of prompts.

    Attributes:
        line: its number, from 1.
        messages: what is said, or the text alone where it is sent as it is.
        options: of this line alone.
        id: what the line calls itself; None if it does not.
    """

    line: int
    messages: tuple[tuple[str, str], ...]
    options: dict[str, Any] = field(default_factory=dict)
    id: str | int | None = None

    def digest(self, common: Mapping[str, Any]) -> str:
        """Which request this is, so that an answer to another one is not taken for its own."""
        facts = [self.messages, self.options, common]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_prompts(path: Path) -> list[Asked]:
    """The lines of a .jsonl file with "prompt" or "messages", and options where a line has any.

    Raises:
        DataError: naming the line at fault.
    """
    found = []
    for number, line in read_lines(path, DataError):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        raw = parse_json(line, where, DataError)
        if not isinstance(raw, dict):
            raise DataError(f'{where}: expected an object with "prompt" or "messages".')
        unknown = raw.keys() - {"prompt", "messages", "id", *OPTIONS}
        if unknown:
            raise DataError(
                f"{where}: {sorted(unknown)[0]!r} is no field of a request; there are "
                + ", ".join(f'"{name}"' for name in ("prompt", "messages", "id", *OPTIONS))
                + "."
            )
        options = {name: raw[name] for name in OPTIONS if raw.get(name) is not None}
        found.append(Asked(number, _messages(raw, where), options, raw.get("id")))
    if not found:
        raise DataError(f"{path} holds no prompt.")
    return found


def _messages(raw: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    prompt, messages = raw.get("prompt"), raw.get("messages")
    if isinstance(prompt, str) and prompt.strip() and messages is None:
        return (("user", prompt),)
    given: list[Any] = messages if isinstance(messages, list) else []
    turns: list[tuple[Any, Any]] = [
        (m.get("role"), m.get("content")) for m in given if isinstance(m, dict)
    ]
    good = all(role in ROLES and isinstance(content, str) for role, content in turns)
    if prompt is not None or not turns or not good or len(turns) != len(given):
        raise DataError(
            f'{where}: expected "prompt", a text, or "messages", a list of objects with "role" '
            f'({", ".join(ROLES)}) and "content".'
        )
    return tuple(turns)


@dataclass(frozen=True)
class Progress:
    """How far a run has come: lines written, of how many, tokens of all, lines with an error.

    Errors that an earlier run wrote count too.
    """

    done: int
    total: int
    tokens: int
    failed: int = 0


def answer_file(
    model: Any,
    tokenizer: Any,
    asked: Sequence[Asked],
    output: Path,
    options: Mapping[str, Any],
    *,
    concurrency: int = 8,
    system_prompt: str | None = None,
    raw: bool = False,
    template_config: Mapping[str, Any] | None = None,
    also: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    **passed: Any,
) -> Progress:
    """Append an answer for each prompt that `output` lacks, in the order of the prompts.

    Each line of `output` is an object: line, id, text, finish_reason, prompt_tokens,
    generation_tokens, seed and digest, or error in place of the text and what follows. However a
    run ends, its whole lines stand, and the next run goes on behind them.

    Args:
        model: a model from `orthrus_mlx.load`.
        tokenizer: its tokenizer.
        asked: the prompts.
        output: the file.
        options: of all requests, by name; what is in `passed` besides changes no answer.
        concurrency: requests at once at most.
        system_prompt: what the model is told first, where a line's messages do not.
        raw: send prompts as they are, without the chat template.
        template_config: for the chat template.
        also: what else decides the answers, as JSON values.
        progress: called after each answer.
        passed: callbacks, and what else belongs to all requests.

    Raises:
        OutputError: if `output` holds answers to other requests, cannot be written, or is written
            by another run.
    """
    common = {
        **options,
        "system_prompt": system_prompt,
        "raw": raw,
        "template": dict(template_config or {}),
        "also": dict(also or {}),
    }
    digests = [one.digest(common) for one in asked]
    file, done, failed = _open(output, digests)
    tokens, waiting, finished = 0, list(range(done, len(asked))), dict[int, dict[str, Any]]()
    progress(Progress(done, len(asked), tokens, failed))
    running: dict[int, int] = {}
    texts: dict[int, list[str]] = {}
    lengths: dict[int, int] = {}
    calibrate = bool(options.get("calibrate", True))
    measuring = passed.get("probe_progress_callback")
    try:
        with (
            file,
            BatchEngine(model, tokenizer, calibrate=calibrate, progress=measuring) as engine,
        ):
            while waiting or engine.running or done in finished:
                while waiting and engine.running < concurrency:
                    n = waiting.pop(0)
                    one = asked[n]
                    try:
                        ids = _encode(tokenizer, one, system_prompt, raw, template_config)
                        number = engine.add(ids, **{**options, **passed, **one.options})
                    except Exception as fault:
                        finished[n] = {"error": str(fault)}
                        continue
                    running[number], texts[number], lengths[number] = n, [], len(ids)
                for number, response, error in engine.step():
                    n = running[number]
                    if error is not None:
                        finished[n] = {"error": str(error)}
                        continue
                    assert response is not None
                    texts[number].append(response.text)
                    tokens += response.token >= 0
                    if response.finish_reason is not None:
                        finished[n] = {
                            "text": "".join(texts.pop(number)),
                            "finish_reason": response.finish_reason,
                            "prompt_tokens": lengths[number],
                            "generation_tokens": response.generation_tokens,
                            "seed": response.seed,
                        }
                while done in finished:
                    one = asked[done]
                    facts = {"line": one.line} | ({} if one.id is None else {"id": one.id})
                    facts |= {**finished.pop(done), "digest": digests[done]}
                    failed += "error" in facts
                    file.write(json.dumps(facts, ensure_ascii=False) + "\n")
                    file.flush()
                    done += 1
                    progress(Progress(done, len(asked), tokens, failed))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {reason(error)}.") from None
    return Progress(done, len(asked), tokens, failed)


def _encode(
    tokenizer: Any,
    one: Asked,
    system_prompt: str | None,
    raw: bool,
    template_config: Mapping[str, Any] | None,
) -> list[int]:
    if raw and len(one.messages) > 1:
        raise DataError("Several messages need a chat template, and prompts are sent without one.")
    if raw:
        return encode_text(tokenizer, one.messages[-1][1], add_special_tokens=True)
    messages = [{"role": role, "content": content} for role, content in one.messages]
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return encode_chat(tokenizer, messages, dict(template_config or {}))[0]


def _open(output: Path, digests: Sequence[str]) -> tuple[TextIO, int, int]:
    """The file, for this run alone, and what `_resume` finds in it."""
    if output.exists():
        open_file(output, OutputError).close()  # a regular one
    try:
        file = output.open("a", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {reason(error)}.") from None
    try:
        with suppress(OSError):  # of file systems without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"Another run writes to {output}: wait for it, or give another --output."
                ) from None
        return file, *_resume(output, digests)
    except BaseException:
        file.close()
        raise


def _resume(output: Path, digests: Sequence[str]) -> tuple[int, int]:
    """How many lines `output` holds already, and how many of them have an error.

    A line that was cut short is taken away.
    """
    try:
        with open_file(output, OutputError) as file:
            content = file.read()
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {reason(error)}.") from None
    whole = content[: content.rfind(b"\n") + 1]
    found, failed = [], 0
    for line in whole.splitlines():
        try:
            facts = json.loads(line)
            found.append(facts["digest"])
            failed += "error" in facts
        except (ValueError, KeyError, TypeError):
            found.append("")
    if found != list(digests[: len(found)]):
        raise OutputError(
            f"{output} holds answers to other prompts, or written with other options. Give "
            "another --output, or remove it to start again."
        )
    if len(whole) < len(content):
        try:
            with output.open("r+b") as partial:
                partial.truncate(len(whole))
        except OSError as error:
            raise OutputError(f"{output} cannot be written: {reason(error)}.") from None
    return len(found), failed
