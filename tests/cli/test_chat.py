"""`orthrus-mlx chat` without a terminal: lines in, answers out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import orthrus_mlx
import orthrus_mlx.session
from orthrus_mlx.cli.conversation import Conversation, Turn
from orthrus_mlx.cli.last_chat import _weights, keep_last, last_chat_path
from orthrus_mlx.cli.reader import LineReader
from orthrus_mlx.errors import PromptError

from .fakes import FakeGenerate, FakeModel, FakeSession, FakeTokenizer, notes
from .test_app import invoke, plain
from .test_repl import make


class Fake:
    """The model, tokenizer and `stream_generate` that the command gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokenizer = FakeTokenizer()
        self.model: Any = FakeModel()
        self.generate = FakeGenerate("one", "two")
        self.loaded: list[str] = []
        monkeypatch.setattr(orthrus_mlx, "load", self.load)
        monkeypatch.setattr("orthrus_mlx.session.stream_generate", self.generate)
        monkeypatch.setattr("orthrus_mlx.generate.stream_generate", self.generate)

    def load(self, model: str, revision: str | None = None) -> tuple[Any, Any]:
        self.loaded.append(model)
        return self.model, self.tokenizer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def test_a_conversation_through_a_pipe(fake: Fake) -> None:
    result = invoke("chat", "--model", "m", input="first\nsecond\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n"
    assert fake.generate.prompts == ["<user>first\n<assistant>", "\n<user>second\n<assistant>"]
    assert "(26 reused)" in result.stderr


@pytest.mark.parametrize("end", ["/bye\nnever sent\n", "  /bye \nnever sent", ""])
def test_from_a_pipe_every_line_is_a_message_but_bye(fake: Fake, tmp_path: Path, end: str) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    lines = [
        f"/save! {kept}", "/quit", "/clear", "/nonsense", '"""', "/set temp 1", "/?", "/no_think x",
    ]  # fmt: skip
    fake.generate.answers = ["."] * len(lines)
    result = invoke("chat", "--model", "m", input="\n".join(lines) + "\n" + end)
    assert result.exit_code == 0, result.output
    assert result.stdout == ".\n" * len(lines)
    assert kept.read_text() == "mine"
    assert [options["temperature"] for options in fake.generate.options] == [0.0] * len(lines)
    assert [p.rpartition("<user>")[2].partition("\n<")[0] for p in fake.generate.prompts] == lines


def test_a_fresh_chat_is_greedy_and_has_a_fresh_seed(fake: Fake) -> None:
    """As in mlx-lm, unless the checkpoint says otherwise; the engine draws the seed."""
    invoke("chat", input="hi\n")
    options = fake.generate.options[0]
    for name, value in {"max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": None}.items():
        assert options[name] == value


QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1]}
OWN = "Sampling as the model's generation_config.json says: "


@pytest.mark.parametrize(
    ("config", "args", "sampling", "said"),
    [
        (QWEN3, [], (0.6, 0.95, 20, 0.0), [f"{OWN}temp 0.6, top_p 0.95, top_k 20"]),
        (QWEN3, ["--top-k", "5"], (0.6, 0.95, 5, 0.0), [f"{OWN}temp 0.6, top_p 0.95"]),
        (QWEN3, ["--temp", "0"], (0.0, 0.95, 20, 0.0), []),
        ({"do_sample": True}, [], (1.0, 1.0, 0, 0.0), [f"{OWN}temp 1"]),
        ({"temperature": 0.6, "min_p": 0.1}, [], (0.6, 1.0, 0, 0.1), [f"{OWN}temp 0.6, min_p 0.1"]),
        ({"do_sample": False, "temperature": 0.6}, [], (0.0, 1.0, 0, 0.0), []),
        ({"top_k": 50}, [], (0.0, 1.0, 0, 0.0), []),
        ({}, [], (0.0, 1.0, 0, 0.0), []),
        (None, [], (0.0, 1.0, 0, 0.0), []),
    ],
)
def test_sampling_is_the_checkpoints_own_unless_flags_say_otherwise(
    fake: Fake, tmp_path: Path, config: Any, args: list[str], sampling: Any, said: list[str]
) -> None:
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    fake.model.folder = tmp_path
    result = invoke("chat", "--model", "m", *args, input="hi\n")
    options = fake.generate.options[0]
    assert tuple(options[k] for k in ("temperature", "top_p", "top_k", "min_p")) == sampling
    assert result.stderr.splitlines()[:-1] == said


