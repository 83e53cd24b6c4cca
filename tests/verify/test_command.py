"""`orthrus-mlx verify`: what it prints, as text and as JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import orthrus_mlx
from orthrus_mlx.cli.app import app
from orthrus_mlx.decoding import sequence
from orthrus_mlx.model import Model
from orthrus_mlx.tools.prompts import KINDS, Prompt, bundled, from_file
from tests.lossless import row_kernels

SHORT = ("--num-prompts", "1", "--max-tokens", "12")


class Letters:
    """A tokenizer of one id a character."""

    has_chat_template = False
    eos_token_ids = frozenset({63})

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) % 60 for c in text[:9]]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids)  # control characters among them


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))


def invoke(model: Any, *args: str) -> Any:
    row_kernels.probed(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orthrus_mlx, "load", lambda *_, **__: (model, Letters()))
        return CliRunner().invoke(app, ["verify", "demo", *args])


def test_it_certifies_a_sound_engine() -> None:
    result = invoke(row_kernels.build(Model), *SHORT)
    assert result.exit_code == 0, result.output
    assert "agree bit for bit" in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("LOSSLESS: exact mode wrote")
    assert result.stdout.count("1 of 1") == 8


def test_the_certificate_in_json() -> None:
    result = invoke(row_kernels.build(), *SHORT, "--json")
    assert result.exit_code == 0
    certificate = json.loads(result.stdout)
    assert certificate["passed"]
    assert certificate["model"] == "demo"
    assert certificate["probe"]["classes"] == [[1], [2, 4], [8, 15], [16, 24, 32]]
    assert {"device", "system", "mlx", "verdict"} <= certificate.keys()
    keys = ("numerics", "temperature", "way")
    assert [tuple(row[key] for key in keys) for row in certificate["rows"]] == [
        (numerics, temperature, cycle)
        for numerics in ("exact", "fast")
        for temperature in (0.0, 0.8)
        for cycle in ("two-pass", "one-pass")
    ]


def test_a_broken_engine_gives_exit_code_1_and_shows_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = row_kernels.build(Model)
    row_kernels.probed(model)

    def one_short(cache: list[Any], length: int) -> None:
        for layer in cache:
            layer.trim(max(0, layer.offset - length - 1))

    monkeypatch.setattr(row_kernels, "probed", lambda model: None)  # it is stored, and was sound
    monkeypatch.setattr(sequence, "trim", one_short)
    result = invoke(model, *SHORT)
    assert result.exit_code == 1
    lines = result.stdout.rstrip().splitlines()
    assert lines[-1].startswith("NOT LOSSLESS: exact mode differs from plain decoding in")
    shown = [line for line in lines if line.startswith("exact greedy two-pass: prompt 1, token ")]
    assert "gap" in shown[0]
    assert "NOT a near-tie" in shown[0]
    assert not any(ord(c) < 32 for line in lines for c in line)
    assert json.loads(invoke(model, *SHORT, "--json").stdout)["passed"] is False


def test_no_exact_mode_gives_exit_code_1() -> None:
    result = invoke(row_kernels.build(row_kernels.Restless), *SHORT)
    assert result.exit_code == 1
    assert "NO EXACT MODE HERE" in result.stdout


def test_ctrl_c_prints_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from orthrus_mlx.tools import verify

    decode_answer = verify.decode_answer

    def interrupted(model: Any, *args: Any, numerics: str, **options: Any) -> Any:
        if numerics == "fast":
            raise KeyboardInterrupt
        return decode_answer(model, *args, numerics=numerics, **options)

    monkeypatch.setattr(verify, "decode_answer", interrupted)
    result = invoke(row_kernels.build(Model), *SHORT)
    assert result.exit_code == 130
    assert "LOSSLESS SO FAR" in result.stdout


def test_it_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert invoke(row_kernels.build(Model), "--against", "vllm").exit_code == 2
    result = invoke(row_kernels.build(Model), "--prompts", str(tmp_path / "none.txt"))
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


# ---------------------------------------------------------------------------------- prompts


def test_the_bundled_prompts_are_mixed() -> None:
    prompts = bundled()
    assert len(prompts) == len({prompt.text for prompt in prompts}) == 32
    assert [prompt.kind for prompt in prompts[:5]] == list(KINDS)
    assert {prompt.kind for prompt in prompts} == set(KINDS)


def test_prompts_from_files(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("One?\n\n  Two? \n")
    assert from_file(text) == [Prompt("file", "One?"), Prompt("file", "Two?")]
    turns = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant", "user")]
    answered = [*turns, {"role": "assistant", "content": "done"}]
    cases = ({"prompt": "P"}, {"messages": turns}, {"messages": answered})
    lines.write_text("\n".join(json.dumps(case) for case in cases))
    plain, first, second = from_file(lines)
    assert plain.messages == [{"role": "user", "content": "P"}]
    assert first.messages == second.messages == turns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "holds no prompt"),
        ("a.csv", "One?", "neither .txt"),
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt"', "line 3 cannot be read as JSON"),
        ("a.jsonl", '{"prompt": 3}', "line 1: expected an object"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}', "line 1: expected"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1: expected"),
        ("a.jsonl", "[1]", "line 1: expected"),
    ],
)
def test_bad_files_are_named_with_their_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(orthrus_mlx.DataError, match=message) as e:
        from_file(tmp_path / name)
    assert name in str(e.value)
