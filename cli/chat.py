"""`orthrus-mlx chat`: a conversation in the terminal."""

import sys
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from . import options, ranks, structured
from .options import examples

if TYPE_CHECKING:
    from rich.console import Console

    from .reader import Reader
    from .render import Screen
    from .settings import Settings

EXAMPLES = examples(
    "orthrus-mlx chat",
    "orthrus-mlx chat --model chiennv/Orthrus-Qwen3-1.7B --max-tokens 2048",
    'orthrus-mlx chat --temp 0.7 --system-prompt "Answer in rhymes"',
    "orthrus-mlx chat --continue",
    "orthrus-mlx chat --load trip.json",
    "orthrus-mlx chat --json-schema person.json",
    "orthrus-mlx chat --choices yes,no < questions.txt",
    "orthrus-mlx chat < questions.txt > answers.txt",
)


def _own_default(option: Any) -> Any:
    """Take an option whose default is the checkpoint's own."""
    info = copy(get_args(option)[1])
    info.help += " [dim]\\[default: the model's own][/dim]"
    info.show_default = False
    return info


def chat(
    context: typer.Context,
    system_prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is told first.", show_default=False),
    ] = None,
    load: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with a conversation that /save wrote, or with a list of OpenAI messages.",
            show_default=False,
        ),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", help="Go on with the last conversation.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Show answers as the model writes them, without Markdown."),
    ] = False,
    think: options.ThinkOption = None,
    show_thinking: options.ShowThinkingOption = False,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    adapter_path: options.AdapterPathOption = None,
    tune: options.TuneOption = True,
    chat_template_config: options.ChatTemplateConfigOption = None,
    temp: Annotated[float | None, _own_default(options.TempOption)] = None,
    top_p: Annotated[float | None, _own_default(options.TopPOption)] = None,
    min_p: Annotated[float | None, _own_default(options.MinPOption)] = None,
    top_k: Annotated[int | None, _own_default(options.TopKOption)] = None,
    seed: options.SeedOption = None,
    json_schema: structured.JsonSchemaOption = None,
    regex: structured.RegexOption = None,
    grammar: structured.GrammarOption = None,
    choices: structured.ChoicesOption = None,
    max_tokens: options.MaxTokensOption = 256,
    mode: options.ModeOption = options.Mode.auto,
    cycle: options.CycleOption = options.Cycle.auto,
    numerics: options.NumericsOption = options.Numerics.fast,
    block_size: options.BlockSizeOption = None,
    calibrate: options.CalibrateOption = True,
    prefill_step_size: options.PrefillStepSizeOption = 2048,
    kv_bits: options.KvBitsOption = None,
    kv_group_size: options.KvGroupSizeOption = 64,
    quantized_kv_start: options.QuantizedKvStartOption = 5000,
) -> None:
    """Talk with a model, turn by turn.

    Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, each line is a message;
    /bye ends, and without --continue nothing is kept for it. Into a pipe, answers
    are plain text, and reasoning goes to stderr.
    """
    from orthrus_mlx import GenerationOptions

    from .console import note, stderr_console
    from .conversation import Conversation
    from .last_chat import keep_cache, keep_last, load_cache, load_last
    from .render import PlainScreen
    from .settings import Settings
    from .slash import describe_loaded, note_missing_switch
    from .thinking import think_tags

    template_config = options.parse_template_config(chat_template_config)
    asked = structured.from_flags(
        json_schema=json_schema, regex=regex, grammar=grammar, choices=choices
    )
    if load and go_on:
        raise typer.BadParameter("cannot be combined with --continue", param_hint="--load")
    extra: dict[str, Any] = {
        "block_size": block_size,
        "calibrate": calibrate,
        "prefill_step_size": prefill_step_size,
        "kv_bits": kv_bits,
        "kv_group_size": kv_group_size,
        "quantized_kv_start": quantized_kv_start,
    }
    GenerationOptions(numerics=numerics.value, **extra)  # refuses what no answer could take
    quantized = f" {kv_bits} {kv_group_size} {quantized_kv_start}" if kv_bits is not None else ""
    notes = stderr_console()
    conversation = Conversation.load(load) if load else load_last() if go_on else Conversation()
    if system_prompt is not None:
        conversation.system = system_prompt
    if go_on:
        model = options.typed_model(context, model) or conversation.model or model

    lm, tokenizer = options.load_model(model, revision, adapter_path=adapter_path, tune=tune)

    from orthrus_mlx.session import ChatSession

    from .repl import Chat

    ranks.take_terminal()
    interactive = _is_interactive()
    kept = interactive or go_on  # a pipe has no business with a person's last conversation
    if interactive:
        note(notes, "/help for the commands, Ctrl-C to stop an answer, Ctrl-D to leave")
    if load or go_on:
        note(notes, describe_loaded(conversation))
    settings = Settings(max_tokens=max_tokens, seed=seed, mode=mode, cycle=cycle, numerics=numerics)
    settings.thinking = {None: options.Thinking.auto, True: options.Thinking.on}.get(
        think, options.Thinking.off
    )
    flags = {"temp": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    _set_sampling(settings, {k: v for k, v in flags.items() if v is not None}, lm, notes)
    session = ChatSession(lm, tokenizer, template_config=template_config)
    if asked is not None:
        with structured.building(notes):
            session.prepare(asked.constraint)
        settings.asked = asked
    if go_on:
        load_cache(session, quantized)
    if think is not None:
        note_missing_switch(session, notes)
    name = options.DEMO if model is None else model
    chat = Chat(
        session,
        _reader(interactive),
        _screen(plain, show_thinking, notes),
        notes,
        model_name=name,
        conversation=conversation,
        settings=settings,
        think_tags=think_tags(tokenizer),
        interactive=interactive,
        keep=keep_last(name, notes) if kept else None,
        extra_options=extra,
        exact_screen=None if plain else PlainScreen(sys.stdout, None if show_thinking else notes),
    )
    try:
        chat.run()
    finally:
        if kept:
            keep_cache(session, quantized)


def _set_sampling(
    settings: "Settings", flags: dict[str, Any], model: Any, notes: "Console"
) -> None:
    """Sample as the flags say, else as the checkpoint does, and say what is the checkpoint's."""
    from .console import note
    from .settings import checkpoint_defaults

    folder = getattr(model, "folder", None)  # of a checkpoint that `load` read
    own, problems = checkpoint_defaults(folder) if folder else ({}, [])
    for name, value in (own | flags).items():
        setattr(settings, name, value)
    for problem in problems:
        note(notes, problem)
    taken = [f"{name} {value:g}" for name, value in own.items() if name not in flags]
    if taken and settings.temp > 0:
        note(notes, f"Sampling as the model's generation_config.json says: {', '.join(taken)}")


def _is_interactive() -> bool:
    return sys.stdin.isatty()


def _reader(interactive: bool) -> "Reader":
    from .console import waiting
    from .reader import EditingReader, LineReader
    from .slash import complete

    return (
        EditingReader(complete)
        if interactive
        else LineReader(waits=partial(waiting, "Waiting for a message on standard input."))
    )


def _screen(plain: bool, show_thinking: bool, notes: "Console") -> "Screen":
    from .console import answer_console, is_screen
    from .render import MarkdownScreen, PlainScreen

    console = answer_console()
    if is_screen(console) and not plain:
        return MarkdownScreen(console)
    return PlainScreen(sys.stdout, None if show_thinking or is_screen(console) else notes)
