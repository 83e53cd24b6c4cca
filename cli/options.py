"""The options that several commands share, and what they stand for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

DEMO = "demo"
REAL_MODEL = "chiennv/Orthrus-Qwen3-1.7B"
MAX_SEED = 2**64 - 1


class Mode(StrEnum):
    """When to draft."""

    auto = "auto"
    parallel = "parallel"
    ar = "ar"


class Cycle(StrEnum):
    """How drafting and verifying share forward passes."""

    auto = "auto"
    two_pass = "two-pass"
    one_pass = "one-pass"
    alternating = "alternating"


class Dtype(StrEnum):
    """A type of floating-point numbers."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Numerics(StrEnum):
    """How row counts are picked."""

    fast = "fast"
    exact = "exact"


class Thinking(StrEnum):
    """Whether the model reasons before it answers; auto leaves it to the chat template."""

    auto = "auto"
    on = "on"
    off = "off"

    @property
    def wanted(self) -> bool | None:
        """As a chat template takes it; None for what the template does by itself."""
        return None if self is Thinking.auto else self is Thinking.on


def _not_zero(tokens: int) -> int:
    if tokens == 0:
        raise typer.BadParameter("0 leaves no room for an answer")
    return tokens


def _in_range_of_seeds(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise typer.BadParameter(f"{seed} is not in the range from 0 to 2^64 - 1")
    return seed


_MODEL, _SAMPLING, _DECODING = "Model", "Sampling", "Decoding"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="ORTHRUS_MLX_MODEL",
        help=f"A folder, a Hugging Face id such as {REAL_MODEL}, the address of its page, or "
        "'demo', the small checkpoint that comes with the package and the default.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]


def typed_model(context: typer.Context, model: str | None) -> str | None:
    """The model that --model names; None where only the environment does, as for every command."""
    source = context.get_parameter_source("model")
    return None if source is not None and source.name == "ENVIRONMENT" else model


NeededModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder, a Hugging Face id, or 'demo'.", show_default=False
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a Hugging Face id, or 'demo', the default.",
        show_default=False,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit of a Hugging Face model.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
ChatTemplateConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Arguments for the chat template, as a JSON object: '{\"enable_thinking\": false}'.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
ThinkOption = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Let the model reason before it answers, or not. "
        "[dim]\\[default: what the chat template does][/dim]",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]


def at_home(path: Path | None) -> Path | None:
    """Put the home folder in the place of `~`, which shells leave in `--output=~/answers.jsonl`."""
    from orthrus_mlx.errors import OrthrusError
    from orthrus_mlx.files import expanded

    try:
        return path and expanded(path, OrthrusError)
    except OrthrusError as error:
        raise typer.BadParameter(str(error)) from None


AdapterPathOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A LoRA adapter for the model, as mlx_lm.lora writes it. Drafts come from the view "
        "that it leaves alone, so fewer are accepted.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
