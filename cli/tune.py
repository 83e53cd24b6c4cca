"""`orthrus-mlx tune`: try our Metal kernels on this Mac, and use them where they are faster."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .options import examples

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = examples(
    "orthrus-mlx tune orthrus-1.7b-4bit",
    "orthrus-mlx tune chiennv/Orthrus-Qwen3-1.7B --json > kernels.json",
    "orthrus-mlx tune orthrus-1.7b-4bit --forget",
)
NO_METAL = "There is no Metal here: MLX's own kernels are used, and nothing was changed."
SHOWN = (1, 2, 4, 8, 12, 16)  # numbers of rows in the table; --json has all


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A folder, a Hugging Face id, or 'demo'.", show_default=False
        ),
    ] = options.DEMO,
    revision: options.RevisionOption = None,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=1,
            help="How long each of the four kernels may take.",
        ),
    ] = 300,
    forget: Annotated[
        bool, typer.Option("--forget", help="Delete the verdict: MLX's own kernels are used again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Try our Metal kernels for few rows on this Mac, on the shapes of a model.

    Each is compiled, compared with MLX's own kernels and timed in a process of
    its own, which a fault may bring down. What was right and faster is used
    from then on, for the numbers of rows where it was; --no-tune leaves it out.
    No weights are read. Without Metal nothing happens.

    Exit code 0, also where MLX's own kernels stay; `orthrus-mlx verify` then
    proves decoding with what is in use.
    """
    from orthrus_mlx.checkpoint.read import inspect, load_model, resolve
    from orthrus_mlx.metal import kernels, verdict
    from orthrus_mlx.metal import tune as logic

    from .console import note, stderr_console
    from .progress import Bar
    from .terminal import no_echo

    notes = stderr_console()
    if not kernels.on_metal():
        note(notes, NO_METAL)
        if as_json:
            _print_json(model, verdict.verdict_table(None))
        return
    loaded = load_model(inspect(resolve(model, revision)), lazy=True)
    file = verdict.file_of(loaded)
    if forget:
        there = file.exists()
        file.unlink(missing_ok=True)
        note(notes, f"{'Deleted' if there else 'There is no'} {file}: MLX's own kernels are used.")
        return
    with no_echo(), Bar(notes, "Trying kernels") as bar:
        logic.tune(loaded, seconds, progress=bar)
    found = verdict.verdict_table(loaded)
    if as_json:
        _print_json(model, found)
    else:
        print_table(model, found)
        note(notes, f"Kept in {file}; --forget deletes it, --no-tune leaves it out.")


def _print_json(model: str, found: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps({"model": model, **found}, indent=2))


def print_table(model: str, found: dict[str, Any]) -> None:
    """Print what was measured, what failed, and the verdict last."""
    from rich.text import Text

    from .console import answer_console, for_terminal

    console = answer_console()
    console.print(Text(for_terminal(f"{model} on {found['device']}, mlx {found['mlx']}")))
    if found["products"]:
        console.print(
            "Time of our kernel over MLX's, by rows; bold where ours is used from now on."
        )
        console.print(table(found["products"]))
    for variant, why in found["faults"].items():
        console.print(Text(for_terminal(f"{variant} is not used: {why}"), "yellow"), soft_wrap=True)
    used = sum(product["used"] is not None for product in found["products"])
    if used:
        said = f"OUR KERNELS for {used} of {len(found['products'])} shapes, where they were faster."
        prove = f"orthrus-mlx verify {shlex.quote(model)}"
        said += f" Now prove decoding with them: {prove}"
    elif found["products"] or found["faults"]:
        said = "MLX'S OWN KERNELS go on: none of ours was both right and faster here."
    else:
        said = "MLX'S OWN KERNELS go on: ours compute bf16, fp16, and affine 4 and 8 bits only."
    style = "bold green" if used else "bold yellow"
    console.print(Text(for_terminal(said), style=style), soft_wrap=True)


def table(products: list[dict[str, Any]]) -> "Table":
    """Lay out, for each shape and kernel, our time over MLX's by rows."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("Shape", "Weights", "Kernel"):
        grid.add_column(column, no_wrap=True)
    for rows in SHOWN:
        grid.add_column(str(rows), justify="right", no_wrap=True)
    for product in products:
        packed = f"{product['bits']} bits / {product['group']}"
        names = [
            f"{product['outputs']} x {product['dim']}",
            product["dtype"] if product["group"] == 1 else packed,
        ]
        for variant, ms in product["ms"].items():
            used = product["used"] or {"kernel": None, "rows": []}
            cells = []
            for rows, mlx, ours in ms:
                if rows in SHOWN:
                    bold = used["kernel"] == variant and rows in used["rows"]
                    cells.append(f"[bold]{ours / mlx:.2f}[/bold]" if bold else f"{ours / mlx:.2f}")
            grid.add_row(*names, variant, *cells)
            names = ["", ""]
        grid.add_section()
    return grid
