"""`orthrus-mlx report`: all that this machine can tell, to be posted."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .options import examples

EXAMPLES = examples(
    "orthrus-mlx report",
    "orthrus-mlx report chiennv/Orthrus-Qwen3-1.7B | pbcopy",
    "orthrus-mlx report mlx_model --json results/my-mac.json > report.md",
)


def report(
    model: options.ModelArgument = None,
    revision: options.RevisionOption = None,
    num_prompts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the bundled prompts to use.")
    ] = 5,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens",
            "-m",
            metavar="N",
            min=2,
            help="Most tokens per answer; half of them where answers are compared.",
        ),
    ] = 128,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            callback=options.at_home,
            metavar="FILE",
            help="Write all figures as JSON too, as docs/results.md is made from.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure everything about a model on this machine, as Markdown to post.

    Device, versions, probe, a short `verify`, costs of passes, a short `bench`,
    memory. Names no folder of yours. Takes some minutes; Ctrl-C shows what is
    known so far.

    Exit code 0: lossless here. 1: not so, or something failed.
    """
    from orthrus_mlx.checkpoint.info import describe
    from orthrus_mlx.checkpoint.read import resolve
    from orthrus_mlx.tools import report as logic

    from .console import note, stderr_console
    from .progress import Bar
    from .terminal import no_echo

    if json_file is not None:
        logic.check_file(json_file)
    name = options.DEMO if model is None else model
    info = describe(resolve(name, revision))
    loaded, tokenizer = options.load_model(model, revision)
    notes = stderr_console()
    with no_echo():
        found = logic.measure(
            loaded,
            tokenizer,
            info,
            name,
            max_tokens=max_tokens,
            num_prompts=num_prompts,
            progress=lambda title: Bar(notes, title),
        )
    raw = found.to_dict()
    if json_file is not None:
        logic.save(raw, json_file)
        note(notes, f"Wrote {json_file}.")
    print_report(raw)
    if not found.interrupted:
        note(notes, "Please post it: as an issue, by the template `Report from a machine`.")
        if json_file is not None:
            note(notes, f"{json_file} is a row of results, as results/{logic.file_name(raw)}.")
    if not found.passed:
        raise typer.Exit(130 if found.interrupted and not found.failed else 1)


def print_report(raw: dict[str, Any]) -> None:
    """Print a report as Markdown; on a terminal its heads stand out."""
    from rich.text import Text

    from orthrus_mlx.tools.report import markdown

    from .console import answer_console

    console = answer_console()
    for line in markdown(raw).splitlines():
        verdict = "green" if raw["passed"] else "yellow"
        style = "bold" if line.startswith("#") else verdict if line.startswith("**") else ""
        console.print(Text(line, style=style), soft_wrap=True)
