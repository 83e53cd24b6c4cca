"""`orthrus-mlx chat` without a terminal: lines in, answers out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import orthrus_mlx
import orthrus_mlx.session

from .fakes import FakeGenerate, FakeModel, FakeTokenizer
from .test_app import invoke, plain


class Fake:
    """The model, tokenizer and `stream_generate` that the command gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = FakeTokenizer()
        self.generate = FakeGenerate("one", "two")
        monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: (FakeModel(), self.tokenizer))
        monkeypatch.setattr("orthrus_mlx.session.stream_generate", self.generate)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_a_conversation_through_a_pipe(fake: Fake) -> None:
    result = invoke("chat", "--model", "m", input="first\n/stats\nsecond\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n"
    assert fake.generate.prompts == ["<user>first\n<assistant>", "\n<user>second\n<assistant>"]
    assert "(26 reused)" in result.stderr
    assert "  1 answer, 4 tokens" in result.stderr


def test_defaults_are_those_of_mlx_lm(fake: Fake) -> None:
    invoke("chat", input="hi\n")
    options = fake.generate.options[0]
    for name, value in {"max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": 0}.items():
        assert options[name] == value


def test_system_prompt_and_template_config(fake: Fake) -> None:
    config = '{"opening": "So: "}'
    args = ("--system-prompt", "Be kind.", "--chat-template-config", config)
    invoke("chat", *args, input="hi\n")
    assert fake.generate.prompts == ["<system>Be kind.\n<user>hi\n<assistant>So: "]


def test_load_goes_on_where_a_conversation_stopped(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    result = invoke("chat", input=f"hi\n/save {path}\n")
    assert result.exit_code == 0
    result = invoke("chat", "--load", str(path), input="more\n/save\n")
    assert f"Loaded 1 turn from {path}; the last was: hi" in result.stderr
    assert fake.generate.prompts[1] == "<user>hi\n<assistant>one\n<user>more\n<assistant>"
    assert len(json.loads(path.read_text())["messages"]) == 4


def test_a_file_that_does_not_load_is_told_before_the_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: pytest.fail("loaded"))
    result = invoke("chat", "--load", str(tmp_path / "none.json"))
    assert result.exit_code == 1
    assert result.stderr == f"error: There is no file {tmp_path / 'none.json'}.\n"


def test_a_failure_ends_a_script(fake: Fake) -> None:
    fake.generate.answers = ["one"]
    result = invoke("chat", input="hi\n/nonsense\nmore\n")
    assert result.exit_code == 1
    assert result.stdout == "one\n"
    assert "No command is called /nonsense." in result.stderr


def test_a_tokenizer_without_template(fake: Fake) -> None:
    fake.tokenizer.has_chat_template = False
    result = invoke("chat", "--model", "m", input="hi\n")
    assert result.exit_code == 1
    assert "no chat template" in result.stderr


def test_bad_options_are_usage_errors(fake: Fake) -> None:
    for args in (["--seed", "-1"], ["--top-p", "2"], ["-m", "0"], ["--cycle", "three-pass"]):
        result = invoke("chat", *args, input="hi\n")
        assert result.exit_code == 2
        assert args[0] in plain(result.stderr)


def test_a_real_conversation_through_a_pipe(measured_tiny16: Path, tiny16_golden: Any) -> None:
    from orthrus_mlx.checkpoint.load import load_tokenizer

    golden = tiny16_golden[0]
    answer = load_tokenizer(measured_tiny16).decode(golden["tokens"][:-1])
    result = subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "chat", "--model", str(measured_tiny16)],
        input=f"{golden['question']}\n/reset\n{golden['question']}\n",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{answer}\n" * 2
