"""Read `train.jsonl` and `valid.jsonl` into token ids and the spans of their answers.

The formats are mlx-lm's, one JSON object a line:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}
    {"text": "..."}

The first two go through the chat template, and every assistant turn is an answer. A text is one
answer as a whole. The end token is part of an answer.

mlx-lm's own readers (`mlx_lm.tuner.datasets`) do not serve here: they mark at most one answer a
conversation, take the format of all lines from the first, and name no line in an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..chat.prompt import render_chat
from ..errors import ChatTemplateError, DataError
from ..files import parse_json, read_lines

ENCODED_AT_ONCE = 1000  # conversations
FORMATS = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}, '
    '{"prompt": "...", "completion": "..."} or {"text": "..."}'
)


class Span(NamedTuple):
    """The ids `start` to `end - 1` of a text: an answer."""

    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Example:
    """A text to train on: its ids, and its answers in order."""

    ids: NDArray[np.int32]
    answers: list[Span]


class Segment(NamedTuple):
    """A part of a conversation, as the template wrote it."""

    text: str
    answer: bool


def read_split(
    folder: Path, split: str, tokenizer: Any, template_config: dict[str, Any]
) -> list[Example]:
    """The examples in `folder/SPLIT.jsonl`; none if there is no such file.

    Raises:
        DataError: naming the file, the line and what is wrong with it.
    """
    path = folder / f"{split}.jsonl"
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; give one that holds train.jsonl.")
    if not os.path.lexists(path):
        return []
    conversations: list[list[Segment]] = []
    for where, record in read_records(path):
        conversations += _segments(record, where, tokenizer, template_config)
    return list(_encode(conversations, tokenizer))


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, object) for each line of a jsonl file that is not empty.

    Raises:
        DataError: for a line that is no JSON object.
    """
    for number, line in read_lines(path, DataError):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_json(line, where, DataError)
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object such as {FORMATS}.")
        yield where, record


def _segments(
    record: dict[str, Any], where: str, tokenizer: Any, template_config: dict[str, Any]
) -> list[list[Segment]]:
    """A record as one conversation, or several where the template rewrites earlier turns."""
    if "messages" in record:
        messages = _checked_messages(record["messages"], where)
    elif "prompt" in record and "completion" in record:
        prompt, completion = (_text(record, key, where) for key in ("prompt", "completion"))
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
    elif "text" in record:
        text, end = _text(record, "text", where), tokenizer.eos_token or ""
        return [[Segment(text if text.endswith(end) else text + end, True)]]
    else:
        raise DataError(
            f"{where}: no messages, no prompt and completion, no text. Expected {FORMATS}."
        )
    template = {"tools": record["tools"]} if record.get("tools") else {}
    try:
        return _render(messages, tokenizer, {**template_config, **template})
    except ChatTemplateError as e:
        raise DataError(f"{where}: {e}") from e


def _checked_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages
    ):
        raise DataError(f'{where}: messages should be a list of {{"role": ..., "content": ...}}.')
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{where}: no assistant turn, so there is no answer to train on.")
    return messages


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {key} is {value!r}; expected text.")
    return value


def _render(
    messages: list[dict[str, Any]], tokenizer: Any, template: dict[str, Any]
) -> list[list[Segment]]:
    """Conversations of alternating prompts and answers, as a chat would produce them."""
    if not tokenizer.has_chat_template:
        raise ChatTemplateError(
            "the tokenizer has no chat template to lay out a conversation; put a "
            'chat_template.jinja beside it, or train on {"text": ...}.'
        )

    def written(upto: int, prompt: bool) -> str:
        return render_chat(
            tokenizer, messages[:upto], {"add_generation_prompt": prompt, **template}
        )

    conversations: list[list[Segment]] = []
    before = ""  # text of the current conversation so far
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = written(place, True), written(place + 1, False)
        if not whole.startswith(prompt):
            raise ChatTemplateError(
                f"the chat template does not write the answer of message {place + 1} where its "
                "generation prompt ends, so a model never sees it as it stands."
            )
        # Some templates rewrite earlier turns (they drop the thinking): start a new conversation.
        if not conversations or not prompt.startswith(before):
            conversations.append([])
            before = ""
        answer, rest = _cut_after_end(whole[len(prompt) :], tokenizer)
        conversations[-1] += [Segment(prompt[len(before) :], False), Segment(answer, True)]
        before = whole.removesuffix(rest)
    return conversations


def _cut_after_end(answer: str, tokenizer: Any) -> tuple[str, str]:
    """An answer up to its end token, and what the template writes after it (a newline, say)."""
    ends = tokenizer.convert_ids_to_tokens(sorted(tokenizer.eos_token_ids))
    places = [at + len(end) for end in ends if end and (at := answer.rfind(end)) >= 0]
    cut = max(places, default=len(answer))
    return answer[:cut], answer[cut:]


def _encode(conversations: Sequence[list[Segment]], tokenizer: Any) -> Iterator[Example]:
    """Encode conversations, many per call, each segment on its own as in a chat."""
    encode = tokenizer._tokenizer  # the wrapped tokenizer takes many texts
    for at in range(0, len(conversations), ENCODED_AT_ONCE):
        chunk = conversations[at : at + ENCODED_AT_ONCE]
        texts = [segment.text for conversation in chunk for segment in conversation]
        encoded = iter(encode(texts, add_special_tokens=False, verbose=False)["input_ids"])
        for conversation in chunk:
            ids: list[int] = []
            answers = []
            for segment in conversation:
                start = len(ids)
                ids += next(encoded)
                if segment.answer:
                    answers.append(Span(start, len(ids)))
            yield Example(np.array(ids, np.int32), answers)


def fit(examples: Sequence[Example], max_length: int) -> list[Example]:
    """The examples cut to `max_length` ids, without those that have no answer left."""
    kept = []
    for example in examples:
        ids = example.ids[:max_length]
        answers = [Span(a.start, min(a.end, len(ids))) for a in example.answers]
        # An answer's first id can only be drafted after an anchor, so one id must precede it.
        answers = [a for a in answers if a.end - max(a.start, 1) > 0]
        if answers:
            kept.append(Example(ids, answers))
    return kept
