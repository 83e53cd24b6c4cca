"""mlx-lm's command line as its users type it: values that a flag here does without, and refusals.

`docs/from-mlx-lm.md` lists every flag of mlx-lm's `generate` and `convert` beside ours.
"""

import re
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from orthrus_mlx.errors import CheckpointError

_XTC = (
    "XTC tosses a coin once a call, not once a position, so drafting could not give the tokens of "
    "plain decoding. Use --min-p with --temp"
)
_DRAFT = "drafts come from the model's own second view, and from earlier text. Leave it out"
# Flags of mlx-lm that make no sense here, and what to do instead.
REFUSED = {
    "--xtc-probability": _XTC,
    "--xtc-threshold": _XTC,
    "--min-tokens-to-keep": "--min-p always keeps the likeliest token, and no more are reserved",
    "--max-kv-size": "a cache that forgets its oldest tokens cannot be rolled back when a draft is "
    "rejected. The cache grows with the text; `orthrus-mlx info` says by how much",
    "--draft-model": _DRAFT,
    "--num-draft-tokens": _DRAFT,
    "--trust-remote-code": "no code of a checkpoint is ever run. Leave it out",
    "--image": "the models here read text only",
    "--quantize-activations": "activations stay as they are; what saves memory is convert -q",
    "--quant-predicate": "all layers get the same bits; --diffusion-q-bits sets those of the "
    "second view",
    "--dequantize": "a quantized checkpoint stays as it is. Convert the original one",
    "-d": "a quantized checkpoint stays as it is. Convert the original one",
}
# Qwen3's own format without its tools and thinking: what to use where a checkpoint has none.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TRUE, _FALSE = ("true", "t"), ("false", "f")


class MlxLmCommand(TyperCommand):
    """A command that also reads `--verbose False` and `--extra-eos-token A B`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, rewritten to flags as they are declared."""
        return super().parse_args(ctx, rewrite(args))


def rewrite(args: Sequence[str]) -> list[str]:
    """mlx-lm's flags that take values, as flags that take none or one.

    Several end tokens can be told from the prompt only where that is given by --prompt.
    """
    given, rest = list(args), []
    if "--" in given:
        end = given.index("--")
        given, rest = given[:end], given[end:]
    has_prompt = any(a.startswith("--prompt=") or _is_short_prompt(a) for a in given)
    has_prompt = has_prompt or "--prompt" in given
    written: list[str] = []
    while given:
        flag, equals, value = given.pop(0).partition("=")
        if flag == "--verbose":
            if not equals and given and given[0].lower() in (*_TRUE, *_FALSE):
                equals, value = "=", given.pop(0)
            written.append("--no-verbose" if equals and value.lower() in _FALSE else flag)
            if equals and value.lower() not in (*_TRUE, *_FALSE):
                written[-1] += equals + value  # for typer to refuse
        elif flag == "--extra-eos-token" and not equals and has_prompt:
            while given and not given[0].startswith("-"):
                written += [flag, given.pop(0)]
        elif flag == "-qa":  # typer would read -q and -a
            written.append("--quantize-activations")
        else:
            written.append(flag + equals + value)
    return written + rest


def use_default_chat_template(tokenizer: Any) -> None:
    """Give a tokenizer without a chat template that of Qwen3's chats (ChatML)."""
    if tokenizer.has_chat_template:
        return
    if missing := {"<|im_start|>", "<|im_end|>"} - set(tokenizer.get_vocab()):
        raise typer.BadParameter(
            f"the vocabulary has no {' and no '.join(sorted(missing))}, which it needs",
            param_hint="--use-default-chat-template",
        )
    tokenizer.chat_template = CHATML
    tokenizer.has_chat_template = True
    tokenizer.add_eos_token("<|im_end|>")


def in_flags(error: Exception, params: Sequence[Any]) -> str:
    """The text of an error about a request, with the flags of a command for Python's names.

    What a checkpoint's files hold keeps its names: config.json has a block_size of its own. So does
    what stands in quotation marks: a field of a file of prompts or options.
    """
    text = str(error)
    if isinstance(error, CheckpointError):
        return text
    for param in params:
        for flag in param.opts if param.param_type_name == "option" else ():
            name = flag.lstrip("-").replace("-", "_")
            # A name of one word is an option only where the text begins with it.
            place = r"(?<![\w'\"])" if "_" in name else r"^"
            if len(name) > 1:
                text = re.sub(rf"{place}{name}\b(?!=)", flag, text)
    return text


def _is_short_prompt(arg: str) -> bool:
    return arg.startswith("-p") and not arg.startswith("--")
