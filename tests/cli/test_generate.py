"""`orthrus-mlx generate`: where the prompt comes from, and what goes where."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import orthrus_mlx
import orthrus_mlx.generate
from orthrus_mlx.cli.stats import BY_FLAG, no_drafts_line

from .fakes import FakeGenerate, FakeModel, FakeTokenizer, response
from .test_app import invoke, plain


class Fake:
    """The model, tokenizer and `stream_generate` that the command gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = FakeTokenizer()
        self.generate = FakeGenerate("An answer")
        self.loaded: list[tuple[Any, Any]] = []
        monkeypatch.setattr(orthrus_mlx, "load", self.load)
        monkeypatch.setattr("orthrus_mlx.generate.stream_generate", self.generate)
        monkeypatch.delenv("ORTHRUS_MLX_MODEL", raising=False)

    def load(self, model: str, revision: str | None = None) -> tuple[Any, Any]:
        self.loaded.append((model, revision))
        return FakeModel(), self.tokenizer


NOT_ASKED = {
    "repetition_penalty": None, "repetition_context_size": 20, "presence_penalty": None,
    "presence_context_size": 20, "frequency_penalty": None, "frequency_context_size": 20,
    "logit_bias": {}, "written": [], "prediction": None,
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_the_answer_alone_goes_to_stdout(fake: Fake) -> None:
    result = invoke("generate", "hi", "--model", "m")
    assert result.exit_code == 0
    assert result.stdout == "An answer\n"
    assert result.stderr.splitlines() == [
        "Prompt: 20 tokens, 1000.000 tokens-per-sec",
        "Generation: 10 tokens, 50.000 tokens-per-sec",
        "Drafting: 2.00 tokens per forward, 50% of 10 drafts accepted",
        "Peak memory: 1.500 GB",
    ]


def test_no_verbose_says_nothing_else(fake: Fake) -> None:
    result = invoke("generate", "hi", "--no-verbose")
    assert (result.stdout, result.stderr) == ("An answer\n", "")


def test_the_demo_is_the_default_and_says_so(fake: Fake) -> None:
    result = invoke("generate", "hi")
    assert fake.loaded == [("demo", None)]
    first = result.stderr.splitlines()[0]
    assert "demo" in first
    assert "--model chiennv/Orthrus-Qwen3-1.7B" in first


def test_the_environment_names_a_model(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_MODEL", "some/model")
    result = invoke("generate", "hi", "--revision", "v2")
    assert fake.loaded == [("some/model", "v2")]
    assert "demo" not in result.stderr


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["hi"], None, "hi"),
        (["-p", "hi"], None, "hi"),
        (["--prompt", r"a\nb\tc"], None, "a\nb\tc"),
        ([r"a\nb"], None, r"a\nb"),
        (["-"], "from a pipe\n", "from a pipe\n"),
        (["-p", "-"], "from a pipe", "from a pipe"),
        ([], "no prompt given", "no prompt given"),
    ],
)
def test_where_the_prompt_comes_from(
    fake: Fake, args: list[str], stdin: str | None, message: str
) -> None:
    result = invoke("generate", *args, input=stdin)
    assert result.exit_code == 0, result.output
    assert fake.generate.prompts == [f"<user>{message}\n<assistant>"]


@pytest.mark.parametrize(
    ("args", "code", "problem"),
    [
        (["a", "-p", "b"], 2, "give the prompt once"),
        (["--ignore-chat-template", "--system-prompt", "x", "hi"], 2, "--ignore-chat-template"),
        (["hi", "--chat-template-config", "{"], 2, "not valid JSON"),
        (["hi", "--chat-template-config", "[" * 100_000], 2, "not valid JSON"),
        (["hi", "--chat-template-config", "[]"], 2, "must be a JSON object"),
        (["hi", "--extra-eos-token", "<bad>"], 2, "'<bad>' is not a token"),
        (["hi", "--temp", "-1"], 2, "--temp"),
        (["hi", "--top-p", "1.5"], 2, "--top-p"),
        (["hi", "--mode", "fast"], 2, "'auto', 'parallel', 'ar'"),
        (["hi", "-m", "0"], 2, "no room for an answer"),
        ([" \n"], 1, "The prompt is empty"),
        (["-"], 1, "The prompt is empty"),
        (["hi", "--chat-template-config", '{"refuse": true}'], 1, "roles must alternate"),
    ],
)
def test_bad_input(fake: Fake, args: list[str], code: int, problem: str) -> None:
    result = invoke("generate", *args)
    assert result.exit_code == code
    assert result.stdout == ""
    assert problem in plain(result.stderr)


