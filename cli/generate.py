"""`orthrus-mlx generate`: one prompt in, one answer out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import answer, answer_file, habits, options, penalties, structured
from .cache_prompt import open_cached
from .message import encode_message, read_message
from .options import examples

EXAMPLES = examples(
    'orthrus-mlx generate "Write a haiku about the sea"',
    "orthrus-mlx generate --model chiennv/Orthrus-Qwen3-1.7B -m 512 -p 'Hello!'",
    'orthrus-mlx generate "Three rivers, as JSON" --no-verbose > rivers.json',
    "orthrus-mlx generate 'Ann is 7 years old. As JSON.' --json-schema person.json",
    "orthrus-mlx generate 'How tall is a giraffe?' --regex '[0-9]{1,3} (cm|m)'",
    "orthrus-mlx generate 'Is 7 a prime?' --choices yes,no",
    "orthrus-mlx generate 'Write 12 plus 7 as a sum.' --grammar sum.lark",
    "cat a.py | orthrus-mlx generate 'Rename x to n' -m -1 --prediction a.py",
    "cat notes.txt | orthrus-mlx generate 'Summarize this'",
    "orthrus-mlx generate --temp 0.7 --top-p 0.9 --seed 7 'Tell me a story'",
    "orthrus-mlx generate --ignore-chat-template 'Once upon a time'",
    "orthrus-mlx generate --prompts questions.jsonl --output answers.jsonl",
)

CONCURRENCY = 8


def generate(
    context: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="The message; '-' reads it from standard input. What a pipe brings stands "
            "before the message.",
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
    no_stdin: Annotated[
        bool,
        typer.Option(
            "--no-stdin",
            help="Do not read standard input; nor does a rank of mlx.launch (MLX_RANK).",
        ),
    ] = False,
    use_default_chat_template: Annotated[
        bool,
        typer.Option(
            "--use-default-chat-template",
            help="Where the checkpoint has no chat template, use that of Qwen3's chats (ChatML).",
        ),
    ] = False,
    prefill_response: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="How the answer begins; it is not printed.", show_default=False
        ),
    ] = None,
    prompt_cache_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Go on with a prompt that cache-prompt read: the prompt is the rest of its "
            "message, and --model may be left out.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            callback=options.at_home,
            metavar="FILE",
            help='Answer a file of prompts, many at once: .jsonl, an object a line with "prompt" '
            'or "messages", and options such as "max_tokens" or "seed". Needs --output.',
            show_default=False,
            rich_help_panel="Many prompts",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            callback=options.at_home,
            metavar="FILE",
            help="Where the answers to --prompts go, an object a line, ordered as the prompts. "
            "The same command goes on where an earlier run was interrupted.",
            show_default=False,
            rich_help_panel="Many prompts",
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Answers at once at most.", rich_help_panel="Many prompts"
        ),
    ] = CONCURRENCY,
    verbose: Annotated[
        bool, typer.Option(help="Report speed, drafting, memory and reasoning on stderr.")
    ] = True,
    think: options.ThinkOption = None,
    show_thinking: options.ShowThinkingOption = False,
    model: options.ModelOption = None,
    revision: options.RevisionOption = None,
    adapter_path: options.AdapterPathOption = None,
    tune: options.TuneOption = True,
    chat_template_config: options.ChatTemplateConfigOption = None,
    temp: options.TempOption = 0.0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    top_k: options.TopKOption = 0,
    seed: options.SeedOption = None,
    repetition_penalty: penalties.RepetitionPenaltyOption = None,
    repetition_context_size: penalties.RepetitionContextOption = 20,
    presence_penalty: penalties.PresencePenaltyOption = None,
    presence_context_size: penalties.PresenceContextOption = 20,
    frequency_penalty: penalties.FrequencyPenaltyOption = None,
    frequency_context_size: penalties.FrequencyContextOption = 20,
    logit_bias: penalties.LogitBiasOption = None,
    json_schema: structured.JsonSchemaOption = None,
    regex: structured.RegexOption = None,
    grammar: structured.GrammarOption = None,
    choices: structured.ChoicesOption = None,
    prediction: structured.PredictionOption = None,
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
            help="A further token that ends the answer; may be repeated. With --prompt, several "
            "may follow at once.",
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
    kv_bits: options.KvBitsOption = None,
    kv_group_size: options.KvGroupSizeOption = 64,
    quantized_kv_start: options.QuantizedKvStartOption = 5000,
) -> None:
    """Answer one prompt and exit.

    The answer streams to stdout, and nothing else goes there: it can be piped. With --prompts, many
    prompts are answered into a file.
    """
    template_config = options.parse_template_config(chat_template_config)
    bias = penalties.parse_logit_bias(logit_bias)
    asked = structured.from_flags(
        json_schema=json_schema, regex=regex, grammar=grammar, choices=choices
    )
    predicted = structured.read_prediction(prediction, mode.value)
    for flag, value in (
        ("--system-prompt", system_prompt),
        ("--prefill-response", prefill_response),
        ("--think" if think else "--no-think", think),
    ):
        if ignore_chat_template and value is not None:
            raise typer.BadParameter(
                "needs the chat template that --ignore-chat-template leaves out", param_hint=flag
            )
    if prompt_cache_file is not None and system_prompt is not None:
        raise typer.BadParameter(
            "stands before what was cached: give it to cache-prompt", param_hint="--system-prompt"
        )
    if (prompts is None) != (output is None):
        raise typer.BadParameter("--prompts and --output go together", param_hint="--prompts")
    if prompts is not None:
        for flag, given in (
            ("PROMPT", text),
            ("--prompt", prompt),
            ("--prompt-cache-file", prompt_cache_file),
            ("--prefill-response", prefill_response),
            ("--prediction", prediction),
            ("--show-thinking", show_thinking or None),
        ):
            if given is not None:
                raise typer.BadParameter("cannot be combined with --prompts", param_hint=flag)
    elif concurrency != CONCURRENCY:
        raise typer.BadParameter("goes with --prompts", param_hint="--concurrency")
    many = answer_file.read(prompts, output) if prompts is not None and output is not None else []
    message = "" if prompts is not None else read_message(text, prompt, no_stdin)

    cached: Any = None
    if prompt_cache_file is not None:
        cached, model, revision, adapter_path = open_cached(
            prompt_cache_file, options.typed_model(context, model), revision, adapter_path
        )
    lm, tokenizer = options.load_model(
        model, revision, quiet=not verbose, adapter_path=adapter_path, tune=tune
    )
    penalties.check_bias(bias, lm)
    if use_default_chat_template:
        habits.use_default_chat_template(tokenizer)
    for token in extra_eos_token or ():
        _add_eos_token(tokenizer, token)
    common: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temp,
        "top_p": top_p,
        "min_p": min_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or [],
        "mode": mode.value,
        "cycle": cycle.value,
        "numerics": numerics.value,
        "block_size": block_size,
        "calibrate": calibrate,
        "prefill_step_size": prefill_step_size,
        "repetition_penalty": repetition_penalty,
        "repetition_context_size": repetition_context_size,
        "presence_penalty": presence_penalty,
        "presence_context_size": presence_context_size,
        "frequency_penalty": frequency_penalty,
        "frequency_context_size": frequency_context_size,
        "logit_bias": bias,
        "prediction": predicted,
        "kv_bits": kv_bits,
        "kv_group_size": kv_group_size,
        "quantized_kv_start": quantized_kv_start,
    }
    if prompts is not None and output is not None:
        answer_file.run(
            lm,
            tokenizer,
            many,
            output,
            common,
            constraint=asked.constraint if asked else None,
            concurrency=concurrency,
            system_prompt=system_prompt,
            raw=ignore_chat_template or not tokenizer.has_chat_template,
            template_config=template_config,
            think=think,
            also={
                "model": model,
                "revision": revision,
                "adapter": adapter_path and str(adapter_path),
                "default_chat_template": use_default_chat_template,
                "extra_eos_token": extra_eos_token,
                "constraint": repr(asked.constraint) if asked else None,
            },
            quiet=not verbose,
        )
        return
    from orthrus_mlx.chat.prompt import encode_start

    # How the answer begins, where a constraint or a prediction has to be told.
    start = prefill_response if asked is not None or predicted is not None else None
    ids, sent = encode_message(
        tokenizer,
        message,
        system_prompt,
        template_config,
        think,
        prefill_response,
        cached=cached is not None,
        apart=start is not None,
        raw=ignore_chat_template or (cached is not None and cached.raw),
        quiet=not verbose,
    )
    more: dict[str, Any] = {
        "written": [] if start is None else encode_start(tokenizer, sent, start)
    }
    if asked is not None:
        more["constraint"] = asked.constraint
    if cached is not None:
        more |= {"prompt_cache": cached.layers, "cached_ids": cached.ids or ()}
    answer.run(
        lm,
        tokenizer,
        ids,
        sent,
        common | more,
        asked=asked,
        show_thinking=show_thinking,
        quiet=not verbose,
    )


def _add_eos_token(tokenizer: Any, token: str) -> None:
    try:
        tokenizer.add_eos_token(token)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--extra-eos-token") from None
