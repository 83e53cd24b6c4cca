"""`orthrus-mlx verify`: prove on this device that parallel decoding is lossless."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import Dtype, examples

if TYPE_CHECKING:
    from rich.table import Table

    from orthrus_mlx.tools.verify import Report, Row

EXAMPLES = examples(
    "orthrus-mlx verify demo",
    "orthrus-mlx verify chiennv/Orthrus-Qwen3-1.7B --against mlx-lm",
    "orthrus-mlx verify mlx_model --prompts questions.txt --json > certificate.json",
)
SHOWN = 3  # differences printed for each row; --json has more


class Reference(StrEnum):
    """Other implementations of AR decoding."""

    mlx_lm = "mlx-lm"
    torch = "torch"


def verify(
    model: options.NeededModelArgument,
    revision: options.RevisionOption = None,
    adapter_path: options.AdapterPathOption = None,
    tune: options.TuneOption = True,
    prompts: Annotated[
        Path | None,
        typer.Option(
            callback=options.at_home,
            metavar="FILE",
            help='Prompts of your own: .txt with one a line, or .jsonl with "prompt" or '
            '"messages". [dim]\\[default: a bundled mixed set][/dim]',
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the prompts to use.")
    ] = 8,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-m", metavar="N", min=1, help="Most tokens per answer.")
    ] = 128,
    against: Annotated[
        list[Reference] | None,
        typer.Option(
            metavar="NAME",
            help="Compare AR mode with another implementation too: 'mlx-lm', or 'torch' "
            "(Hugging Face transformers). May be given twice.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="TYPE",
            help="Cast an unquantized model: float32, bfloat16 or float16. "
            "[dim]\\[default: as it is stored][/dim]",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Probe this device again, even if a result is stored.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """Prove on this device that parallel mode writes the tokens of AR mode.

    Answers prompts in both modes, greedy and sampled, exact and fast, and
    compares every token. Ctrl-C shows what is known so far.

    Exit code 0: lossless. 1: exact mode differed, fast mode differed other than
    at a near-tie, or this device allows no exact mode.
    """
    from orthrus_mlx.device.probe import cached_probe
    from orthrus_mlx.tools import verify as logic
    from orthrus_mlx.tools.prompts import bundled, from_file

    from .console import stderr_console
    from .progress import Bar, probe_bar
    from .terminal import no_echo

    chosen = (from_file(prompts) if prompts else bundled())[:num_prompts]
    loaded, tokenizer = options.load_model(
        model, revision, quiet=as_json, adapter_path=adapter_path, tune=tune
    )
    if dtype is not None:
        cast(loaded, dtype)
    notes = stderr_console()
    with no_echo(), probe_bar(notes) as probing, Bar(notes, "Comparing answers") as comparing:
        probe = cached_probe(loaded, progress=probing, fresh=fresh)
        report = logic.verify(
            loaded,
            logic.encode(tokenizer, chosen),
            frozenset(tokenizer.eos_token_ids),
            probe,
            max_tokens=max_tokens,
            against=list(dict.fromkeys(a.value for a in against or [])),
            progress=comparing,
        )
    tuned = getattr(loaded, "kernels", None) is not None
    if as_json:
        import json

        typer.echo(
            json.dumps({"model": model, "tuned_kernels": tuned, **report.to_dict()}, indent=2)
        )
    else:
        print_report(f"{model}, with tuned kernels," if tuned else model, report, tokenizer)
    if not report.passed:
        raise typer.Exit(130 if report.interrupted and not report.faults else 1)


def cast(model: Any, dtype: Dtype) -> None:
    """Cast an unquantized model to another type."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from orthrus_mlx.checkpoint.read import ready

    weights: Any = tree_flatten(model.parameters())
    if any(name.endswith(".scales") for name, _ in weights):
        raise typer.BadParameter("this checkpoint is quantized", param_hint="--dtype")
    model.set_dtype(getattr(mx, dtype.value))
    ready(model)


def print_report(model: str, report: "Report", tokenizer: Any) -> None:
    """Print a report for people, the verdict last."""
    from rich.text import Text

    from orthrus_mlx.tools.verify import describe

    from .console import answer_console, for_terminal
    from .probing import probe_line

    console = answer_console()
    facts = report.to_dict()
    console.print(Text(f"{model} on {facts['device']}, {facts['system']}, mlx {facts['mlx']}"))
    console.print(Text(probe_line(report.probe)), soft_wrap=True)
    if report.no_exact:
        console.print(Text(report.no_exact, style="yellow"), soft_wrap=True)
    console.print()
    console.print(table(report))
    for row in report.rows:
        for difference in row.tally.differences[:SHOWN]:
            line = f"{name_of(row)}: {describe(difference, tokenizer)}"
            console.print(Text(for_terminal(line)), soft_wrap=True)
        if (more := row.tally.differing - SHOWN) > 0:
            console.print(Text(f"{name_of(row)}: and {more} more", style="dim"))
    if any(row.tally.differing for row in report.rows):
        console.print()
    style = "bold green" if report.passed else "bold red" if report.faults else "bold yellow"
    console.print(Text(report.verdict, style=style), soft_wrap=True)


def name_of(row: "Row") -> str:
    """Name one row of the report."""
    choice = f"T={row.temperature:g}" if row.temperature else "greedy"
    return f"{row.numerics} {choice} {row.way}"


def table(report: "Report") -> "Table":
    """Lay out how each row compares with AR mode."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Numerics", "Choice", "AR against"):
        grid.add_column(column)
    for column in ("Same answers", "Same tokens", "Tokens a forward"):
        grid.add_column(column, justify="right")
    for row in report.rows:
        tally = row.tally
        passes = tally.forward_passes
        grid.add_row(
            row.numerics,
            f"T={row.temperature:g}" if row.temperature else "greedy",
            row.way,
            f"{tally.same_prompts} of {tally.prompts}",
            f"{tally.same_tokens:,} of {tally.tokens:,}",
            f"{tally.tokens / passes:.2f}" if passes else "",
            style="red" if row.faults else "",
        )
    return grid
