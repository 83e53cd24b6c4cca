"""What `orthrus-mlx bench` measured, as tables for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from orthrus_mlx.tools.bench import Report, Spread
    from orthrus_mlx.tools.bench_batch import BatchReport
    from orthrus_mlx.tools.bench_shapes import ShapesReport

BARS = " ▁▂▃▄▅▆▇█"


def print_report(model: str, report: "Report") -> None:
    """Print a benchmark for people."""
    from rich.text import Text

    from .console import answer_console

    console = answer_console()
    facts = report.to_dict()
    console.print(Text(f"{model} on {facts['device']}, mlx {facts['mlx']}"))
    if report.interrupted:
        console.print(Text("Interrupted: this is what was measured by then.", style="yellow"))
    console.print(table(report))
    console.print("Median ± half the distance of the quartiles; tokens /fwd (pass) and /cycle.")
    console.print("Acceptance by draft position, first to last; the full height is 100 %:")
    for kind in report.kinds:
        drawn = histogram(report.summary(kind, "parallel").acceptance)
        console.print(Text(f"  {kind:<10} |{drawn}|"))
    differing = sum(s.differing for s in report.summaries if s.kind != "all")
    if differing:
        note = f"{differing} answers differ from AR mode's; `orthrus-mlx verify` says by how much."
        console.print(Text(note, style="yellow"))


def table(report: "Report") -> "Table":
    """Lay out all figures, a row for each kind and mode."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("Kind", no_wrap=True)
    grid.add_column("Mode", no_wrap=True)
    for column in ("Tok/s", "Speed-up", "First s", "/fwd", "/cycle", "MB", "Differ"):
        grid.add_column(column, justify="right", no_wrap=True)
    before = ""
    for row in report.summaries:
        if before and row.kind != before:
            grid.add_section()
        grid.add_row(
            row.kind if row.kind != before else "",
            row.way,
            _spread(row.speed, 1),
            _spread(row.speed_up, 2),
            f"{row.first_token.median:.2f}" if row.first_token else "",
            f"{row.tokens_per_forward:.2f}" if row.tokens_per_forward else "",
            f"{row.tokens_per_cycle:.2f}" if row.tokens_per_cycle else "",
            f"{row.peak_memory / 1e6:.0f}",
            str(row.differing) if row.way != "ar" else "",
        )
        before = row.kind
    return grid


def histogram(shares: list[float]) -> str:
    """Draw shares from 0 to 1, one character each."""
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in shares)


def print_batch(model: str, report: "BatchReport") -> None:
    """Print what many answers at once came to."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from .console import answer_console

    console, facts = answer_console(), report.to_dict()
    console.print(Text(f"{model} on {facts['device']}, mlx {facts['mlx']}"))
    if report.interrupted:
        console.print(Text("Interrupted: this is what was measured by then.", style="yellow"))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first = report.speeds[0].way if report.speeds else "plain"
    for column in ("At once", "Way", "Tok/s", f"Over {first}", "Tokens a pass"):
        grid.add_column(column, justify="left" if column == "Way" else "right", no_wrap=True)
    before = 0
    for row in report.speeds:
        if before and row.count != before:
            grid.add_section()
        grid.add_row(
            str(row.count) if row.count != before else "",
            row.way,
            _spread(row.speed, 1),
            _spread(row.ratio, 2),
            f"{row.tokens_per_pass:.2f}" if row.tokens_per_pass else "",
        )
        before = row.count
    console.print(grid)
    console.print("Tokens a second of all answers together, prompts apart.")


def print_shapes(report: "ShapesReport") -> None:
    """Print what passes cost, in units of mlx-lm's step."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from .console import answer_console

    console = answer_console()
    facts = report.to_dict()
    packed = f"{report.bits}-bit" if report.bits else "bf16"
    console.print(
        Text(f"{report.shape}, {packed}, on {facts['device']}, mlx {facts['mlx']}; cost in steps")
    )
    console.print(Text("of stock mlx-lm on the same weights, same context."))
    if report.interrupted:
        console.print(Text("Interrupted: this is what was measured by then.", style="yellow"))
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Context", "What"):
        grid.add_column(column)
    for column in ("Rows", "ms", "mlx-lm steps"):
        grid.add_column(column, justify="right")
    before = 0
    for cost in report.costs:
        if before and cost.context != before:
            grid.add_section()
        n = cost.rows
        layouts = {"one-pass": f"{n}+{n}", "alternating": f"1+{n - 1}, {n - 1}"}
        rows = layouts.get(cost.name, str(n))
        half = (cost.high - cost.low) / 2
        grid.add_row(
            f"{cost.context}" if cost.context != before else "",
            cost.name,
            rows,
            f"{cost.ms:.2f}",
            f"{cost.steps:.2f} ±{half:.2f}",
        )
        before = cost.context
    console.print(grid)
    for context, ratio in report.prefill.items():
        more = report.extra_memory.get(context, 0) / 1e6
        console.print(
            Text(
                f"Context {context}: prefill at {ratio:.2f} of mlx-lm's speed; parallel mode "
                f"needs {more:.1f} MB more than AR mode."
            )
        )


def _spread(spread: "Spread | None", digits: int) -> str:
    if spread is None:
        return ""
    half = (spread.high - spread.low) / 2 / spread.median
    return f"{spread.median:.{digits}f} ±{half:.0%}"
