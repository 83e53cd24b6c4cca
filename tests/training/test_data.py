"""The three formats, and which of their tokens count as answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx.checkpoint.read import load_tokenizer
from orthrus_mlx.errors import DataError
from orthrus_mlx.training.data import Example, fit, read_split

from .conftest import TEMPLATE, base_config, chat, write_jsonl, write_tokenizer


@pytest.fixture
def tokenizer(tokenizer_dir: Path, tmp_path: Path) -> Any:
    return tokenizer_in(tokenizer_dir)


def tokenizer_in(folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(base_config()))
    return load_tokenizer(folder)


def read(folder: Path, tokenizer: Any, *records: Any) -> list[Example]:
    write_jsonl(folder / "train.jsonl", list(records))
    return read_split(folder, "train", tokenizer, {})


def answers(example: Example, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(example.ids[a.start : a.end]) for a in example.answers]


def test_every_assistant_turn_is_an_answer_with_its_end(tmp_path: Path, tokenizer: Any) -> None:
    record = chat(("n9 n3", "n3 n4"), ("n8 n1", "n1"))
    [example] = read(tmp_path, tokenizer, record)
    assert answers(example, tokenizer) == ["n3 n4 <|im_end|>", "n1 <|im_end|>"]
    assert tokenizer.decode(example.ids) == (
        "<|im_start|> user n9 n3 <|im_end|> <|im_start|> assistant n3 n4 <|im_end|> "
        "<|im_start|> user n8 n1 <|im_end|> <|im_start|> assistant n1 <|im_end|>"
    )


def test_a_prompt_and_completion_is_a_chat_of_one_turn(tmp_path: Path, tokenizer: Any) -> None:
    record = {"prompt": "n9 n3", "completion": "n3 n4"}
    pair, same = read(tmp_path, tokenizer, record, chat(("n9 n3", "n3 n4")))
    assert (pair.ids.tolist(), pair.answers) == (same.ids.tolist(), same.answers)


def test_all_of_a_text_is_an_answer_and_it_ends(tmp_path: Path, tokenizer: Any) -> None:
    [example] = read(tmp_path, tokenizer, {"text": "n1 n2 n3 "})
    assert answers(example, tokenizer) == ["n1 n2 n3 <|im_end|>"]
    assert example.answers[0].end == len(example.ids) == 4


def test_a_template_that_rewrites_earlier_turns_gives_one_text_a_turn(tmp_path: Path) -> None:
    # As Qwen3's does with thinking: only the last answer is written with its mark, here n0.
    marked = TEMPLATE.replace(
        "m.content", "('n0 ' if loop.last and m.role == 'assistant' else '') + m.content"
    )
    tokenizer = tokenizer_in(write_tokenizer(tmp_path, marked))
    examples = read(tmp_path, tokenizer, chat(("n9 n3", "n3 n4"), ("n8 n1", "n1")))
    assert [answers(e, tokenizer) for e in examples] == [
        ["n0 n3 n4 <|im_end|>"],
        ["n0 n1 <|im_end|>"],
    ]
    assert "assistant n3 n4" in tokenizer.decode(examples[1].ids)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{oops", "cannot be read as JSON"),
        ("[1]", "expected an object"),
        ({"question": "?"}, "no messages, no prompt and completion, no text"),
        ({"messages": "hello"}, "should be a list"),
        ({"messages": [{"role": "user", "content": "n9"}]}, "no assistant turn"),
        ({"text": ""}, "text is ''"),
        ({"prompt": "n9", "completion": 3}, "completion is 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: Any, record: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        read(tmp_path, tokenizer, {"text": "n1 n2"}, "", record)
    assert "train.jsonl:3" in str(error.value)


def test_chats_need_a_template(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / "chat_template.jinja").unlink()
    tokenizer = tokenizer_in(folder)
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*no chat template"):
        read(tmp_path, tokenizer, chat(("n9 n3", "n3")))
    assert len(read(tmp_path, tokenizer, {"text": "n1 n2"})) == 1


def test_a_cut_text_keeps_the_answers_that_begin_in_time(tmp_path: Path, tokenizer: Any) -> None:
    examples = read(tmp_path, tokenizer, chat(("n9 n3", "n3 n4"), ("n8 n1", "n1")))
    start = examples[0].answers[1].start
    [cut] = fit(examples, start)
    assert len(cut.ids) == start
    assert cut.answers == examples[0].answers[:1]
    [cut] = fit(examples, start + 1)
    assert [a.end - a.start for a in cut.answers] == [3, 1]
    assert fit(examples, examples[0].answers[0].start) == []


def test_a_missing_split_is_empty_but_a_missing_folder_is_an_error(
    tmp_path: Path, tokenizer: Any
) -> None:
    assert read_split(tmp_path, "valid", tokenizer, {}) == []
    with pytest.raises(DataError, match="no folder"):
        read_split(tmp_path / "gone", "train", tokenizer, {})
