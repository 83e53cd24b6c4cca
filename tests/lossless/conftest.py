"""Where the CUDA kernels run that tests ask for."""

from __future__ import annotations

import pytest

from orthrus_mlx import cuda, few_rows, few_rows_attention

from . import cuda_on_cpu


@pytest.fixture
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels themselves on a CUDA device, or their sources run on the CPU."""
    if cuda.runs_here():
        return
    if not cuda_on_cpu.runs():
        pytest.skip("needs a CUDA device, or g++ that knows C++20")
    for module in (few_rows, few_rows_attention):
        monkeypatch.setattr(module, "kernel", cuda_on_cpu.kernel)
        monkeypatch.setattr(module, "runs_here", lambda: True)
