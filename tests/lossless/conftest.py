"""How passes are run that tests ask for."""

from __future__ import annotations

import pytest

from orthrus_mlx import model
from orthrus_mlx.cuda import attention as few_rows_attention
from orthrus_mlx.cuda import compiled as few_shapes
from orthrus_mlx.cuda import kernels as cuda
from orthrus_mlx.cuda import matmul as few_rows
from orthrus_mlx.cuda import norm_rope as few_rows_inputs
from orthrus_mlx.decoding import engine

from . import cuda_on_cpu


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves on a CUDA device, or their sources run on the CPU."""
    if cuda.runs_here():
        return
    if not cuda_on_cpu.runs():
        pytest.skip("needs a CUDA device, or g++ that knows C++20")
    for module in (few_rows, few_rows_attention, few_rows_inputs):
        monkeypatch.setattr(module, "kernel", cuda_on_cpu.kernel)
    for module in (few_rows, few_rows_attention):
        monkeypatch.setattr(module, "runs_here", lambda: True)


@pytest.fixture
def layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model of many layers is run, which these are not."""
    for module in (few_shapes, model, engine):
        monkeypatch.setattr(module, "PORTION", 1)
