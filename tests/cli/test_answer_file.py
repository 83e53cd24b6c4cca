"""`orthrus-mlx generate --prompts`: a file in, a file out, and a run that was interrupted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import orthrus_mlx
from orthrus_mlx import mlx_generate
from orthrus_mlx.batches import BatchEngine
from orthrus_mlx.decoding.cost_model import NOMINAL
from orthrus_mlx.errors import OutputError
from orthrus_mlx.tools.answer_file import Progress, answer_file, read_prompts
from tests import helpers
from tests.api.texts import byte_tokenizer
from tests.lossless.random_models import build

from .test_app import invoke

LINES = [
    {"prompt": "one"},
    {"prompt": "two, and more", "id": "b", "max_tokens": 5, "temperature": 0.9, "seed": 3},
    {"messages": [{"role": "user", "content": "three"}]},
    {"prompt": "four", "stop": ["a"]},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def model() -> Any:
    config = helpers.random_config(block_size=4, vocab_size=300)
    return build(config, helpers.random_weights(config))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


COMMON: dict[str, Any] = {"max_tokens": 12, "mode": "ar", "seed": 1}


def run(model: Any, tokenizer: Any, prompts: Path, output: Path, **more: Any) -> Any:
    options = COMMON | more
    return answer_file(model, tokenizer, read_prompts(prompts), output, options, raw=True)


def test_measuring_for_several_at_once_says_how_far_it_is(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: Any, block: int, say: Any) -> Any:
        say(1, 2)
        return NOMINAL

    monkeypatch.setattr("orthrus_mlx.batches.batch_costs", measured)
    said: list[tuple[int, int]] = []
    options = {**COMMON, "mode": "auto"}
    asked = read_prompts(prompts)
    callback = {"probe_progress_callback": lambda *steps: said.append(steps)}
    answer_file(model, tokenizer, asked, tmp_path / "answers.jsonl", options, raw=True, **callback)
    assert (1, 2) in said


def test_speed_does_not_count_the_time_of_measuring(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def answered(*_: Any, progress: Any, probe_progress_callback: Any, **__: Any) -> Any:
        progress(Progress(0, 4, 0))
        clock[0] = 100.0
        probe_progress_callback(1, 1)
        clock[0] = 110.0
        return Progress(4, 4, 50)

    monkeypatch.setattr("orthrus_mlx.cli.answer_file.perf_counter", lambda: clock[0])
    monkeypatch.setattr("orthrus_mlx.tools.answer_file.answer_file", answered)
    output = str(tmp_path / "answers.jsonl")
    result = invoke("generate", "--prompts", str(prompts), "--output", output)
    assert "Generation: 50 tokens, 5.000 tokens-per-sec" in result.stderr


def test_answers_stand_in_the_order_of_the_prompts(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    end = run(model, tokenizer, prompts, output)
    found = answers(output)
    assert [a["line"] for a in found] == [1, 2, 3, 4] and end.done == end.total == 4
    assert [a.get("id") for a in found] == [None, "b", None, None]
    ids = tokenizer.encode("two, and more", add_special_tokens=True)
    options = {"mode": "ar", "temperature": 0.9, "seed": 3}
    alone = list(mlx_generate(model, ids, tokenizer.eos_token_ids, 5, **options))
    assert found[1]["generation_tokens"] == len(alone) and found[1]["seed"] == 3
    assert found[1]["prompt_tokens"] == len(ids)
    assert "a" not in found[3]["text"]


@pytest.mark.parametrize("keep", [0, 1, 3, 4])
@pytest.mark.parametrize("torn", [b"", b'{"line": 2, "te'])
def test_a_run_goes_on_behind_the_whole_lines(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path, keep: int, torn: bytes
) -> None:
    output = tmp_path / "answers.jsonl"
    run(model, tokenizer, prompts, output)
    whole = output.read_bytes()
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:keep]) + torn)
    end = run(model, tokenizer, prompts, output)
    assert output.read_bytes() == whole
    assert end.tokens <= 12 * (4 - keep)


def test_two_runs_do_not_write_to_one_file(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"

    def another(_: Progress) -> None:
        with pytest.raises(OutputError, match="Another run writes"):
            run(model, tokenizer, prompts, output)

    asked = read_prompts(prompts)
    answer_file(model, tokenizer, asked, output, COMMON, raw=True, progress=another)
    assert [answer["line"] for answer in answers(output)] == [1, 2, 3, 4]
    run(model, tokenizer, prompts, output)  # it is let go in the end


def test_an_interrupt_leaves_whole_lines(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, step, steps = tmp_path / "answers.jsonl", BatchEngine.step, [0]

    def interrupted(engine: BatchEngine) -> Any:
        steps[0] += 1
        if steps[0] == 14:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(BatchEngine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tokenizer, prompts, output)
    before = answers(output)
    assert len(before) < 4
    run(model, tokenizer, prompts, output)
    assert answers(output)[: len(before)] == before and len(answers(output)) == 4


def test_answers_to_other_requests_are_not_gone_on_with(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    run(model, tokenizer, prompts, output)
    with pytest.raises(OutputError, match="other prompts, or written with other options"):
        run(model, tokenizer, prompts, output, max_tokens=13)
    output.write_text("notes of mine\n")
    with pytest.raises(OutputError, match="remove it to start again"):
        run(model, tokenizer, prompts, output)
    assert output.read_text() == "notes of mine\n"


def test_a_line_that_cannot_be_answered_has_its_error(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    prompts.write_text('{"prompt": "one", "temperature": -1}\n{"prompt": "two"}\n')
    output = tmp_path / "answers.jsonl"
    run(model, tokenizer, prompts, output)
    first, second = answers(output)
    assert "temperature is -1" in first["error"] and "text" not in first
    assert second["generation_tokens"] > 0


def test_several_messages_are_not_sent_as_one(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    turn = '{"role": "user", "content": "a"}'
    prompts.write_text(f'{{"messages": [{turn}, {turn}]}}\n{{"messages": [{turn}]}}\n')
    output = tmp_path / "answers.jsonl"
    run(model, tokenizer, prompts, output)
    first, second = answers(output)
    assert "need a chat template" in first["error"] and second["generation_tokens"] > 0


def test_answers_go_to_a_regular_file(
    model: Any, tokenizer: Any, prompts: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(OutputError, match=f"it is {kind}"):
            run(model, tokenizer, prompts, output)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ""}', "line 1: expected"),
        ('{"prompt": "a", "messages": []}', "line 1: expected"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 1: expected"),
        ('{"prompt": "a", "tempreature": 1}', "'tempreature' is no field"),
        ("[1]", "line 1: expected an object"),
        ("", "holds no prompt"),
    ],
)
def test_unusable_files(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(orthrus_mlx.DataError, match=message):
        read_prompts(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "p.jsonl"), "go together"),
        (("--output", "a.jsonl"), "go together"),
        (("hi", "--prompts", "p.jsonl", "--output", "a.jsonl"), "cannot be combined"),
    ],
)
def test_flags_that_do_not_go_together(arguments: Any, message: str) -> None:
    result = invoke("generate", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_the_command_answers_with_the_demo(prompts: Path, tmp_path: Path) -> None:
    prompts.write_text('{"prompt": "What is 2 + 2?"}\n{"prompt": "Who are you?"}\n')
    output = tmp_path / "answers.jsonl"
    command = ("--prompts", str(prompts), "--output", str(output), "-m", "8", "--mode", "ar")
    result = invoke("generate", *command)
    assert result.exit_code == 0 and result.stdout == ""
    assert "Answers: 2 in" in result.stderr
    assert [a["finish_reason"] for a in answers(output)] == ["length", "length"]
    again = invoke("generate", *command)
    assert "2 lines were there already" in again.stderr
    other = invoke("generate", *command, "--extra-eos-token", "4")
    assert other.exit_code == 1 and "written with other options" in other.stderr


def test_a_damaged_line_is_named_before_a_model_is_waited_for(prompts: Path) -> None:
    prompts.write_text('{"prompt": "one"}\n{"prompt"\n')
    command = ("--prompts", str(prompts), "--output", "a.jsonl", "--model", "no/such/model")
    result = invoke("generate", *command)
    assert result.exit_code == 1 and "line 2" in result.stderr


def test_lines_that_could_not_be_answered_are_counted(prompts: Path, tmp_path: Path) -> None:
    prompts.write_text('{"prompt": "hi", "top_k": "x"}\n{"prompt": "hi", "max_tokens": 2}\n')
    command = ("--prompts", str(prompts), "--output", str(tmp_path / "answers.jsonl"))
    for more in ((), ("--no-verbose",)):
        result = invoke("generate", *command, "--mode", "ar", *more)
        assert result.exit_code == 0
        assert '1 line has an "error" in place of an answer.' in result.stderr
        assert ("Answers: 1 in" in result.stderr) is not bool(more)