@pytest.mark.parametrize("value", ["hot", -1, 10**400, True, [0.6], {}, float("nan"), "0.6\n\x1b"])
def test_sampling_that_a_checkpoint_cannot_mean_is_left_out(
    fake: Fake, tmp_path: Path, value: Any
) -> None:
    config = {"do_sample": True, "temperature": 0.5, "top_p": value}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    fake.model.folder = tmp_path
    result = invoke("chat", "--model", "m", input="hi\n")
    assert result.exit_code == 0, result.output
    options = fake.generate.options[0]
    assert (options["temperature"], options["top_p"]) == (0.5, 1.0)
    assert "top_p is not used; it should be a number from 0 to 1." in plain(result.stderr)


@pytest.mark.parametrize("seed", ["-1", str(2**64), "1.5", "x"])
@pytest.mark.parametrize("command", ["chat", "generate"])
def test_seeds_out_of_range_are_refused(fake: Fake, command: str, seed: str) -> None:
    result = invoke(command, "--seed", seed, input="hi\n")
    assert result.exit_code == 2
    assert "--seed" in plain(result.stderr)
    assert fake.generate.options == []


def test_the_largest_seed_is_that_of_the_engine() -> None:
    from orthrus_mlx.cli.options import MAX_SEED
    from orthrus_mlx.decoding import consensus

    assert consensus.MAX_SEED == MAX_SEED


@pytest.mark.parametrize(
    ("args", "stdout", "aside"),
    [([], "Yes.\n", True), (["--show-thinking"], "<think>\nhm\n</think>\n\nYes.\n", False)],
)
@pytest.mark.parametrize("command", ["chat", "generate"])
def test_piped_reasoning_goes_to_stderr_unless_asked_for(
    fake: Fake, command: str, args: list[str], stdout: str, aside: bool
) -> None:
    fake.generate.answers = ["<think>\nhm\n</think>\n\nYes."]
    result = invoke(command, "--model", "m", *args, input="well?\n")
    assert result.stdout == stdout
    assert ("hm" in result.stderr.splitlines()) == aside
    assert "think>" not in result.stderr


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_template_that_opens_the_thinking_itself(fake: Fake, command: str) -> None:
    fake.generate.answers = ["hm</think>\nYes."]
    config = ("--chat-template-config", '{"opening": "<think>\\n"}')
    result = invoke(command, "--model", "m", *config, input="well?\n")
    assert result.stdout == "Yes.\n"
    assert "hm" in result.stderr.splitlines()


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_an_answer_cut_inside_its_thinking_says_so(fake: Fake, command: str) -> None:
    fake.generate.answers = ["<think>hmmmmm</think>Yes."]
    result = invoke(command, "--model", "m", "-m", "10", input="well?\n")
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "Cut off at max_tokens (10) while thinking, before the answer began: --max-tokens 20 "
        "for more, -1 for all that fits; --no-think thinks less."
    )


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("args", "opening"),
    [([], ""), (["--think"], ""), (["--no-think"], "<think>\n\n</think>")],
)
def test_thinking_is_switched_by_the_template(
    fake: Fake, command: str, args: list[str], opening: str
) -> None:
    result = invoke(command, "--model", "m", *args, input="hi")
    assert fake.generate.prompts == [f"<user>hi\n<assistant>{opening}"]
    assert "no switch" not in result.stderr


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize("flag", ["--think", "--no-think"])
def test_a_template_without_that_switch_is_named(fake: Fake, command: str, flag: str) -> None:
    config = ("--chat-template-config", '{"opening": "So: "}')
    result = invoke(command, "--model", "m", flag, *config, input="hi")
    assert "no switch for thinking" in result.stderr
    assert result.exit_code == 0


