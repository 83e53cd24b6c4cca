"""The model's modules on CUDA: names and weights are those of `orthrus_mlx.model`.

Kernels have no gradient and compiled passes hold weights as constants, so in training mode each
module computes what it does elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu

from ..model import AR, DIFFUSION, MLP, QKV, Attention, Model, rotate
from ..rows import Prepared, Rows
from . import norm_rope
from .attention import attend, fits
from .compiled import LAYERS_PER_SUBMIT, CompiledModel, StaticCache
from .fused import FusedLinear, fuse
from .in_flight import InFlight
from .matmul import (
    CudaEmbedding,
    CudaLinear,
    CudaQuantizedEmbedding,
    CudaQuantizedLinear,
    by_view,
)
from .ranges import StaticRows, StaticSegment

GATE_UP = ("gate_proj", "up_proj")


def projections(view: str) -> tuple[str, str, str]:
    """The names of one view's projections to queries, keys and values."""
    return f"q_proj{view}", f"k_proj{view}", f"v_proj{view}"


class CudaAttention(Attention):
    """Attention with one product for q, k and v, and with static passes by kernels."""

    _qkv: FusedLinear | None = None
    _qkv_diff: FusedLinear | None = None

    def fuse(self) -> None:
        """Compute q, k and v of a view as one product from now on."""
        self._qkv, self._qkv_diff = fuse(self, projections(AR)), fuse(self, projections(DIFFUSION))

    def project(self, x: mx.array, view: str) -> QKV:
        """As `Attention.project`."""
        fused = self._qkv_diff if view else self._qkv
        if fused is None or self.training:
            return super().project(x, view)
        q, k, v = (part.reshape(*x.shape[:2], -1, self.head_dim) for part in fused(x))
        q, k = self[f"q_norm{view}"](q), self[f"k_norm{view}"](k)
        return q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def __call__(
        self, x: mx.array, rows: Rows | StaticRows, caches: Sequence[Any | StaticCache]
    ) -> mx.array:
        """As `Attention.__call__`, of any pass or of a compiled one."""
        if isinstance(rows, Rows):
            return super().__call__(x, rows, caches)
        q, k, v = self.inputs(x, rows)
        seen = []
        for segment, cache in zip(rows.segments, caches, strict=True):
            keys, values = cache.update_and_fetch(segment.own(k), segment.own(v))
            seen.append(self.see(segment.own(q), keys, values, segment, rows))
        out = rows.together(seen)
        return by_view(self.o_proj, self.o_proj_diff, out, rows.n_ar)

    def see(
        self, q: mx.array, k: mx.array, v: mx.array, segment: StaticSegment, rows: StaticRows
    ) -> mx.array:
        """Attention output [1, L, n_heads * head_dim] of one segment's queries."""
        if rows.kernels and fits(self, q, k, v):
            return attend(q, k, v, segment.ranges, self.scale)
        return self.attend(q, k, v, rows.mask)

    def inputs(self, x: mx.array, rows: StaticRows) -> QKV:
        """Queries, keys and values [1, heads, L, head_dim] of a pass, normed and rotated."""
        a, L = rows.n_ar, x.shape[1]
        if rows.kernels:
            projected = self.side_by_side(x, a)
            if norm_rope.fits(self, projected):
                return norm_rope.apply(self, projected, a, rows.ranges)
        if a in (0, L):
            q, k, v = self.project(x, AR if a else DIFFUSION)
            if len(rows.segments) == 1:
                first = rows.ranges[0, :1]
                return self.rope(q, offset=first), self.rope(k, offset=first), v
        else:
            views = zip(self.project(x[:, :a], AR), self.project(x[:, a:], DIFFUSION), strict=True)
            q, k, v = (mx.concatenate(list(both), axis=2) for both in views)
        return rotate(self.rope, q, rows.ranges[0]), rotate(self.rope, k, rows.ranges[0]), v

    def side_by_side(self, x: mx.array, n_ar: int) -> mx.array:
        """Queries, keys and values of a pass in one array [1, L, ...], as projected."""
        if self._qkv is not None and self._qkv_diff is not None:
            return by_view(self._qkv.linear, self._qkv_diff.linear, x, n_ar)
        pairs = zip(projections(AR), projections(DIFFUSION), strict=True)
        parts = [by_view(getattr(self, a), getattr(self, b), x, n_ar) for a, b in pairs]
        return mx.concatenate(parts, axis=-1)


class CudaMLP(MLP):
    """The MLP with one product for both inner projections."""

    _gate_up: FusedLinear | None = None

    def fuse(self) -> None:
        """Compute both inner projections as one product from now on."""
        self._gate_up = fuse(self, GATE_UP)

    def __call__(self, x: mx.array) -> mx.array:
        """As `MLP.__call__`."""
        if self._gate_up is None or self.training:
            return super().__call__(x)
        gate, up = self._gate_up(x)
        return self.down_proj(swiglu(gate, up))


class CudaModel(Model):
    """The model with compiled passes."""

    _compiled: CompiledModel | None = None

    def backbone(self, rows: Rows) -> mx.array:
        """As `Model.backbone`."""
        if self.training:
            return super().backbone(rows)
        if self._compiled is None or self._compiled.layers is not self.layers:  # a copy's are not
            self._compiled = CompiledModel(self)
        return self._compiled(rows) if self._compiled.takes(rows) else super().backbone(rows)

    def start(self, outputs: list[mx.array], waiting: Sequence[Prepared]) -> None:
        """As `Model.start`, a few layers at a time, so that the host is not too far ahead."""
        in_flight, (rows, place) = InFlight(), waiting[0]
        for layer in rows.segments[place].cache[::LAYERS_PER_SUBMIT]:
            in_flight.submit(layer.keys, layer.values)
        in_flight.submit(outputs)


KINDS: dict[type, type] = {
    Model: CudaModel,
    Attention: CudaAttention,
    MLP: CudaMLP,
    nn.Linear: CudaLinear,
    nn.QuantizedLinear: CudaQuantizedLinear,
    nn.Embedding: CudaEmbedding,
    nn.QuantizedEmbedding: CudaQuantizedEmbedding,
}


@functools.cache
def for_cuda(kind: type) -> type:
    """The class for CUDA of a module; its own where there is none.

    A model that does more beside its passes, as a rank's part of one does, goes on doing so.
    """
    if kind not in KINDS and issubclass(kind, Model) and not issubclass(kind, CudaModel):
        found: type = type(f"Cuda{kind.__name__}", (kind, CudaModel), {})
        return found
    return KINDS.get(kind, kind)


def swap(model: Model) -> None:
    """Make every module of a known kind the one for CUDA, and fuse projections."""
    model.eval()  # with the modules that `nn.quantize` put in
    modules: list[Any] = model.modules()
    for module in modules:
        kind: Any = type(module)
        module.__class__ = for_cuda(kind)
    for module in modules:
        if isinstance(module, (CudaAttention, CudaMLP)):
            module.fuse()
        elif isinstance(module, CudaModel):
            module._compiled = None
