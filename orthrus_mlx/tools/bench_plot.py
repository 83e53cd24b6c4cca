"""Draw a benchmark: speed-up by kind of text, and acceptance rate by draft position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..device.measured import device_name
from ..errors import OrthrusError, OutputError
from ..files import check_parent
from .bench import Report


def check_plot(path: Path) -> None:
    """Check before measuring that the plot can be drawn.

    Raises:
        OrthrusError: if matplotlib is missing, or `path` cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise OrthrusError(
            f"Drawing needs matplotlib ({e}). Install it with: pip install 'orthrus-mlx[plot]'"
        ) from e
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in known:
        raise OutputError(
            f"{path} names no kind of picture; its name should end in .{', .'.join(known)}."
        )
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file for the plot.")
    check_parent(path)


def plot(report: Report, path: Path, title: str) -> None:
    """Write the plot to `path`; its suffix decides the format.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{title} on {device_name()}")
    summaries = report.summaries
    ways = [way for way in report.ways if way != "ar"]
    kinds = list(dict.fromkeys(summary.kind for summary in summaries))
    width = 0.8 / len(ways)
    for n, way in enumerate(ways):
        rows: list[Any] = [
            (kinds.index(s.kind), s.speed_up) for s in summaries if s.way == way and s.speed_up
        ]
        places = [at + (n - (len(ways) - 1) / 2) * width for at, _ in rows]
        medians = [spread.median for _, spread in rows]
        whiskers = [
            [spread.median - spread.low for _, spread in rows],
            [spread.high - spread.median for _, spread in rows],
        ]
        left.bar(places, medians, width, yerr=whiskers, label=way, capsize=2)
    left.axhline(1, color="black", linewidth=1, linestyle=":")
    left.set_xticks(range(len(kinds)), kinds)
    left.set_ylabel("tokens per second, AR mode = 1")
    _legend_above(left)
    for kind in report.kinds:
        acceptance = report.summary(kind, "parallel").acceptance
        right.plot(range(1, len(acceptance) + 1), acceptance, marker=".", label=kind)
    right.set_xlabel("draft position")
    right.set_ylabel("acceptance rate")
    right.set_ylim(0, 1.02)
    if report.kinds:
        _legend_above(right)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise OutputError(f"{path} cannot be written: {e}.") from e


def _legend_above(axes: Any) -> None:
    """Name what was drawn, where it hides nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)