def test_options_reach_the_engine(fake: Fake) -> None:
    result = invoke(
        "generate", "hi", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--min-p",
        "0.1", "--seed", "4", "-m", "5", "--mode", "ar", "--cycle", "one-pass", "--numerics",
        "exact", "--stop", "A", "--stop", "B", "--prefill-step-size", "64",
        "--extra-eos-token", "<end>", "--block-size", "8", "--no-calibrate",
        "--kv-bits", "8", "--kv-group-size", "32", "--quantized-kv-start", "7",
    )  # fmt: skip
    options = fake.generate.options[0]
    del options["prompt_progress_callback"], options["probe_progress_callback"]
    assert options == {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 4,
        "mode": "ar", "cycle": "one-pass", "numerics": "exact", "stop": ["A", "B"],
        "prefill_step_size": 64, "block_size": 8, "calibrate": False,
        "kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 7, **NOT_ASKED,
    }  # fmt: skip
    assert fake.tokenizer.eos_added == ["<end>"]
    assert result.stdout == "An an\n"
    assert "Seed: 4" in result.stderr


def test_the_defaults_are_those_of_mlx_lm(fake: Fake) -> None:
    invoke("generate", "hi")
    options = fake.generate.options[0]
    del options["prompt_progress_callback"], options["probe_progress_callback"]
    assert options == {
        "max_tokens": 100, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "seed": None, "mode": "auto", "cycle": "auto", "numerics": "fast", "stop": [],
        "prefill_step_size": 2048, "block_size": None, "calibrate": True,
        "kv_bits": None, "kv_group_size": 64, "quantized_kv_start": 5000, **NOT_ASKED,
    }  # fmt: skip


def test_system_prompt_and_template_config(fake: Fake) -> None:
    invoke(
        "generate", "hi", "--system-prompt", "Be kind.",
        "--chat-template-config", '{"opening": "So: "}',
    )  # fmt: skip
    assert fake.generate.prompts == ["<system>Be kind.\n<user>hi\n<assistant>So: "]


def test_the_raw_prompt(fake: Fake) -> None:
    invoke("generate", "Once upon", "--ignore-chat-template")
    assert fake.generate.prompts == ["Once upon"]


def test_without_a_template_the_prompt_is_sent_raw_and_that_is_said(fake: Fake) -> None:
    fake.tokenizer.has_chat_template = False
    result = invoke("generate", "Once upon", "--model", "m")
    assert fake.generate.prompts == ["Once upon"]
    assert "no chat template" in result.stderr.splitlines()[0]


def test_without_a_template_a_system_prompt_is_an_error(fake: Fake) -> None:
    fake.tokenizer.has_chat_template = False
    result = invoke("generate", "hi", "--system-prompt", "x", "--model", "m")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: This tokenizer has no chat template")


def test_an_answer_that_ends_its_line_gets_no_second_end(fake: Fake) -> None:
    fake.generate.answers = ["one\n"]
    assert invoke("generate", "hi").stdout == "one\n"


def test_ctrl_c_keeps_the_terminal_tidy(fake: Fake) -> None:
    fake.generate.answers = [["An ans", KeyboardInterrupt()]]
    result = invoke("generate", "hi")
    assert result.exit_code == 130
    assert result.stdout == "An ans\n"
    assert result.stderr.splitlines()[-1] == "Stopped by Ctrl-C."
    assert fake.generate.closed == 1


def run(*args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "generate", *args],
        capture_output=True,
        text=True,
        input=stdin or "",
        env=os.environ | env,
    )


