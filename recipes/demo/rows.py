"""Turn conversations into rows of token ids of one length, with the tokens to learn marked."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .corpus import Message
from .tokenizer import END, START

BATCH = 20_000


def read(path: Path) -> Iterator[list[Message]]:
    """The conversations of a JSON-lines file in mlx-lm's chat format."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["messages"]


def _batches(conversations: Iterable[list[Message]]) -> Iterator[list[list[Message]]]:
    batch: list[list[Message]] = []
    for messages in conversations:
        batch.append(messages)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def encode(
    conversations: Iterable[list[Message]], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of each conversation, and which of them the assistant wrote (its end token too)."""
    head = len(tokenizer.encode(f"{START}assistant\n").ids)
    for batch in _batches(conversations):
        # Special tokens separate messages, so encoding them one by one changes nothing.
        pieces = [f"{START}{m['role']}\n{m['content']}{END}\n" for c in batch for m in c]
        encoded = iter(tokenizer.encode_batch_fast(pieces))
        for messages in batch:
            ids: list[int] = []
            learn: list[bool] = []
            for message in messages:
                piece = next(encoded).ids
                mine = message["role"] == "assistant"
                ids += piece
                learn += [False] * head + [mine] * (len(piece) - head - 1) + [False]
            yield np.array(ids, np.uint16), np.array(learn, bool)


def pack(
    encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole conversations, put together where they fit: ids and learn, [rows, length].

    A row reads like a chat that changes its subject. Conversations longer than a row are left out.
    """
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    open_rows: list[tuple[int, int]] = []  # (space left, row), a few at a time
    for ids, learn in encoded:
        size = len(ids)
        if size > length:
            continue
        # The fullest row that still has the space.
        fit = min((entry for entry in open_rows if entry[0] >= size), default=None)
        if fit is None:
            rows.append([])
            fit = (length, len(rows) - 1)
        else:
            open_rows.remove(fit)
        rows[fit[1]].append((ids, learn))
        if fit[0] - size > 16:
            open_rows.append((fit[0] - size, fit[1]))
        if len(open_rows) > 32:
            open_rows.remove(min(open_rows))
    tokens = np.full((len(rows), length), pad, np.uint16)
    learned = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        start = 0
        for ids, learn in row:
            tokens[i, start : start + len(ids)] = ids
            learned[i, start : start + len(ids)] = learn
            start += len(ids)
    return tokens, learned
