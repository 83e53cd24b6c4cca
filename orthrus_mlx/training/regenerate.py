"""Replace answers with the base model's own greedy ones, which the view will have to draft."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.plain import plain_qwen3
from ..errors import DataError, OutputError
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
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    whole, rest = lines[:-1], lines[-1]
    if rest:
        path.write_bytes(b"".join(line + b"\n" for line in whole))
    return [json.loads(line) for line in whole]
