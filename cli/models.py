"""`orthrus-mlx list` and `orthrus-mlx rm`: the checkpoints in the Hub's cache on this disk."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .options import examples

if TYPE_CHECKING:
    from rich.table import Table

    from orthrus_mlx.checkpoint.hub_cache import CachedModel, CachedSnapshot

LIST_EXAMPLES = examples("orthrus-mlx list", "orthrus-mlx list --all --json")
REMOVE_EXAMPLES = examples(
    "orthrus-mlx rm chiennv/Orthrus-Qwen3-1.7B",
    "orthrus-mlx rm chiennv/Orthrus-Qwen3-1.7B --revision 3f1c --yes",
)


def list_models(
    every: Annotated[
        bool, typer.Option("--all", help="Show models without a diffusion view too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")] = False,
) -> None:
    """List the Orthrus checkpoints that were downloaded, with their sizes.

    They lie in the Hugging Face cache, which other programs use too.
    """
    from orthrus_mlx.checkpoint.hub_cache import cached_models

    from .console import answer_console, note, stderr_console

    found = cached_models()
    shown = [model for model in found if every or model.orthrus]
    if as_json:
        import json

        typer.echo(json.dumps([_as_json(model) for model in shown], indent=2))
        return
    if shown:
        answer_console().print(_table(shown))
    if not shown:
        note(stderr_console(), "No Orthrus checkpoint was downloaded yet.")
    if others := len(found) - len(shown):
        is_are = "model without a diffusion view is" if others == 1 else "other models are"
        note(stderr_console(), f"{others} {is_are} in the cache too: --all lists all.")


def remove_models(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Hugging Face ids.", show_default=False),
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            help="Remove only this branch, tag or commit (its first digits will do).",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove checkpoints from the Hugging Face cache, after asking.

    What is removed here is downloaded again at the next use.
    """
    from orthrus_mlx.checkpoint.hub_cache import SHORT, remove

    from .console import note, stderr_console
    from .info import size

    notes = stderr_console()
    removal = remove(names, revision)
    for model, chosen in removal.parts:
        commits = ", ".join(snapshot.commit[:SHORT] for snapshot in chosen)
        which = "all of it" if chosen == model.snapshots else f"revision {commits}"
        note(notes, f"{model.repo_id}, {which}: {model.folder}", style="")
    if not yes:
        if not is_person():
            raise typer.BadParameter("nobody is there to ask; remove without asking by --yes")
        if not typer.confirm(f"Remove it from the disk ({size(removal.size)})?", err=True):
            raise typer.Exit(1)
    removal.execute()
    note(notes, f"Removed; {size(removal.size)} are free again.")


def is_person() -> bool:
    """Whether somebody can answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def _table(models: "list[CachedModel]") -> "Table":
    from datetime import datetime

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from orthrus_mlx.checkpoint.hub_cache import SHORT

    from .console import for_terminal
    from .info import size

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Model", overflow="fold")
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Revision", no_wrap=True)
    table.add_column("Last used", no_wrap=True)
    table.add_column("State", overflow="fold")
    for model in models:
        used = f"{datetime.fromtimestamp(model.last_used):%Y-%m-%d}" if model.last_used else ""
        for n, snapshot in enumerate(model.snapshots or (None,)):
            first = n == 0
            table.add_row(
                Text(for_terminal(model.repo_id)) if first else "",
                size(model.size) if first else "",
                Text(for_terminal(snapshot.commit[:SHORT])) if snapshot else "",
                used if first else "",
                _state(model, snapshot),
            )
    return table


def _state(model: "CachedModel", snapshot: "CachedSnapshot | None") -> str:
    if not model.orthrus:
        return "no diffusion view"
    return "complete" if snapshot and snapshot.complete else "incomplete"


def _as_json(model: "CachedModel") -> dict[str, object]:
    return {
        "model": model.repo_id,
        "folder": str(model.folder),
        "size": model.size,
        "last_used": model.last_used or None,
        "orthrus": model.orthrus,
        "revisions": [
            {
                "commit": snapshot.commit,
                "refs": list(snapshot.refs),
                "size": snapshot.size,
                "complete": snapshot.complete,
            }
            for snapshot in model.snapshots
        ],
    }
