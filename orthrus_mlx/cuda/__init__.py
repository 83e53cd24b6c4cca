"""One door: all that only MLX's CUDA backend needs, and nothing that any other one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kernels import on_cuda, runs_here

if TYPE_CHECKING:
    from ..model import Model


def accelerate(model: Model) -> Model:
    """The same model, with modules for CUDA where MLX computes on CUDA; elsewhere as it is.

    As `nn.quantize` does, this changes modules in place and leaves the names of parameters, their
    values and the generated ids as they are. It is for inference: the model leaves training mode.
    Weights and modules are taken as they are now. Call it again after replacing any.

    A rank's part of a model stays as it is where another rank's has to: passes are padded here.
    """
    if on_cuda() and getattr(model, "alike", True):
        from .modules import swap  # nobody else needs to load these

        swap(model)
    return model


def kind() -> list[bool]:
    """What devices have in common that pad and compile a pass in the same way."""
    return [on_cuda(), runs_here()]
