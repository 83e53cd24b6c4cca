"""What `orthrus-mlx tune` found out about the kernels for one model on this device, on disk.

A verdict is kept by the model's shapes and packing, the device, the system, the versions of MLX and
of this package, and the kernels' sources. Without one for all of these, MLX's own kernels run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .._version import __version__
from ..device.measured import MLX_VERSION, device_name, load, place, stock_key, store
from .kernels import SOURCES, Choice, Product, on_metal

SAVED = 0.05  # of the time of MLX's kernel, at least, or ours is not used: less would be noise


class Timed(NamedTuple):
    """A kernel that computed one kind of product rightly, and its times."""

    variant: str
    product: Product
    ms: list[tuple[int, float, float]]  # rows; milliseconds of MLX's kernel, and of ours


@dataclass(frozen=True)
class Verdict:
    """What became of each kernel."""

    found: list[Timed]  # of kernels that were right for every kind of product
    faults: dict[str, str]  # by kernel, why it is not used anywhere

    @cached_property
    def choices(self) -> dict[Product, Choice]:
        """The kernel of each kind of product, and the numbers of rows for which it is used.

        It is one for all numbers of rows, so that they have the same bits: the one that saves most
        over those for which it is faster than MLX's.
        """
        best: dict[Product, tuple[float, Choice]] = {}
        for variant, product, ms in self.found:
            saved = {rows: 1 - ours / mlx for rows, mlx, ours in ms if ours <= (1 - SAVED) * mlx}
            if (share := sum(saved.values())) > best.get(product, (0.0,))[0]:
                best[product] = share, Choice(product, variant, frozenset(saved))
        return {product: choice for product, (_, choice) in best.items()}

    @cached_property
    def digest(self) -> str:
        """What tells these choices from others."""
        chosen = sorted((*c.product, c.variant, *sorted(c.rows)) for c in self.choices.values())
        return hashlib.sha256(json.dumps([SOURCES, chosen]).encode()).hexdigest()[:16]


def verdict_table(model: Any) -> dict[str, Any]:
    """All that is known here of the kernels for a model or `Checkpoint`, as plain JSON values.

    `state` is "no Metal here", "not tuned", "MLX's kernels" or "our kernels". Each product has the
    kernel `used`, if one is, and `ms` by kernel: of each number of rows, of MLX's and of ours.
    """
    table: dict[str, Any] = {"device": device_name(), "mlx": MLX_VERSION}
    verdict = stored(model) if on_metal() else None
    if verdict is None:
        return table | {"state": "not tuned" if on_metal() else "no Metal here"}
    products = []
    for product in dict.fromkeys(timed.product for timed in verdict.found):
        choice = verdict.choices.get(product)
        used = choice and {"kernel": choice.variant, "rows": sorted(choice.rows)}
        ms = {variant: ms for variant, of, ms in verdict.found if of == product}
        products.append({**product._asdict(), "used": used, "ms": ms})
    state = "our kernels" if verdict.choices else "MLX's kernels"
    return table | {"state": state, "faults": verdict.faults, "products": products}


def stored(model: Any) -> Verdict | None:
    """The verdict on disk for a model or `Checkpoint` on this device, or None."""
    return load("kernels", _key(model), _decode)


def keep(model: Any, verdict: Verdict) -> None:
    """Keep a verdict for `stored`."""
    raw = {"found": verdict.found, "faults": verdict.faults}
    store("kernels", _key(model), verdict, lambda _: raw)


def file_of(model: Any) -> Path:
    """Where the verdict is kept; without the file, MLX's own kernels run."""
    return place("kernels", _key(model))


def _key(model: Any) -> Any:
    return [stock_key(model), __version__, SOURCES]


def _decode(raw: Any) -> Verdict:
    found = [Timed(kernel, Product(*fields), ms) for kernel, fields, ms in raw["found"]]
    return Verdict(found, raw["faults"])
