"""`orthrus-mlx bench`: how fast each mode is on this machine."""

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .bench_tables import print_batch, print_report, print_shapes
from .options import examples

EXAMPLES = examples(
    "orthrus-mlx bench",
    "orthrus-mlx bench chiennv/Orthrus-Qwen3-1.7B --against mlx-lm --plot speed.png",
    "orthrus-mlx bench mlx_model --prompts questions.txt --json > bench.json",
    "orthrus-mlx bench --concurrency 1,2,4,8 --against mlx-lm",
    "orthrus-mlx bench --shapes qwen3-8b --bits 4 --context 512,8192",
)


class Shape(StrEnum):
    """Real sizes that can be built from random weights."""

    small = "qwen3-1.7b"
    middle = "qwen3-4b"
    large = "qwen3-8b"


PROMPTS, MAX_TOKENS = 10, 128
CONTEXT, ROWS = "512", "1,8,16,32"  # of --shapes


class Baseline(StrEnum):
    """Implementations to time beside this one."""

    mlx_lm = "mlx-lm"


def _counts(flag: str, text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers such as 1,2,8", param_hint=flag
        )
    return counts


def _refuse(flags: Iterable[tuple[str, bool]], why: str) -> None:
    for flag, given in flags:
        if given:
            raise typer.BadParameter(why, param_hint=flag)


def _known_bits(bits: int | None) -> int | None:
    if bits not in (None, 2, 3, 4, 5, 6, 8):
        raise typer.BadParameter(f"{bits} bits cannot be packed; choose 2 to 6, or 8")
    return bits


def bench(
    model: options.ModelArgument = None,
    revision: options.RevisionOption = None,
    tune: options.TuneOption = True,
    prompts: Annotated[
        Path | None,
        typer.Option(
            callback=options.at_home,
            metavar="FILE",
            help='Prompts of your own: .txt with one a line, or .jsonl with "prompt" or '
            '"messages". [dim]\\[default: a bundled set of five kinds][/dim]',
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the prompts to use.")
    ] = PROMPTS,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-m", metavar="N", min=2, help="Most tokens per answer.")
    ] = MAX_TOKENS,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Times that everything is measured.")
    ] = 3,
    against: Annotated[
        Baseline | None,
        typer.Option(
            metavar="NAME",
            help="Time 'mlx-lm' on the same weights too.",
            show_default=False,
        ),
    ] = None,
    cycle: options.CycleOption = options.Cycle.auto,
    numerics: options.NumericsOption = options.Numerics.fast,
    block_size: options.BlockSizeOption = None,
    calibrate: options.CalibrateOption = True,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,..",
            help="Time so many answers at once, such as 1,2,4,8: plain batches and batches that "
            "draft.",
            show_default=False,
        ),
    ] = None,
    shapes: Annotated[
        Shape | None,
        typer.Option(
            metavar="SIZE",
            help="Build random weights of a real size (qwen3-1.7b, qwen3-4b, qwen3-8b) and time "
            "each kind of pass, in units of mlx-lm's step. Downloads nothing.",
            show_default=False,
            rich_help_panel="Shapes",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            callback=_known_bits,
            help="Quantize these weights to N bits. [dim]\\[default: bf16][/dim]",
            show_default=False,
            rich_help_panel="Shapes",
        ),
    ] = None,
    context: Annotated[
        str,
        typer.Option(
            metavar="N,..", help="Tokens in the KV cache while timing.", rich_help_panel="Shapes"
        ),
    ] = CONTEXT,
    rows: Annotated[
        str,
        typer.Option(metavar="N,..", help="Rows of a pass.", rich_help_panel="Shapes"),
    ] = ROWS,
    plot: Annotated[
        Path | None,
        typer.Option(
            callback=options.at_home,
            metavar="FILE",
            help="Plot speed-up by kind and acceptance rate by position (needs matplotlib).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every run as JSON.")] = False,
) -> None:
    """Time AR, parallel and auto mode side by side, on real prompts.

    The modes take turns within each round. Ctrl-C shows what is known so far.
    """
    drafting = (
        ("--cycle", cycle != options.Cycle.auto),
        ("--numerics", numerics != options.Numerics.fast),
        ("--block-size", block_size is not None),
        ("--no-calibrate", not calibrate),
    )
    if shapes is not None:
        if concurrency is not None:
            raise typer.BadParameter(
                "needs real drafts, which random weights do not make", param_hint="--concurrency"
            )
        if model is not None or prompts is not None or plot is not None:
            raise typer.BadParameter(
                "measures random weights: it takes no MODEL, --prompts or --plot",
                param_hint="--shapes",
            )
        answers = (
            ("--revision", revision is not None),
            ("--num-prompts", num_prompts != PROMPTS),
            ("--max-tokens", max_tokens != MAX_TOKENS),
            ("--against", against is not None),
        )
        _refuse((*answers, *drafting), "cannot be combined with --shapes")
        sizes = _counts("--context", context), _counts("--rows", rows)
        _bench_shapes(shapes.value, bits, tune, *sizes, rounds, as_json)
        return
    only = (
        ("--bits", bits is not None),
        ("--context", context != CONTEXT),
        ("--rows", rows != ROWS),
    )
    _refuse(only, "goes with --shapes")
    from orthrus_mlx.tools import bench as logic
    from orthrus_mlx.tools import bench_plot
    from orthrus_mlx.tools.prompts import bundled, from_file
    from orthrus_mlx.tools.verify import encode

    from .console import stderr_console
    from .progress import Bar
    from .terminal import no_echo

    counts = [] if concurrency is None else _counts("--concurrency", concurrency)
    if counts:
        _refuse((*drafting, ("--plot", plot is not None)), "cannot be combined with --concurrency")
    if plot is not None:
        bench_plot.check_plot(plot)
    chosen = (from_file(prompts) if prompts else bundled())[:num_prompts]
    loaded, tokenizer = options.load_model(model, revision, quiet=as_json, tune=tune)
    if counts:
        ids = encode(tokenizer, chosen)
        ends = frozenset(tokenizer.eos_token_ids)
        size = (max_tokens, rounds)
        _bench_batch(model, loaded, ids, ends, counts, size, against is not None, as_json)
        return
    kinds = [prompt.kind for prompt in chosen]
    with no_echo(), Bar(stderr_console(), "Writing answers") as bar:
        report = logic.bench(
            loaded,
            list(zip(kinds, encode(tokenizer, chosen), strict=True)),
            frozenset(tokenizer.eos_token_ids),
            logic.Options(max_tokens, rounds, cycle.value, numerics.value, block_size, calibrate),
            against=against is not None,
            progress=bar,
        )
    name = options.DEMO if model is None else model
    if as_json:
        typer.echo(json.dumps({"model": name, **report.to_dict()}, indent=2))
    else:
        print_report(name, report)
    if plot is not None and report.runs:
        bench_plot.plot(report, plot, name)
    if report.interrupted:
        raise typer.Exit(130)


