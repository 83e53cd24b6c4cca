"""Replace answers with the base model's own greedy ones, which the view will have to draft."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.plain import plain_qwen3
from ..errors import DataError, OutputError, TrainingError
from ..files import decoded, open_file, parse_json, reason
from .base import Base
from .data import Example, Span
from .events import Regenerated, Report

CHUNK = 128  # answers between two saves


def regenerate(
    base: Base, examples: Sequence[Example], split: str, longest: int, folder: Path, report: Report
) -> list[Example]:
    """One example per answer: its prompt, then the base's answer, at most `longest` ids in all.

    Answers are saved in `folder` as they come; a resumed run continues after the last one.

    Raises:
        DataError: for a text without a prompt.
        OutputError: if answers cannot be saved.
    """
    prompts = [e.ids[: answer.start].tolist() for e in examples for answer in e.answers]
    if not all(prompts):
        raise DataError(
            f'{split}.jsonl holds {{"text": ...}}, which has no answers to regenerate. Give '
            "messages, or prompt and completion; or leave out --regenerate."
        )
    prompts = [prompt for prompt in prompts if len(prompt) < longest]
    path = folder / f"regenerated-{split}.jsonl"
    answers = _kept(path)
    report(Regenerated(split, len(answers), len(prompts)))
    plain = plain_qwen3(base.model) if len(answers) < len(prompts) else None
    while len(answers) < len(prompts):
        chunk = prompts[len(answers) : len(answers) + CHUNK]
        new = _answer(plain, base.tokenizer.eos_token_ids, chunk, longest)
        try:
            with path.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(ids) + "\n" for ids in new)
        except OSError as e:
            raise OutputError(f"Answers cannot be kept in {path}: {e}.") from e
        answers += new
        report(Regenerated(split, len(answers), len(prompts)))
    return [
        Example(np.array(prompt + answer, np.int32), [Span(len(prompt), len(prompt) + len(answer))])
        for prompt, answer in zip(prompts, answers, strict=False)
    ]


def _answer(
    plain: Any, ends: set[int], prompts: Sequence[list[int]], longest: int
) -> list[list[int]]:
    """Greedy answers, each with its end token unless it was cut."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(plain, stop_tokens=[[end] for end in sorted(ends)])
    try:
        ids = generator.insert([*prompts], [longest - len(prompt) for prompt in prompts])
        answers: dict[int, list[int]] = {i: [] for i in ids}
        while responses := generator.next_generated():
            for response in responses:
                answers[response.uid].append(int(response.token))
    finally:
        generator.close()
        mx.clear_cache()
    return [answers[i] for i in ids]


def _kept(path: Path) -> list[list[int]]:
    """The answers of an earlier, interrupted call; a last line cut short is dropped."""
    if not os.path.lexists(path):
        return []
    answers: list[list[int]] = []
    size = 0  # of the lines that are whole
    with open_file(path, TrainingError) as lines:
        for line in lines:
            if line.endswith(b"\n"):
                answers.append(_answer_of(line, path))
                size += len(line)
    try:
        os.truncate(path, size)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {reason(e)}.") from e
    return answers


def _answer_of(line: bytes, path: Path) -> list[int]:
    ids = parse_json(decoded(line, str(path), TrainingError), str(path), TrainingError)
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids):
        raise TrainingError(f"{path} holds more than answers. Remove it to have them written anew.")
    return ids
