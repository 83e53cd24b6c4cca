"""Jobs as in `jobs`, on ranks that have CUDA's modules: `python -m tests.distributed.cuda_jobs`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from orthrus_mlx import cuda, load
from orthrus_mlx.cuda import compiled as passes
from orthrus_mlx.cuda import modules
from orthrus_mlx.cuda.ranges import visible
from orthrus_mlx.device.probe import one_layer
from orthrus_mlx.rows import Rows
from tests.distributed.jobs import Found, answers, batch, cancelled, ids_of, of_group


def switch_on(kernels: bool, here: bool = True) -> list[passes.Bucket]:
    """Have CUDA's modules, if they are to be `here`; the buckets that are traced from now on.

    With `kernels` attention takes ranges, so that passes over several sequences are compiled too.
    """
    traced: list[passes.Bucket] = []
    run: Any = passes._run

    def traced_run(*args: Any) -> Any:
        traced.append(args[2])
        return run(*args)

    def attend(q: mx.array, k: mx.array, v: mx.array, seen: mx.array, scale: float) -> mx.array:
        mask = visible(seen, k.shape[2])
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return out.transpose(0, 2, 1, 3).reshape(1, q.shape[2], -1)

    vars(cuda).update(on_cuda=lambda: here)
    vars(passes).update(_run=traced_run)
    if kernels:
        vars(passes).update(fits=lambda *_: True, rows_alike=lambda *_: 64)
        vars(modules).update(fits=lambda *_: True, attend=attend)
    return traced


def compiled(folder: Path, kernels: str) -> Found:
    """Answers and batches, how many passes were compiled, and how many of several sequences."""
    traced = switch_on(kernels == "kernels")
    found = answers(folder) | batch(folder) | cancelled(folder)
    several = {bucket for bucket in traced if len(bucket.shares) > 1}
    return found | {"traced": len(set(traced)), "of several": len(several)}


def mixed(folder: Path, rank: str) -> Found:
    """Answers where one rank alone has CUDA."""
    traced = switch_on(kernels=True, here=os.environ["MLX_RANK"] == rank)
    return answers(folder) | {"traced": len(traced)}


def cast(folder: Path) -> Found:
    """Logits of a model that is cast after its passes were compiled, and of its first layer."""
    switch_on(kernels=True)
    model, _ = load(folder)
    found: list[list[mx.array]] = []
    for dtype in (None, mx.bfloat16, mx.float32):
        if dtype is not None:
            model.set_dtype(dtype)
        own = []
        for part in (one_layer(model), model):
            cache = part.make_cache()
            own += [
                part.forward(Rows.verify(mx.array(ids_of(model, 9)), cache))[0],
                part.forward(Rows.draft(mx.array([5, 1, 1, 1]), cache))[1],
            ]
        mx.eval(own)
        found.append(own)
    far = [
        (mx.linalg.norm(a.astype(mx.float32) - b) / mx.linalg.norm(b)).item()
        for own in found[1:]
        for a, b in zip(own, found[0], strict=True)
    ]
    types = [str(own[0].dtype).removeprefix("mlx.core.") for own in found]
    return {"far": max(far), "types": types} | of_group(model)


JOBS: dict[str, Callable[..., Found]] = {job.__name__: job for job in (compiled, mixed, cast)}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])))
