"""`orthrus-mlx generate`: one prompt in, one answer out."""

import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from . import options
from .options import examples

EXAMPLES = examples(
    'orthrus-mlx generate "Write a haiku about the sea"',
    "orthrus-mlx generate --model chiennv/Orthrus-Qwen3-1.7B -m 512 -p 'Hello!'",
    'orthrus-mlx generate "Three rivers, as JSON" --no-verbose > rivers.json',
    "cat notes.txt | orthrus-mlx generate --system-prompt 'Summarize this'",
    "orthrus-mlx generate --temp 0.7 --top-p 0.9 --seed 7 'Tell me a story'",
    "orthrus-mlx generate --ignore-chat-template 'Once upon a time'",
)


def generate(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="The message; '-' reads standard input, as does a pipe with no prompt given.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="The message, as an option; as in mlx-lm, \\n and \\t stand for line break "
            "and tab, and '-' reads standard input.",
            show_default=False,
        ),
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is told first.", show_default=False),
    ] = None,
    ignore_chat_template: Annotated[
        bool, typer.Option("--ignore-chat-template", help="Send the prompt as it is.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option(help="Report speed, drafting and memory on stderr.")
    ] = True,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    chat_template_config: options.ChatTemplateConfigOption = None,
    temp: options.TempOption = 0.0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    top_k: options.TopKOption = 0,
    seed: options.SeedOption = None,
    max_tokens: options.MaxTokensOption = 100,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="End the answer before this text; may be repeated.",
            show_default=False,
            rich_help_panel="Decoding",
        ),
    ] = None,
    extra_eos_token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help="A further token that ends the answer; may be repeated.",
            show_default=False,
            rich_help_panel="Decoding",
        ),
    ] = None,
    mode: options.ModeOption = options.Mode.auto,
    cycle: options.CycleOption = options.Cycle.auto,
    numerics: options.NumericsOption = options.Numerics.fast,
    block_size: options.BlockSizeOption = None,
    calibrate: options.CalibrateOption = True,
    prefill_step_size: options.PrefillStepSizeOption = 2048,
) -> None:
    """Answer one prompt and exit.

    The answer streams to stdout, and nothing else goes there: it can be piped.
    """
    template_config = options.parse_template_config(chat_template_config)
    if ignore_chat_template and system_prompt is not None:
        raise typer.BadParameter(
            "needs the chat template that --ignore-chat-template leaves out",
            param_hint="--system-prompt",
        )
    message = _read_prompt(text, prompt)

    lm, tokenizer = options.load_model(model, revision, quiet=not verbose)
    for token in extra_eos_token or ():
        _add_eos_token(tokenizer, token)
    ids = _encode(
        tokenizer,
        message,
        system_prompt,
        template_config,
        raw=ignore_chat_template,
        quiet=not verbose,
    )

    from orthrus_mlx.generate import stream_generate

    from .console import note, stderr_console
    from .progress import prefill_bar, probe_bar
    from .stats import generation_lines

    notes = stderr_console()
    last: Any = None
    with prefill_bar(notes) as reading, probe_bar(notes) as probing:
        answer = stream_generate(
            lm,
            tokenizer,
            ids,
            max_tokens=max_tokens,
            temperature=temp,
            top_p=top_p,
            min_p=min_p,
            top_k=top_k,
            seed=seed,
            stop=stop or [],
            mode=mode.value,
            cycle=cycle.value,
            numerics=numerics.value,
            block_size=block_size,
            calibrate=calibrate,
            prefill_step_size=prefill_step_size,
            prompt_progress_callback=reading,
            probe_progress_callback=probing,
        )
        last = _print_answer(answer)
    if verbose and last is not None:
        for line in generation_lines(last, sampled=temp > 0):
            note(notes, line)


def _read_prompt(text: str | None, prompt: str | None) -> str:
    """Find the message: the argument, the option or standard input."""
    from orthrus_mlx.errors import PromptError

    if text is not None and prompt is not None:
        raise typer.BadParameter("give the prompt once: as an argument or with --prompt/-p")
    if text is None and prompt is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise typer.BadParameter(
                "no prompt: give one as an argument, with --prompt/-p or on standard input"
            )
        prompt = "-"
    # mlx-lm's --prompt takes these two escapes; an argument is taken as it is.
    message = text if text is not None else (prompt or "").replace("\\n", "\n").replace("\\t", "\t")
    if message == "-":
        from .console import read_stdin

        message = read_stdin()
    if not message.strip():
        raise PromptError("The prompt is empty: there is nothing to answer.")
    return message


def _add_eos_token(tokenizer: Any, token: str) -> None:
    try:
        tokenizer.add_eos_token(token)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--extra-eos-token") from None


def _encode(
    tokenizer: Any,
    message: str,
    system_prompt: str | None,
    template_config: dict[str, Any],
    *,
    raw: bool,
    quiet: bool,
) -> list[int]:
    """Turn the message into ids, through the chat template if there is one."""
    from orthrus_mlx.session import encode_chat

    from .console import note, stderr_console

    # Without a template a lone message can still be sent raw; a system prompt cannot.
    if not raw and (tokenizer.has_chat_template or system_prompt is not None):
        messages = [{"role": "user", "content": message}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
        return encode_chat(tokenizer, messages, template_config)[0]
    if not raw and not quiet:
        note(stderr_console(), "This tokenizer has no chat template: the prompt is sent as it is.")
    return list(tokenizer.encode(message))


def _print_answer(answer: Any) -> Any:
    """Stream the answer to stdout, ending with one line break; return the last response."""
    from .render import PlainScreen
    from .thinking import Kind

    last: Any = None
    with PlainScreen(sys.stdout) as screen, closing(answer):
        for last in answer:
            screen.write(Kind.answer, last.text)
    return last