TuneOption = Annotated[
    bool,
    typer.Option(
        "--tune/--no-tune",
        envvar="ORTHRUS_MLX_TUNE",
        help="Use the kernels that `orthrus-mlx tune` has proven on this Mac, if it did.",
        rich_help_panel=_MODEL,
    ),
]
ShowThinkingOption = Annotated[
    bool,
    typer.Option(
        "--show-thinking", help="Write the reasoning to stdout too, with its tags, not to stderr."
    ),
]
KvBitsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Quantize the KV cache to 2, 3, 4, 5, 6 or 8 bits. Every mode still writes the same.",
        show_default=False,
        rich_help_panel=_DECODING,
    ),
]
KvGroupSizeOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Values of a quantized KV cache that share a scale: 32, 64 or 128.",
        rich_help_panel=_DECODING,
    ),
]
QuantizedKvStartOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="With --kv-bits: tokens in the KV cache from which on it is quantized.",
        rich_help_panel=_DECODING,
    ),
]
PrefillStepSizeOption = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Prompt tokens read at a time; fewer need less memory.",
        rich_help_panel=_DECODING,
    ),
]
MaxTokensOption = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        "-m",
        metavar="N",
        min=-1,
        callback=_not_zero,
        help="The longest answer, in tokens; -1 for as many as the context holds.",
        rich_help_panel=_DECODING,
    ),
]
TempOption = Annotated[
    float,
    typer.Option(
        "--temp",
        "--temperature",
        metavar="X",
        min=0.0,
        help="Sampling temperature; 0 always takes the likeliest token.",
        rich_help_panel=_SAMPLING,
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="X",
        min=0.0,
        max=1.0,
        help="Sample among the likeliest tokens that together have this probability.",
        rich_help_panel=_SAMPLING,
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="X",
        min=0.0,
        max=1.0,
        help="Drop tokens less likely than this share of the likeliest one's probability.",
        rich_help_panel=_SAMPLING,
    ),
]
TopKOption = Annotated[
    int,
    typer.Option(
        "--top-k",
        metavar="N",
        min=0,
        help="Sample among this many likeliest tokens; 0 for all.",
        rich_help_panel=_SAMPLING,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        callback=_in_range_of_seeds,
        help="Same seed, same answer, in every mode. [dim]\\[default: a fresh one][/dim]",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="'parallel' always drafts, 'ar' never does (plain decoding), 'auto' when it pays. "
        "The answer is the same.",
        rich_help_panel=_DECODING,
    ),
]
CycleOption = Annotated[
    Cycle,
    typer.Option(
        "--cycle",
        metavar="CYCLE",
        help="Draft and verify in 'two-pass' cycles, as in the paper, in 'one-pass' cycles, in "
        "'alternating' passes (an AR step that drafts, then one that verifies), or 'auto', "
        "whichever is faster.",
        rich_help_panel=_DECODING,
    ),
]
NumericsOption = Annotated[
    Numerics,
    typer.Option(
        "--numerics",
        metavar="KIND",
        help="'exact': every mode gives the same tokens, bit for bit. 'fast': the same up to "
        "near-ties, which are counted.",
        rich_help_panel=_DECODING,
    ),
]
BlockSizeOption = Annotated[
    int | None,
    typer.Option(
        "--block-size",
        metavar="N",
        min=2,
        help="Rows of the largest block to draft. [dim]\\[default: the model's own][/dim]",
        show_default=False,
        rich_help_panel=_DECODING,
    ),
]
CalibrateOption = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Measure at first use what a pass costs on this device; otherwise assume it.",
        rich_help_panel=_DECODING,
    ),
]


def examples(*lines: str) -> str:
    """Lay out the examples at the end of a command's help."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


def parse_template_config(text: str | None) -> dict[str, Any]:
    """Read the value of --chat-template-config."""
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise _bad_template_config(f"not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise _bad_template_config("must be a JSON object, like '{\"enable_thinking\": false}'")
    return config


def _bad_template_config(problem: str) -> typer.BadParameter:
    return typer.BadParameter(problem, param_hint="--chat-template-config")


def load_model(
    model: str | None,
    revision: str | None,
    *,
    quiet: bool = False,
    adapter_path: Path | None = None,
    tune: bool = True,
) -> tuple[Any, Any]:
    """Load the model that was asked for, else the demo, saying so on stderr."""
    with loading(model, quiet):
        return read_model(model, revision, quiet=quiet, adapter_path=adapter_path, tune=tune)


@contextmanager
def loading(model: str | None, quiet: bool) -> Iterator[None]:
    """Show on a terminal that a model is being loaded from disk; a download shows by itself."""
    from rich.markup import escape

    from .console import is_screen, stderr_console
    from .terminal import no_echo

    notes, name = stderr_console(), model or DEMO
    on_disk = name == DEMO or Path(name).exists()
    if not on_disk or quiet or not is_screen(notes):
        yield
        return
    with no_echo(), notes.status(f"[dim]Loading {escape(Path(name).name)}[/dim]"):
        yield


def read_model(
    model: str | None,
    revision: str | None,
    *,
    quiet: bool,
    adapter_path: Path | None,
    tune: bool = True,
) -> tuple[Any, Any]:
    """Load a model, else the demo, on any thread."""
    import warnings

    from orthrus_mlx import load
    from orthrus_mlx.chat.prompt import prepare_rendering
    from orthrus_mlx.device.memory import MemoryWarning

    from .console import note, stderr_console

    prepare_rendering()
    notes = stderr_console()
    if model is None and not quiet:
        note(notes, f"Using the bundled demo; for a real model: --model {REAL_MODEL}")
    with warnings.catch_warnings():
        warnings.simplefilter("always", MemoryWarning)
        warnings.showwarning = lambda message, *_: note(notes, f"warning: {message}", "yellow")
        more: Any = {} if adapter_path is None else {"adapter_path": adapter_path}
        more |= {} if tune else {"tune": False}
        lm, tokenizer = load(DEMO if model is None else model, revision=revision, **more)
    if (several := getattr(lm, "several", None)) and not quiet:
        note(notes, f"One part in {several[0]} of the model on each of {several[0]} ranks.")
    return lm, tokenizer