def last_chat(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "state" / "last_chat.json").read_text())


def talk(*args: str, typed: str = "hi\n") -> Any:
    """A chat as a person has it, at a terminal: its conversation is kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orthrus_mlx.cli.chat._is_interactive", lambda: True)
        patch.setattr("orthrus_mlx.cli.chat._reader", lambda _: LineReader())
        return invoke("chat", *args, input=typed)


def test_continue_takes_the_last_conversation_up_again(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    talk("--model", str(folder), "--system-prompt", "Be kind.")
    assert (tmp_path / "state" / "last_chat.json").stat().st_mode & 0o077 == 0
    result = invoke("chat", "--continue", input="more\n")
    assert result.exit_code == 0, result.output
    said = "<system>Be kind.\n<user>hi\n<assistant>one\n<user>more\n<assistant>"
    assert fake.generate.prompts[1] == said
    assert "the last was: hi" in result.stderr
    assert fake.loaded == [str(folder)] * 2  # the model is that of the conversation
    assert [m["content"] for m in last_chat(tmp_path)["messages"][1::2]] == ["hi", "more"]


def test_continue_goes_before_the_model_of_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_MODEL", "usual")
    talk("--model", "m")
    for args in ([], ["--model", "usual"]):
        fake.generate.answers = ["two"]
        assert invoke("chat", "--continue", *args, input="more\n").exit_code == 0
    assert fake.loaded == ["m", "m", "usual"]


def test_continue_takes_the_cache_up_while_the_weights_are_the_same(
    fake: Fake, tmp_path: Path
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    fake.model.folder = tmp_path
    talk("--model", "m")
    invoke("chat", "--model", "m", "--continue", input="more\n")
    weights.write_text("other")
    fake.generate.answers = ["three"]
    invoke("chat", "--model", "m", "--continue", input="still\n")
    assert fake.generate.prompts[1] == "\n<user>more\n<assistant>"
    assert fake.generate.prompts[2].startswith("<user>hi\n<assistant>one\n<user>more\n")
    kept = tmp_path / "state" / "last_chat.safetensors"
    assert kept.stat().st_mode & 0o077 == 0


def test_a_pipe_leaves_the_last_conversation_alone(fake: Fake, tmp_path: Path) -> None:
    """With --continue it goes on with it; so does a chat that says nothing of its own."""
    (tmp_path / "model.safetensors").touch()
    fake.model.folder = tmp_path
    talk("--model", "m")
    files = [tmp_path / "state" / f"last_chat.{kind}" for kind in ("json", "safetensors")]
    before = [file.read_bytes() for file in files]
    assert invoke("chat", "--model", "m", input="by the way\n").stdout == "two\n"
    for nothing in ("", "/clear\n", "/stats\n"):
        assert talk("--model", "m", typed=nothing).exit_code == 0
    assert [file.read_bytes() for file in files] == before
    fake.generate.answers = ["three"]
    invoke("chat", "--continue", input="more\n")
    assert [m["content"] for m in last_chat(tmp_path)["messages"]] == ["hi", "one", "more", "three"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_chat_keeps_its_conversation_and_cache(
    fake: Fake, tmp_path: Path, number: int
) -> None:
    (tmp_path / "model.safetensors").touch()
    fake.model.folder = tmp_path

    class Struck(FakeTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            if "more" in text:
                signal.raise_signal(number)
            return super().encode(text)

    fake.tokenizer = Struck()
    fake.generate.answers = ["one", "two", "three"]
    result = talk("--model", "m", typed="hi\nmore\nnever sent\n")
    assert result.exit_code == 128 + number
    assert [m["content"] for m in last_chat(tmp_path)["messages"][:2]] == ["hi", "one"]
    fake.generate.prompts.clear()
    fake.tokenizer, fake.generate.answers = FakeTokenizer(), ["four"]
    invoke("chat", "--model", "m", "--continue", input="still\n")
    assert "<user>hi" not in fake.generate.prompts[0], "its cache was kept too"


def test_a_model_that_was_changed_since_it_was_loaded_shares_no_cache() -> None:
    import mlx.nn as nn

    model, _ = orthrus_mlx.load("demo", lazy=True)
    key = _weights(model)
    assert key == _weights(orthrus_mlx.load("demo", lazy=True)[0]) is not None
    model.model.layers[0].self_attn.q_proj = nn.Linear(1, 1)
    assert _weights(model) is None


def test_nothing_to_continue(fake: Fake, tmp_path: Path) -> None:
    result = invoke("chat", "--continue", input="hi\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: There is no conversation to go on with")
    assert invoke("chat", "--continue", "--load", "x.json").exit_code == 2


def test_what_is_kept_is_what_was_said_last(tmp_path: Path) -> None:
    console, path = notes(), tmp_path / "state" / "last_chat.json"
    chat = make(
        FakeSession("one", "two"), "1", "2", "/undo", "/clear", keep=keep_last("m", console)
    )
    chat.run()
    assert [m["content"] for m in json.loads(path.read_text())["messages"]] == ["1", "one"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_history_nothing_is_kept(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", os.devnull)
    fake.model.folder = tmp_path
    assert last_chat_path() is None
    result = talk("--model", "m")
    assert (result.exit_code, result.stderr.count("\n")) == (0, 3)  # the keys, figures, a blank
    assert "none is kept at ORTHRUS_MLX_HISTORY" in invoke("chat", "--continue").stderr


def test_a_conversation_that_cannot_be_kept_goes_on(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ORTHRUS_MLX_HISTORY", str(tmp_path / "file" / "history"))
    result = talk("--model", "m", typed="hi\nmore\n")
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert result.stderr.count("Not kept for --continue") == 1


def test_openai_messages_go_on_at_once_where_the_user_spoke_last(
    fake: Fake, tmp_path: Path
) -> None:
    path = tmp_path / "request.json"
    path.write_text('[{"role": "user", "content": "hi"}]')
    result = invoke("chat", "--model", "m", "--load", str(path), input="more\n/bye\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\n"
    assert fake.generate.prompts[0] == "<user>hi\n<assistant>"
    assert path.read_text() == '[{"role": "user", "content": "hi"}]'


def test_system_prompt_and_template_config(fake: Fake) -> None:
    config = '{"opening": "So: "}'
    args = ("--system-prompt", "Be kind.", "--chat-template-config", config)
    invoke("chat", *args, input="hi\n")
    assert fake.generate.prompts == ["<system>Be kind.\n<user>hi\n<assistant>So: "]


def test_load_goes_on_where_a_conversation_stopped(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    Conversation(turns=[Turn("hi", "one")]).save(path, "m")
    result = invoke("chat", "--load", str(path), input="more\n")
    assert f"Loaded 1 turn from {path}; the last was: hi" in result.stderr
    assert fake.generate.prompts == ["<user>hi\n<assistant>one\n<user>more\n<assistant>"]


def test_a_file_that_does_not_load_is_told_before_the_model_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(orthrus_mlx, "load", lambda *_, **__: pytest.fail("loaded"))
    result = invoke("chat", "--load", str(tmp_path / "none.json"))
    assert result.exit_code == 1
    assert result.stderr == f"error: There is no file {tmp_path / 'none.json'}.\n"


def test_a_failure_ends_a_script(fake: Fake) -> None:
    fake.generate.answers = ["one", [PromptError("It broke.")], "two"]
    result = invoke("chat", input="hi\nthen\nmore\n")
    assert result.exit_code == 1
    assert result.stdout == "one\n"
    assert "error: It broke." in result.stderr


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
    from orthrus_mlx.checkpoint.read import load_tokenizer

    golden = tiny16_golden[0]
    answer = load_tokenizer(measured_tiny16).decode(golden["tokens"][:-1])
    result = subprocess.run(
        [sys.executable, "-m", "orthrus_mlx.cli", "chat", "--model", str(measured_tiny16)],
        input=f"{golden['question']}\n",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{answer}\n"
