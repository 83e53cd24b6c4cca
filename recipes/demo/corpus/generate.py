"""Draw conversations, chain them, and write the data files of the recipe."""

import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .code import word_frequency
from .core import KINDS, Answer, Message, Sample, dialogue, draw, pick
from .geometry import rectangle_area

SYSTEM = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a helpful assistant. Answer clearly.",
    "You are the demo model of orthrus-mlx.",
    "Be helpful and precise.",
    "You help people with small tasks.",
)
SYSTEM_SHARE = 0.06
PINNED_SHARE = 0.004
CHAINED_SHARE = 0.2
CHAINED_CHARACTERS = 700
CHUNK = 2_000
RECTANGLE = "If a rectangle has length 12 and width 7, what is its area?"


@dataclass(frozen=True)
class Question:
    """A held-out question: the conversation up to it, and the one right answer if it has one."""

    kind: str
    prompt: list[Message]
    answer: Answer | None

    def as_json(self) -> str:
        """One line of the evaluation file."""
        answer = None if self.answer is None else [self.answer.how, self.answer.value]
        return json.dumps({"kind": self.kind, "prompt": self.prompt, "answer": answer})

    @classmethod
    def from_json(cls, line: str) -> "Question":
        """The question that `as_json` wrote."""
        record = json.loads(line)
        answer = None if record["answer"] is None else Answer(*record["answer"])
        return cls(record["kind"], record["prompt"], answer)


def pinned(rng: random.Random) -> Sample:
    """One of the two example prompts of the paper's README, word for word."""
    if rng.random() < 0.5:
        return word_frequency(rng, pinned=True)
    return dialogue([rectangle_area(RECTANGLE, 12, 7, "")])


def _one(rng: random.Random, *, held: bool = False) -> Sample:
    return draw(pick(rng, [(kind, kind.weight) for kind in KINDS.values()]), rng, held=held)


def _length(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def conversation(seed: int, index: int) -> list[Message]:
    """The training conversation of this number: the same for any number of workers."""
    rng = random.Random(f"{seed}/{index}")
    if rng.random() < PINNED_SHARE:
        return pinned(rng).messages
    messages = _one(rng).messages
    # Real chats change their subject: put some unrelated conversations together.
    if rng.random() < CHAINED_SHARE:
        for _ in range(rng.randint(1, 4)):
            more = _one(rng).messages
            if _length(messages) + _length(more) < CHAINED_CHARACTERS:
                messages = messages + more
    if rng.random() < SYSTEM_SHARE:
        messages = [{"role": "system", "content": rng.choice(SYSTEM)}, *messages]
    return messages


def _chunk(job: tuple[int, int, int]) -> list[str]:
    seed, start, stop = job
    return [json.dumps({"messages": conversation(seed, i)}) for i in range(start, stop)]


def training(count: int, *, seed: int, workers: int | None = None) -> Iterator[str]:
    """JSON lines of training conversations, drawn by several processes."""
    jobs = [(seed, i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield from _chunk(job)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for lines in pool.imap(_chunk, jobs):
            yield from lines


def evaluation(per_kind: int, *, seed: int) -> list[Question]:
    """Held-out questions of every kind; no two are alike."""
    questions: list[Question] = []
    for kind in KINDS.values():
        rng, seen = random.Random(f"{seed}/{kind.name}"), set[str]()
        for _ in range(50 * per_kind):
            if len(seen) == per_kind:
                break
            sample = draw(kind, rng, held=True)
            text = json.dumps(sample.messages[:-1])
            if text not in seen:
                seen.add(text)
                questions.append(Question(kind.name, sample.messages[:-1], sample.answer))
    return questions


def _held_out_conversations(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(f"{seed}/valid")
    for _ in range(count):
        yield json.dumps({"messages": _one(rng, held=True).messages})


def write(
    folder: Path,
    *,
    train: int,
    valid: int,
    per_kind: int,
    seed: int,
    workers: int | None = None,
) -> None:
    """Write train.jsonl and valid.jsonl (mlx-lm's chat format) and heldout.jsonl (evaluation)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in training(train, seed=seed, workers=workers))
    with (folder / "valid.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _held_out_conversations(valid, seed))
    with (folder / "heldout.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f"{q.as_json()}\n" for q in evaluation(per_kind, seed=seed))
