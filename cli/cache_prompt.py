"""`orthrus-mlx cache-prompt`: read a long prompt once, and keep what was read."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from orthrus_mlx.errors import IncompleteCheckpointError
from orthrus_mlx.files import expanded

from . import options
from .options import examples

if TYPE_CHECKING:
    from orthrus_mlx.tools.prompt_cache import CachedPrompt

EXAMPLES = examples(
    "cat report.txt | orthrus-mlx cache-prompt --prompt-cache-file report",
    "orthrus-mlx generate --prompt-cache-file report -p 'Summarize the text above.'",
    "orthrus-mlx cache-prompt --prompt-cache-file rules --system-prompt Briefly -p 'Rules: ...'",
)


def cache_prompt(
    prompt_cache_file: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The file to write; .safetensors is added to its name.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="How the message begins; '-' reads standard input.",
        ),
    ] = "-",
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is told first.", show_default=False),
    ] = None,
    ignore_chat_template: Annotated[
        bool, typer.Option("--ignore-chat-template", help="Read the prompt as it is.")
    ] = False,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    adapter_path: options.AdapterPathOption = None,
    tune: options.TuneOption = True,
    chat_template_config: options.ChatTemplateConfigOption = None,
    prefill_step_size: options.PrefillStepSizeOption = 2048,
) -> None:
    """Read the beginning of a message once, and keep the KV cache in a file.

    `generate --prompt-cache-file` goes on with it: its prompt is the rest of the message. The
    file has mlx-lm's format.
    """
    from orthrus_mlx import PromptError
    from orthrus_mlx.files import check_parent
    from orthrus_mlx.session import encode_chat
    from orthrus_mlx.tools import prompt_cache

    from .console import note, read_stdin, stderr_console
    from .info import size
    from .progress import prefill_bar

    template_config = options.parse_template_config(chat_template_config)
    if prompt == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("no prompt: give one with --prompt/-p or on standard input")
    message = read_stdin() if prompt == "-" else prompt.replace("\\n", "\n").replace("\\t", "\t")
    if not message.strip():
        raise PromptError("The prompt is empty: there is nothing to read.")
    check_parent(prompt_cache.with_suffix(prompt_cache_file))
    name = model_name(options.DEMO if model is None else model)
    lm, tokenizer = options.load_model(model, revision, adapter_path=adapter_path, tune=tune)
    raw = ignore_chat_template or not tokenizer.has_chat_template
    if raw:
        if system_prompt is not None:
            raise typer.BadParameter("needs a chat template", param_hint="--system-prompt")
        ids = list(tokenizer.encode(message))
    else:
        messages = [{"role": "user", "content": message}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
        ids, _ = encode_chat(tokenizer, messages, template_config, unfinished=True)
    notes = stderr_console()
    with prefill_bar(notes) as reading:
        layers = prompt_cache.read_prompt(lm, ids, reading, prefill_step_size)
    adapter = _full_name(adapter_path)
    cached = prompt_cache.CachedPrompt(layers, ids, name, revision, adapter, raw)
    file = prompt_cache.save(prompt_cache_file, cached)
    note(notes, f"Read {len(ids)} tokens and wrote {file} ({size(file.stat().st_size)}).")


class Source(NamedTuple):
    """A cached prompt, and the model that it belongs to."""

    cached: "CachedPrompt"
    model: str
    revision: str | None
    adapter_path: Path | None


def open_cached(
    file: Path, model: str | None, revision: str | None, adapter_path: Path | None
) -> Source:
    """Read a cached prompt; what was left open of the model is what read the prompt."""
    from orthrus_mlx.errors import GenerationError
    from orthrus_mlx.tools import prompt_cache

    cached = prompt_cache.load(file)
    adapter = _full_name(adapter_path)
    pairs = {
        "--model": (None if model is None else model_name(model), cached.model),
        "--revision": (revision, cached.revision),
        "--adapter-path": (adapter, cached.adapter),
    }
    for flag, (asked, was) in pairs.items():
        if asked is not None and asked != was:
            raise GenerationError(
                f"{file} was made with {flag} {was}, not {asked}: leave {flag} out, or run "
                "`orthrus-mlx cache-prompt` again."
                if was
                else f"{file} was made without {flag}: leave it out, or run `orthrus-mlx "
                "cache-prompt` again."
            )
    return Source(
        cached,
        cached.model or options.DEMO,
        cached.revision,
        None if cached.adapter is None else Path(cached.adapter),
    )


def model_name(model: str) -> str:
    """The name of a model that means the same in every folder."""
    from orthrus_mlx.checkpoint.read import locate

    found = locate(model)
    if model == options.DEMO:
        return model
    return str(found.absolute()) if isinstance(found, Path) else found.repo_id


def _full_name(adapter_path: Path | None) -> str | None:
    if adapter_path is None:
        return None
    return str(expanded(adapter_path, IncompleteCheckpointError).absolute())