def _bench_batch(
    name: str | None,
    model: Any,
    prompts: list[list[int]],
    ends: frozenset[int],
    counts: list[int],
    size: tuple[int, int],
    against: bool,
    as_json: bool,
) -> None:
    from orthrus_mlx.device.calibrate_batch import batch_costs
    from orthrus_mlx.tools import bench_batch as logic

    from .console import stderr_console
    from .progress import Bar, probe_bar
    from .terminal import no_echo

    with (
        no_echo(),
        probe_bar(stderr_console()) as probing,
        Bar(stderr_console(), "Writing answers") as bar,
    ):
        report = logic.bench_batch(
            model,
            prompts,
            ends,
            counts,
            lambda: batch_costs(model, model.config.block_size, probing),
            max_tokens=size[0],
            rounds=size[1],
            against=against,
            progress=bar,
        )
    if as_json:
        typer.echo(json.dumps({"model": name or options.DEMO, **report.to_dict()}, indent=2))
    else:
        print_batch(name or options.DEMO, report)
    if report.interrupted:
        raise typer.Exit(130)


def _bench_shapes(
    shape: str,
    bits: int | None,
    tune: bool,
    contexts: list[int],
    rows: list[int],
    rounds: int,
    as_json: bool,
) -> None:
    from orthrus_mlx.tools import bench_shapes as logic

    from .console import stderr_console
    from .progress import Bar
    from .terminal import no_echo

    report = logic.ShapesReport(shape, bits)
    with no_echo(), Bar(stderr_console(), "Timing passes") as bar:
        logic.measure(
            logic.build(shape, bits, tune=tune),
            report,
            contexts=contexts,
            rows=rows,
            rounds=rounds,
            progress=bar,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        print_shapes(report)
    if report.interrupted:
        raise typer.Exit(130)
