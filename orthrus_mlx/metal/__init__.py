"""One door: kernels for few rows, used only where this Mac has proven them (`orthrus-mlx tune`).

**No Mac has run them yet.** Without a verdict on disk nothing here runs, and MLX's kernels do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .kernels import on_metal

if TYPE_CHECKING:
    from ..model import Model


def accelerate(model: Model) -> Model:
    """The same model, with the kernels that were proven for it here; else as MLX computes it.

    This changes modules in place, not their parameters. Call it again after replacing any. A model
    whose `tune` is False, and with ORTHRUS_MLX_TUNE=0 every model, stays on MLX's kernels.
    """
    if on_metal():
        from .modules import swap  # nobody else needs to load these

        verdict = _proven(model) if getattr(model, "tune", True) else None
        model.kernels = verdict and verdict.digest
        swap(model, verdict.choices if verdict else {})
    return model


def kernels_for(checkpoint: Any) -> str | None:
    """What tells apart the kernels that a model of a `Checkpoint` would run; None for MLX's."""
    verdict = _proven(checkpoint) if on_metal() else None
    return verdict and verdict.digest


def _proven(model: Any) -> Any:
    """The verdict for a model, if it lets any kernel be used and the environment does too."""
    from .verdict import stored

    allowed = os.environ.get("ORTHRUS_MLX_TUNE", "").lower() not in ("0", "false", "no", "off")
    verdict = stored(model) if allowed else None
    return verdict if verdict and verdict.choices else None
