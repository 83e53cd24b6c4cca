"""`orthrus-mlx train`: give a Qwen3 model a diffusion view of its own."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, ranks
from .options import Dtype, examples

if TYPE_CHECKING:
    from orthrus_mlx.training.events import Event, Report

EXAMPLES = examples(
    "orthrus-mlx train --model Qwen/Qwen3-0.6B --data chats --output my-orthrus --regenerate",
    "orthrus-mlx train --model Qwen/Qwen3-0.6B --data chats --output my-orthrus --resume",
    "orthrus-mlx train -c run.yaml --iters 2000",
    "orthrus-mlx chat --model my-orthrus",
)

_BASE, _BLOCKS, _STEPS, _WATCH = "Base and data", "Blocks", "Optimization", "Watching and saving"


def _option(help: str, panel: str, *names: str, **more: Any) -> Any:
    # Every default is None, so that a flag that was given can override --config.
    return typer.Option(*names, help=help, show_default=False, rich_help_panel=panel, **more)


def train(
    model: Annotated[
        str | None,
        _option("The base: a Qwen3 or Orthrus checkpoint, a folder or a Hugging Face id.", _BASE),
    ] = None,
    revision: Annotated[
        str | None, _option("Branch, tag or commit of a Hugging Face model.", _BASE)
    ] = None,
    data: Annotated[
        Path | None,
        _option(
            "Folder with train.jsonl and valid.jsonl, in one of mlx-lm's formats: messages, "
            "prompt and completion, or text.",
            _BASE,
            metavar="FOLDER",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        _option("Folder to write the checkpoint to; must not exist.", _BASE, metavar="FOLDER"),
    ] = None,
    regenerate: Annotated[
        bool | None,
        _option(
            "First replace the answers with the base model's own greedy ones, as the paper does: "
            "the view will have to draft those.",
            _BASE,
            "--regenerate",
        ),
    ] = None,
    max_seq_length: Annotated[
        int | None, _option("Cut longer texts. [dim]\\[2048][/dim]", _BASE, metavar="N")
    ] = None,
    chat_template_config: Annotated[
        str | None,
        _option("Arguments for the chat template, as a JSON object.", _BASE, metavar="JSON"),
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            "A YAML file with any of these options by name, such as batch_size: 8. The command "
            "line overrides it.",
            _BASE,
            "--config",
            "-c",
            metavar="FILE",
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        _option(
            "Rows of a block: the anchor and the masks. [dim]\\[the checkpoint's, else 32][/dim]",
            _BLOCKS,
            metavar="N",
        ),
    ] = None,
    mask_token_id: Annotated[
        int | None,
        _option(
            "The id of a mask. [dim]\\[the checkpoint's, else one that the tokenizer leaves "
            "unused][/dim]",
            _BLOCKS,
            metavar="ID",
        ),
    ] = None,
    anchors: Annotated[
        int | None,
        _option("Blocks per text. [dim]\\[one per 8 tokens][/dim]", _BLOCKS, metavar="N"),
    ] = None,
    iters: Annotated[
        int | None, _option("Optimizer steps. [dim]\\[1000][/dim]", _STEPS, metavar="N")
    ] = None,
    batch_size: Annotated[
        int | None, _option("Texts per step. [dim]\\[4][/dim]", _STEPS, metavar="N")
    ] = None,
    learning_rate: Annotated[
        float | None,
        _option(
            "AdamW's peak rate; a cosine takes it to 0. [dim]\\[2e-4][/dim]", _STEPS, metavar="X"
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        _option("Share of steps in which the rate rises. [dim]\\[0.05][/dim]", _STEPS, metavar="X"),
    ] = None,
    weight_decay: Annotated[
        float | None, _option("AdamW's weight decay. [dim]\\[0][/dim]", _STEPS, metavar="X")
    ] = None,
    max_grad_norm: Annotated[
        float | None,
        _option("Scale larger gradients down to this norm. [dim]\\[1][/dim]", _STEPS, metavar="X"),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        _option(
            "Type to compute in; the weights under training also have a float32 copy. "
            "[dim]\\[the base's][/dim]",
            _STEPS,
            metavar="TYPE",
        ),
    ] = None,
    grad_checkpoint: Annotated[
        bool | None,
        _option(
            "Recompute each layer in the backward pass: less memory, more time.",
            _STEPS,
            "--grad-checkpoint",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option("Seed of the data order and the anchors. [dim]\\[0][/dim]", _STEPS, metavar="N"),
    ] = None,
    steps_per_report: Annotated[
        int | None,
        _option("Steps between reports of the loss. [dim]\\[10][/dim]", _WATCH, metavar="N"),
    ] = None,
    steps_per_eval: Annotated[
        int | None,
        _option("Steps between validations; 0 for none. [dim]\\[200][/dim]", _WATCH, metavar="N"),
    ] = None,
    val_batches: Annotated[
        int | None,
        _option("Batches in a validation; -1 for all. [dim]\\[25][/dim]", _WATCH, metavar="N"),
    ] = None,
    val_prompts: Annotated[
        int | None,
        _option(
            "Prompts on which to measure tokens per cycle. [dim]\\[8][/dim]", _WATCH, metavar="N"
        ),
    ] = None,
    val_max_tokens: Annotated[
        int | None,
        _option("Most tokens per answer to them. [dim]\\[128][/dim]", _WATCH, metavar="N"),
    ] = None,
    save_every: Annotated[
        int | None,
        _option(
            "Steps between saves of the unfinished run, in OUTPUT.training. [dim]\\[500][/dim]",
            _WATCH,
            metavar="N",
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        _option("Continue the run saved for this output.", _WATCH, "--resume"),
    ] = None,
) -> None:
    """Teach a Qwen3 model to draft: train a diffusion view, and write an Orthrus checkpoint.

    The base and its answers stay as they are, bit for bit. Ctrl-C saves the run,
    --resume continues it.
    """
    given = {name: value for name, value in locals().items() if value is not None}  # all flags
    ranks.refuse("train")
    given.pop("config", None)
    if chat_template_config is not None:
        given["chat_template_config"] = options.parse_template_config(chat_template_config)
    if dtype is not None:
        given["dtype"] = dtype.value

    from orthrus_mlx.training.options import TrainOptions, read_config

    settings = {**(read_config(config) if config else {}), **given}
    for name in ("model", "data", "output"):
        if not settings.get(name):
            raise typer.BadParameter("is needed, here or in --config", param_hint=f"--{name}")

    from orthrus_mlx.training import train as run

    with shown() as report:
        result = run(TrainOptions(**settings), report)
    if result.interrupted:
        typer.echo("Interrupted; run the same command with --resume to go on.", err=True)
        raise typer.Exit(130)


@contextmanager
def shown() -> "Generator[Report, None, None]":
    """Report each event as a line, with a progress bar below on a terminal."""
    from .console import answer_console, is_screen

    console = answer_console()
    if not is_screen(console):
        yield lambda event: console.print(str(event), soft_wrap=True, markup=False)
        return

    from rich import progress

    from orthrus_mlx.training.events import Regenerated, Started, Trained

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, progress.TaskID] = {}

    def advance(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total)
        bar.update(tasks[name], completed=done, visible=done < total)

    def report(event: "Event") -> None:
        if isinstance(event, Regenerated):
            advance(f"Regenerating {event.split}", event.done, event.total)
            return
        if isinstance(event, Started | Trained):
            advance("Training", event.step, event.iters)
        console.print(str(event), soft_wrap=True, markup=False)

    with bar:
        yield report
