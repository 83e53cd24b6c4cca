"""The message of `orthrus-mlx generate`: found where it was given, and turned into ids."""

import os
import sys
from typing import Any

import typer


def read_message(text: str | None, prompt: str | None, no_stdin: bool) -> str:
    """Find the message: what standard input brings, then the argument or the option."""
    from orthrus_mlx.errors import PromptError

    if text is not None and prompt is not None:
        raise typer.BadParameter("give the prompt once: as an argument or with --prompt/-p")
    # mlx-lm's --prompt takes these two escapes; an argument is taken as it is.
    given = prompt.replace("\\n", "\n").replace("\\t", "\t") if prompt is not None else text
    if given == "-" and no_stdin:
        raise typer.BadParameter(
            "'-' asks for the standard input that --no-stdin leaves out", param_hint="--no-stdin"
        )
    # The ranks that mlx.launch starts have pipes that nobody writes to.
    piped = not (no_stdin or "MLX_RANK" in os.environ or sys.stdin is None or sys.stdin.isatty())
    if given is None and not piped:
        raise typer.BadParameter(
            "no prompt: give one as an argument, with --prompt/-p or on standard input"
        )
    message = given or ""
    if piped or given == "-":
        from .console import read_stdin

        message = read_stdin("" if given in (None, "-") else "--no-stdin does without it")
        if given not in (None, "-"):
            message = f"{message.rstrip()}\n\n{given}" if message.strip() else f"{given}"
    if not message.strip():
        raise PromptError("The prompt is empty: there is nothing to answer.")
    return message


def encode_message(
    tokenizer: Any,
    message: str,
    system_prompt: str | None,
    template_config: dict[str, Any],
    think: bool | None,
    prefill: str | None,
    *,
    cached: bool,
    apart: bool,
    raw: bool,
    quiet: bool,
) -> tuple[list[int], str]:
    """Turn the message into ids and text, through the chat template if there is one."""
    from orthrus_mlx.chat.prompt import encode_chat, encode_text
    from orthrus_mlx.session import has_thinking_switch, thinking_config
    from orthrus_mlx.tools.prompt_cache import continue_chat

    from .console import note, stderr_console
    from .thinking import NO_SWITCH

    # Without a template a lone message can still be sent raw; a system prompt cannot.
    parts = system_prompt is not None or prefill is not None
    if not raw and (tokenizer.has_chat_template or parts):
        if cached:
            return continue_chat(tokenizer, message, template_config, prefill, apart)
        messages = [{"role": "user", "content": message}]
        if system_prompt is not None:
            messages.insert(0, {"role": "system", "content": system_prompt})
        if think is not None and not quiet and not has_thinking_switch(tokenizer, template_config):
            note(stderr_console(), NO_SWITCH)
        if prefill is not None:
            messages.append({"role": "assistant", "content": prefill})
        unfinished = prefill is not None
        config = {**template_config, **thinking_config(think)}
        return encode_chat(tokenizer, messages, config, unfinished=unfinished, apart=apart)
    if not raw and not quiet:
        note(stderr_console(), "This tokenizer has no chat template: the prompt is sent as it is.")
    # What is cached has the special token that a text begins with.
    return encode_text(tokenizer, message, add_special_tokens=not cached), message
