"""CUDA's modules and kernels, on a CPU too."""

from __future__ import annotations

import pytest

from orthrus_mlx import cuda
from orthrus_mlx.cuda import attention, compiled, kernels, matmul, norm_rope

from . import on_cpu


@pytest.fixture(autouse=True)
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate` swaps modules, on a CPU too. (Few layers: one is submitted at a time.)"""
    monkeypatch.setattr(cuda, "on_cuda", lambda: True)
    monkeypatch.setattr(compiled, "LAYERS_PER_SUBMIT", 1)


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves on a CUDA device, or their sources run on the CPU."""
    if kernels.runs_here():
        return
    if not on_cpu.runs():
        pytest.skip("needs a CUDA device, or g++ that knows C++20")
    for module in (matmul, attention, norm_rope):
        monkeypatch.setattr(module, "kernel", on_cpu.kernel)
    for module in (matmul, attention):
        monkeypatch.setattr(module, "runs_here", lambda: True)