def test_a_real_answer_through_a_pipe(measured_tiny16: Path, tiny16_golden: Any) -> None:
    from orthrus_mlx.checkpoint.read import load_tokenizer

    golden = tiny16_golden[0]
    result = run("--model", str(measured_tiny16), stdin=golden["question"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == load_tokenizer(measured_tiny16).decode(golden["tokens"][:-1]) + "\n"
    assert "tokens per forward" in result.stderr


def test_the_demo_answers_where_nothing_was_measured_before(tmp_path: Path) -> None:
    """The first start of all, as in `make demo`: the bundled checkpoint, and a calibration."""
    cache = tmp_path / "cache"
    question = "If a rectangle has length 12 and width 7, what is its area?"
    result = run(question, ORTHRUS_MLX_CACHE=str(cache))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "The area is 84."
    assert list(cache.iterdir())  # so that the second start need not calibrate


def test_a_reader_that_goes_away_is_no_error(measured_tiny16: Path) -> None:
    command = (
        f"{sys.executable} -m orthrus_mlx.cli generate --model {measured_tiny16} hi --no-stdin"
    )
    result = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True
    )
    assert result.returncode == 141
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.mark.parametrize(
    ("args", "stdin", "environment", "message"),
    [
        (["Summarise"], "notes\n", {}, "notes\n\nSummarise"),
        (["-p", "Summarise"], "  a\n  b\n\n", {}, "  a\n  b\n\nSummarise"),
        (["Summarise"], "", {}, "Summarise"),
        (["Summarise"], " \n", {}, "Summarise"),
        (["Summarise", "--no-stdin"], "notes", {}, "Summarise"),
        (["Summarise"], "notes", {"MLX_RANK": "0"}, "Summarise"),
        (["-"], "notes", {"MLX_RANK": "0"}, "notes"),
    ],
)
def test_what_a_pipe_brings_stands_before_the_prompt(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    stdin: str,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = invoke("generate", *args, input=stdin)
    assert result.exit_code == 0, result.output
    assert fake.generate.prompts == [f"<user>{message}\n<assistant>"]


@pytest.mark.parametrize(
    ("args", "environment"),
    [(["--no-stdin"], {}), ([], {"MLX_RANK": "1"}), (["-", "--no-stdin"], {})],
)
def test_without_prompt_or_standard_input_nothing_is_sent(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, args: list[str], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert invoke("generate", *args, input="notes").exit_code == 2


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["generate", "hi"], "Waiting for standard input to end; --no-stdin does without it."),
        (["generate"], "Waiting for standard input to end."),
        (["chat"], "Waiting for a message on standard input."),
    ],
)
def test_waiting_for_standard_input_is_said(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, command: list[str], line: str
) -> None:
    monkeypatch.setattr("orthrus_mlx.session.stream_generate", fake.generate)
    monkeypatch.setattr("orthrus_mlx.cli.console.PATIENCE", 0.05)

    class Slow(io.BytesIO):
        def read(self, *size: Any) -> bytes:
            time.sleep(0.3)
            return super().read(*size)

        read1 = read

    monkeypatch.setattr("typer.testing.make_input_stream", lambda *_: Slow(b"there\n"))
    result = invoke(*command, "--model", "m")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines().count(line) == 1


def test_an_answer_that_is_cut_says_why(fake: Fake) -> None:
    result = invoke("generate", "hi", "-m", "3", "--model", "m")
    assert result.stdout == "An \n"
    assert result.stderr.splitlines()[-1] == (
        "Cut off at max_tokens (3): --max-tokens 6 for more, -1 for all that fits."
    )
    fake.generate.answers = ["An answer"]
    assert invoke("generate", "hi", "-m", "3", "--no-verbose").stderr == ""


@pytest.mark.parametrize(
    ("mode", "drafted", "tokens", "said"),
    [("auto", 0, 40, True), ("auto", 3, 40, False), ("auto", 0, 5, False), ("ar", 0, 40, False)],
)
def test_why_auto_does_not_draft(mode: str, drafted: int, tokens: int, said: bool) -> None:
    last = response("x", tokens, 3, "stop")
    last.drafted_tokens = drafted
    line = no_drafts_line(last, mode, BY_FLAG)
    assert (line is not None) == said
    assert line is None or "--mode parallel" in line
