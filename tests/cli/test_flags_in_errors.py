"""What went wrong is told in the words that were typed: flags, and commands that can be pasted."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import ConfigError, GenerationError
from orthrus_mlx.cli.habits import in_flags

from .test_app import invoke, plain


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("generate hi --block-size 999 --mode parallel", "--block-size is 999; this model was"),
        ("bench demo --block-size 999", "--block-size is 999; this model was"),
        ("convert --model demo --q-bits 4", "--q-bits has no effect without quantize (-q)"),
        ("convert --model demo --q-group-size 64", "--q-group-size has no effect"),
        ("convert --model demo --q-mode mxfp4", "--q-mode mxfp4 has no effect"),
        ("convert --model demo -q --q-mode mxfp4 --q-bits 8", "Leave --q-bits and --q-group-size"),
        ("convert --model demo -q --q-group-size 7", "--q-group-size is 7; choose"),
        ("convert --model demo --upload-repo x", "--upload-repo is 'x'; expected a Hub id"),
        (
            "train --model demo --data d --output o --block-size 9999",
            "--block-size is 9999; at most",
        ),
        (
            "train --model demo --data d --output o --learning-rate -1",
            "--learning-rate and --max-g",
        ),
        ("train --model demo --data d --output o --batch-size 0", "--batch-size"),
    ],
)
def test_errors_name_flags(args: str, said: str) -> None:
    result = invoke(*args.split())
    assert result.exit_code in (1, 2)
    assert said in plain(result.stderr)


def test_what_a_file_holds_keeps_its_name() -> None:
    class Option:
        param_type_name = "option"
        opts = ("--block-size",)

    class Seed(Option):
        opts = ("--seed", "-s")

    params: Any = [Option(), Seed()]
    text = "config.json names no block_size"
    assert in_flags(ConfigError(text), params) == text
    assert in_flags(GenerationError("block_size is 1"), params) == "--block-size is 1"
    assert in_flags(GenerationError("seed is 1, a seed"), params) == "--seed is 1, a seed"
    for text in ("use block_size=", "a line may have 'block_size' or \"block_size\""):
        assert in_flags(GenerationError(text), params) == text


def test_names_of_a_file_of_prompts_or_options_are_those_to_write_there(tmp_path: Path) -> None:
    prompts, config = tmp_path / "asked.jsonl", tmp_path / "run.yaml"
    prompts.write_text('{"prompt": "hi", "max_token": 5}\n')
    config.write_text("batch_sise: 8\n")
    files = ("--prompts", str(prompts), "--output", str(tmp_path / "out.jsonl"))
    for args in (("generate", *files), ("train", "-c", str(config), "--data", "d")):
        said = plain(invoke(*args).stderr)
        assert "'max_token' is no field" in said or "'batch_sise', which is no option" in said
        assert '"max_tokens"' in said or "'batch_size'" in said
        assert "--" not in said


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("--plot", "speed.doc"), "names no kind of picture"),
        (("--plot", "speed"), "names no kind of picture"),
        (("--plot", "/no/such/speed.png"), "no folder /no/such"),
        (("--shapes", "qwen3-8b", "--bits", "7"), "7 bits cannot be packed"),
        (("--shapes", "qwen3-8b", "--bits", "1"), "1 bits cannot be packed"),
        (("--shapes", "qwen3-8b", "--cycle", "one-pass"), "cannot be combined with --shapes"),
        (("--shapes", "qwen3-8b", "-m", "64"), "--max-tokens: cannot be combined with --shapes"),
        (("--shapes", "qwen3-8b", "--against", "mlx-lm"), "cannot be combined with --shapes"),
        (("--rows", "1,2"), "--rows: goes with --shapes"),
        (("--context", "64"), "--context: goes with --shapes"),
        (("--concurrency", "1,x"), "--concurrency: '1,x' is not a list of whole numbers"),
    ],
)
def test_bench_checks_before_it_measures(
    args: tuple[str, ...], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    monkeypatch.setattr("orthrus_mlx.load", None)  # it would be called
    monkeypatch.setattr("orthrus_mlx.tools.bench_shapes.build", None)
    result = invoke("bench", *args)
    assert result.exit_code in (1, 2)
    assert problem in plain(result.stderr)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ("generate --prompts {0}/a.jsonl --output {0}/no/b.jsonl", "There is no folder"),
        ("cache-prompt -p hi --prompt-cache-file {0}/no/b", "There is no folder"),
        ("generate hi --concurrency 4", "--concurrency: goes with --prompts"),
        ("generate --prompts {0}/a.jsonl --output {0}/b --show-thinking", "--show-thinking: can"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_loads(
    args: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n')
    monkeypatch.setattr("orthrus_mlx.load", None)  # it would be called
    result = invoke(*(part.format(tmp_path) for part in args.split()))
    assert result.exit_code in (1, 2)
    assert problem in plain(result.stderr)


def test_what_is_to_be_pasted_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model"
    result = invoke("convert", "--model", "demo", "--mlx-path", str(folder))
    assert result.exit_code == 0, result.output
    command = result.stderr.splitlines()[-1].partition("Try it: ")[2]
    assert shlex.split(command) == ["orthrus-mlx", "chat", "--model", str(folder)]
    assert "orthrus-mlx chat --model 'my model'" in (folder / "README.md").read_text()
    assert "mlx_lm.chat --model 'my model'" in (folder / "README.md").read_text()

    from huggingface_hub import HfApi

    from orthrus_mlx import OutputError
    from orthrus_mlx.convert.upload import upload

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(OutputError) as caught:
        upload(folder, "me/x")
    assert f"`hf upload me/x {shlex.quote(str(folder))}`" in str(caught.value)
