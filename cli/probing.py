"""What the probe of row counts found, in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthrus_mlx.decoding.plan import RowCounts
    from orthrus_mlx.device.probe import Probe


def probe_line(probe: "Probe") -> str:
    """Say which row counts agree, and how far the others lie apart."""
    classes = [rows for rows in probe.classes if len(rows) > 1]
    alike = "; ".join(" ".join(map(str, rows)) for rows in classes) or "none"
    if probe.all_agree:
        return f"All row counts agree bit for bit: {alike}."
    return (
        f"Row counts that agree bit for bit: {alike}. Others disagree by up to "
        f"{probe.disagreement:.3g} logits; choices closer than {probe.near_tie:.3g} are near-ties."
    )


def exact_line(rows: "RowCounts | None") -> str:
    """Say which row counts exact numerics use; None for no exact numerics."""
    if rows is None:
        return "not to be had here: use --numerics fast, which counts near-ties"
    pairs = " ".join(f"{ar}+{ahead}" for ar, ahead in rows.fused)
    return f"available, in passes of {' '.join(map(str, rows.verify))} rows" + (
        f", one-pass {pairs}" if pairs else ""
    )
