"""When do several Macs pay? A model on published latencies, bandwidths and costs; nothing runs.

    python benchmarks/several_macs.py [--ranks 2] [--mac "M4 Max"]

Assumptions, all of them:

1. An AR step reads the AR view's weights once, at 0.85 of the memory's bandwidth (Apple: M4 Pro
   273, M4 Max 546, M3 Ultra 819 GB/s). Each rank reads its part of the layers; rank 0 the whole
   head.
2. Passes over more rows cost what `simulate.py` says, in AR steps: published costs of MLX 0.32's
   kernels on M3 and later in bf16, and on an M3 Max at 4 bits. A rank's smaller products cost the
   same share.
3. Every pass has two gathers a layer and one of ids. Each costs, whatever it carries:
   - "RDMA": 50 us by RDMA over Thunderbolt 5 (Apple's TN3205: below 50) and 180 us for handing over
     between GPU and CPU, once in and out (mlx issue 4438, by Thunderbolt RDMA).
   - "RDMA, fast": the same with MLX_METAL_FAST_SYNCH=1, 4 us (4438). It has been seen to hang (mlx
     issues 3142, 3830), and MLX's documentation advises against it.
   - "TCP": 300 us by TCP over Thunderbolt (TN3205's text again), and 180.
   And what its bytes take: 3.5 GB/s by RDMA (mlx issue 3207), 0.4 by TCP (the same).
4. Texts are accepted as in `simulate.py`, by the published speed-ups of the authors' port.
5. The host, sampling, prefill and the follower's building of graphs cost nothing.

So "1 Mac" is somewhat optimistic, and several are more so. Nothing of it was measured by us.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.simulate import COSTS, CYCLE_COST, SPEED_UPS, fitted
from orthrus_mlx.decoding.cost_model import MAX_RATE, RATES, Costs
from orthrus_mlx.distributed.alone import best_speed

BANDWIDTH = {"M4 Pro": 273e9, "M4 Max": 546e9, "M3 Ultra": 819e9}
REACHED, VOCABULARY, HEAD_DIM, KV_HEADS, BLOCK = 0.85, 151936, 128, 8, 32
KERNELS = {16: "bf16 0.32.1", 4: "4-bit 0.32.0"}
BYTES = {16: 2.0, 4: 0.5625}  # of a weight: 4 bits, and 16 of scale and bias for each 64


@dataclass(frozen=True)
class Shape:
    """What a pass over a model reads."""

    hidden: int
    middle: int
    layers: int
    heads: int

    @property
    def in_layers(self) -> int:
        """Weights of the AR view's layers."""
        attention = (2 * self.heads + 2 * KV_HEADS) * HEAD_DIM
        return self.layers * self.hidden * (attention + 3 * self.middle)

    @property
    def in_head(self) -> int:
        """Weights of the head."""
        return VOCABULARY * self.hidden


SHAPES = {
    "1.7B": Shape(2048, 6144, 28, 16),
    "4B": Shape(2560, 9728, 36, 32),
    "8B": Shape(4096, 12288, 36, 32),
}


@dataclass(frozen=True)
class Wire:
    """Seconds of a gather, and its bytes a second."""

    seconds: float
    rate: float


WIRES = {
    "RDMA": Wire(230e-6, 3.5e9),
    "RDMA, fast": Wire(54e-6, 3.5e9),
    "TCP": Wire(480e-6, 0.4e9),
}


def costs_of(shape: Shape, bits: int, bandwidth: float, ranks: int, wire: Wire | None) -> Costs:
    """Seconds of every pass."""
    read = BYTES[bits] / (REACHED * bandwidth)
    step = read * (shape.in_layers / ranks + shape.in_head)

    def seconds(times: float, rows: int) -> float:
        if wire is None:
            return times * step
        sent = rows * shape.hidden * 2 * (ranks - 1) / wire.rate
        return times * step + 2 * shape.layers * (wire.seconds + sent) + wire.seconds

    table = COSTS[KERNELS[bits]]
    return Costs(
        verify={n: seconds(c, n) for n, c in table.verify.items()},
        draft={n: seconds(c, n) for n, c in table.draft.items()},
        fused={(a, d): seconds(c, a + d) for (a, d), c in table.fused.items()},
    )


def kinds_of(name: str) -> dict[str, float]:
    """The chance that a draft is rejected, by kind of text."""
    return {
        kind: min(MAX_RATE, max(RATES[0], 1 - fitted(max(1.05, CYCLE_COST * gain))))
        for kind, gain in SPEED_UPS[name].items()
    }


def table(mac: str, ranks: int) -> list[list[str]]:
    """Rows: model, bits, connection, AR tokens a second, then auto's by kind of text."""
    rows = []
    for name, shape in SHAPES.items():
        for bits in KERNELS:
            alone = costs_of(shape, bits, BANDWIDTH[mac], 1, None)
            base = [best_speed(alone, BLOCK, rate) for rate in kinds_of(name).values()]
            head = [name, "bf16" if bits == 16 else f"{bits}-bit"]
            rows.append(
                [*head, "1 Mac", f"{1 / alone.of_ar_step():.0f}", *map("{:.0f}".format, base)]
            )
            for label, wire in WIRES.items():
                costs = costs_of(shape, bits, BANDWIDTH[mac], ranks, wire)
                both = [best_speed(costs, BLOCK, rate) for rate in kinds_of(name).values()]
                cells = [f"{b:.0f} ({b / a:.2f})" for a, b in zip(base, both, strict=True)]
                step = 1 / costs.of_ar_step()
                gain = step * alone.of_ar_step()
                rows.append([*head, f"{ranks}, {label}", f"{step:.0f} ({gain:.2f})", *cells])
    return rows


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description="When several Macs pay, by a written model.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mac", choices=sorted(BANDWIDTH), default="M4 Max")
    args = parser.parse_args()
    print(f"{args.mac}, tokens a second (and over one Mac), by a model; nothing was measured.\n")
    print("| model | weights | machines | AR | auto: " + " | ".join(SPEED_UPS["8B"]) + " |")
    print("|---|---|---|" + "---:|" * 5)
    for row in table(args.mac, args.ranks):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
