"""One model over several machines: each rank of `mlx.launch` holds a part of every layer.

Rank 0 decides everything. Before each pass it tells the others what to run (`leader`), and they run
it (`follower`). Only activations go through MLX's collectives, one gather behind each sublayer
(`sharded`). What to run goes over a connection of its own (`control`), on which a rank that dies is
noticed at once, whatever MLX waits for. `cut` says which rank holds what; `alone` whether one
machine is faster.
"""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether this process is one of several ranks, as `mlx.launch` or `mpirun` start them."""
    return any(name in os.environ for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))
