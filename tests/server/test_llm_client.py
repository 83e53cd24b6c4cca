"""The `llm` command, unmodified, against a server that answers by a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from llm.cli import cli

from .conftest import SCRIPT
from .house import House
from .test_completions import prompt

KINDS = {"chat": {}, "completion": {"completion": True}, "responses": {"responses": True}}


@pytest.fixture(scope="module")
def folder(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llm's own folder, with a model for each of the three APIs."""
    found = tmp_path_factory.mktemp("llm")
    models = [
        {
            "model_id": name,
            "model_name": "any",
            "api_base": f"{house.url}/v1",
            "supports_schema": True,
            "supports_tools": True,
            **more,
        }
        for name, more in KINDS.items()
    ]
    # JSON is YAML.
    (found / "extra-openai-models.yaml").write_text(json.dumps(models))
    return found


def llm(folder: Path, *arguments: str) -> str:
    """What the command prints."""
    environment = {"LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "any"}
    done = CliRunner().invoke(cli, arguments, env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.full
def test_in_a_process_of_its_own(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "chat", "think"],
        env={**os.environ, "LLM_USER_PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert (done.stdout, done.returncode) == ("The answer is 4.\n", 0), done.stderr


@pytest.mark.parametrize("stream", [(), ("--no-stream",)], ids=["streamed", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt(folder: Path, kind: str, stream: tuple[str, ...]) -> None:
    text, expected = "think", "The answer is 4."
    if kind == "completion":
        text, expected = prompt("think"), SCRIPT["think"]
    options = ("-o", "max_tokens", "200") if kind == "completion" else ()
    assert llm(folder, "-m", kind, *options, *stream, text) == f"{expected}\n"


def test_a_conversation_goes_on(folder: Path) -> None:
    for kind in ("chat", "responses"):
        llm(folder, "-m", kind, "think")
        assert llm(folder, "-c", "Thanks.") == "Thanks.\n"


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_a_tool(folder: Path, kind: str) -> None:
    """The call is made, and its result answered."""
    source = "def get_weather(city: str) -> str:\n    return 'Sunny in ' + city"
    printed = llm(folder, "-m", kind, "--functions", source, "weather")
    assert printed == "Sunny in Rome\n"


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_a_schema(folder: Path, kind: str) -> None:
    printed = llm(folder, "-m", kind, "--schema", "city str", '{"city": "Rome"}')
    assert json.loads(printed) == {"city": "Rome"}
