"""Coding agents as they are, each doing one turn with a tool against a server of this checkout.

The model is scripted: it calls a tool that the client offers (a shell, or one that reads files) to
print a file, and says what the file holds once the result is in the prompt. So what is tried is the
client, its requests, our answers to them, and the way back of the result; no weights are needed.

    python benchmarks/serve_clients.py [codex claude opencode] [--folder /tmp/serve-clients]

The clients come from npm, 1.2 GB, into a folder that is no part of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from orthrus_mlx.batches import BatchEngine
from tests.lossless.fake_model import FakeCache
from tests.server.house import Actor, House, serving

VERSIONS = {
    "codex": "@openai/codex@0.171.0",
    "claude": "@anthropic-ai/claude-code@2.1.332",
    "opencode": "opencode-ai@1.18.33",
}
SECRET, FILE = "the-answer-is-4711", "note.txt"
QUESTION = f"What does the file {FILE} say? Use a tool."
CONTEXT = 65_536  # the clients' own prompts are up to 50 kB
SECONDS = 300


class Agent(Actor):
    """Calls a tool that prints the file, and says what it was told then."""

    def __init__(self, folder: Path) -> None:
        super().__init__({}, max_positions=CONTEXT)
        self._folder = folder

    def answer(self, asked: str, prompt: str) -> str:
        """What to write behind a prompt."""
        shown = prompt.rpartition(QUESTION)[2]
        if SECRET in shown:
            return f"It says {SECRET}."
        if QUESTION not in prompt or "<tool_call>" in shown:
            return "No tool has told me."
        call = self._call(tools_in(prompt))
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>" if call else "A title."

    def _ar_logits(self, n: int, cache: list[FakeCache]) -> list[np.ndarray]:
        """Rows of logits; of a prompt only the last is worked out, as nobody reads the others."""
        if n <= 64:
            return super()._ar_logits(n, cache)
        nothing = np.zeros(self.config.vocab_size, dtype=np.float32)
        return [nothing] * (n - 1) + [self._row([layer.ids for layer in cache])]

    def _call(self, tools: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """A call that prints the file, of one of these tools."""
        path = str(self._folder / FILE)
        values = {"command": f"cat {path}", "cmd": f"cat {path}", "description": "Print a file"}
        values |= {"file_path": path, "filePath": path}
        for name in ("shell", "exec_command", "shell_command", "bash", "Bash", "read", "Read"):
            if name not in tools:
                continue
            schema = tools[name]
            arguments: dict[str, Any] = {
                key: values[key] for key in schema["properties"] if key in values
            }
            if schema["properties"].get("command", {}).get("type") == "array":
                arguments["command"] = ["cat", path]
            if set(schema.get("required", ())) <= set(arguments):
                return {"name": name, "arguments": arguments}
        return None


def tools_in(prompt: str) -> dict[str, dict[str, Any]]:
    """The tools that a prompt shows, by name: the schemas of their arguments."""
    found = {}
    for match in re.finditer(r'\{"type": "function"', prompt):
        tool, _ = json.JSONDecoder().raw_decode(prompt, match.start())
        found[tool["function"]["name"]] = tool["function"]["parameters"]
    return found


def command(
    name: str, program: Path, house: House, folder: Path
) -> tuple[list[str], dict[str, str]]:
    """How a client is asked, and what it needs in its environment."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    env = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "PWD": str(folder)}
    if name == "codex":
        (home / ".codex").mkdir()
        (home / ".codex" / "config.toml").write_text(
            f'model = "orthrus"\nmodel_provider = "orthrus"\nmodel_context_window = {CONTEXT}\n\n'
            "[model_providers.orthrus]\n"
            f'name = "orthrus-mlx"\nbase_url = "{house.url}/v1"\nwire_api = "responses"\n'
            'env_key = "ORTHRUS_MLX_API_KEY"\n'
        )
        options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        return [str(program), "exec", *options, QUESTION], {**env, "ORTHRUS_MLX_API_KEY": "any"}
    if name == "claude":
        env |= {
            "ANTHROPIC_BASE_URL": house.url,
            "ANTHROPIC_AUTH_TOKEN": "any",
            "ANTHROPIC_MODEL": "orthrus",
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": "orthrus",
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(CONTEXT),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        return [str(program), "-p", QUESTION, "--allowedTools", "Bash,Read"], env
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "orthrus-mlx",
        "options": {"baseURL": f"{house.url}/v1", "apiKey": "any"},
        "models": {"orthrus": {"name": "orthrus", "limit": {"context": CONTEXT, "output": 8192}}},
    }
    config = {"$schema": "https://opencode.ai/config.json", "provider": {"orthrus": provider}}
    (folder / "opencode.json").write_text(json.dumps(config, indent=2))
    return [str(program), "run", "-m", "orthrus/orthrus", QUESTION], env


def turn(name: str, programs: Path) -> bool:
    """Let a client do its turn; print what came of it."""
    with tempfile.TemporaryDirectory(prefix="serve-clients-") as text:
        folder = Path(text).resolve()
        (folder / FILE).write_text(SECRET + "\n")
        agent = Agent(folder)
        with serving(agent) as house:
            called, env = command(name, programs / name, house, folder)
            started = time.monotonic()
            try:
                ended = subprocess.run(
                    called, cwd=folder, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, timeout=SECONDS, check=False,
                )  # fmt: skip
                code, said, told = ended.returncode, ended.stdout, ended.stderr
            except subprocess.TimeoutExpired as error:
                code, said, told = -1, str(error.stdout), str(error.stderr)
            seconds = time.monotonic() - started
            requests = [line for line in house.log if re.match(r"(POST|GET|HEAD) ", line)]
            notes = [line for line in house.log if line not in requests]
    good = code == 0 and SECRET in said and not any(" 500 " in line for line in requests)
    print(f"{name}: {'works' if good else 'FAILS'}, {seconds:.1f} s, exit code {code}")
    for line in [*requests, *notes]:
        print(f"  {line}")
    if not good:
        print(f"  it said: {said[-2000:]}\n  and: {told[-2000:]}")
    return good


def main() -> int:
    """Install what is missing, and try the clients that were named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clients", nargs="*", choices=[*VERSIONS, []], help="all by default")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "serve-clients"
    )
    options = parser.parse_args()
    names = options.clients or list(VERSIONS)
    programs = options.folder / "node_modules" / ".bin"
    missing = [VERSIONS[name] for name in names if not (programs / name).exists()]
    if missing:
        options.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", *missing], cwd=options.folder, check=True
        )
    BatchEngine.prepare = lambda engine, progress=None: False  # type: ignore[method-assign]
    results = [turn(name, programs) for name in names]
    return int(not all(results))


if __name__ == "__main__":
    raise SystemExit(main())
