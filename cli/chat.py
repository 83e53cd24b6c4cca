"""`orthrus-mlx chat`: a conversation in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .options import examples

if TYPE_CHECKING:
    from .reader import Reader
    from .render import Screen

EXAMPLES = examples(
    "orthrus-mlx chat",
    "orthrus-mlx chat --model chiennv/Orthrus-Qwen3-1.7B --max-tokens 2048",
    'orthrus-mlx chat --temp 0.7 --system-prompt "Answer in rhymes"',
    "orthrus-mlx chat --load trip.json",
    "orthrus-mlx chat < questions.txt > answers.txt",
)


def chat(
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is told first.", show_default=False),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with a conversation that /save wrote.",
            show_default=False,
        ),
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Show answers as the model writes them, without Markdown."),
    ] = False,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    chat_template_config: options.ChatTemplateConfigOption = None,
    temp: options.TempOption = 0.0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    top_k: options.TopKOption = 0,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Same seed, same answers, in every mode; each /retry takes the next.",
            rich_help_panel="Sampling",
        ),
    ] = 0,
    max_tokens: options.MaxTokensOption = 256,
    mode: options.ModeOption = options.Mode.auto,
    cycle: options.CycleOption = options.Cycle.auto,
    numerics: options.NumericsOption = options.Numerics.fast,
    block_size: options.BlockSizeOption = None,
    calibrate: options.CalibrateOption = True,
    prefill_step_size: options.PrefillStepSizeOption = 2048,
) -> None:
    """Talk with a model, turn by turn.

    Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, each line is a message;
    into a pipe, the answers are plain text.
    """
    from .console import note, stderr_console
    from .conversation import Conversation
    from .settings import Settings
    from .slash import describe_loaded

    template_config = options.parse_template_config(chat_template_config)
    notes = stderr_console()
    conversation = Conversation.load(load) if load else Conversation()
    if system_prompt is not None:
        conversation.system = system_prompt

    lm, tokenizer = options.load_model(model, revision)

    from orthrus_mlx.session import ChatSession

    from .repl import Chat

    interactive = sys.stdin.isatty()
    if interactive:
        note(notes, "/help for the commands, Ctrl-C to stop an answer, Ctrl-D to leave")
    if load:
        note(notes, describe_loaded(conversation))
    session = ChatSession(lm, tokenizer, template_config=template_config)
    tags = (tokenizer.think_start, tokenizer.think_end)
    Chat(
        session,
        _reader(interactive),
        _screen(plain),
        notes,
        model_name=model or options.DEMO,
        conversation=conversation,
        settings=Settings(
            temp=temp,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            max_tokens=max_tokens,
            seed=seed,
            mode=mode,
            cycle=cycle,
            numerics=numerics,
        ),
        think_tags=tags if all(tags) else ("<think>", "</think>"),
        interactive=interactive,
        extra_options={
            "block_size": block_size,
            "calibrate": calibrate,
            "prefill_step_size": prefill_step_size,
        },
    ).run()


def _reader(interactive: bool) -> "Reader":
    from .reader import EditingReader, LineReader
    from .slash import complete

    return EditingReader(complete) if interactive else LineReader()


def _screen(plain: bool) -> "Screen":
    from .console import answer_console, is_screen
    from .render import MarkdownScreen, PlainScreen

    console = answer_console()
    return PlainScreen(sys.stdout) if plain or not is_screen(console) else MarkdownScreen(console)
