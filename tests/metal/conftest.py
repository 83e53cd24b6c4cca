"""What the tests of Metal's kernels need."""

from __future__ import annotations

import pytest

from . import on_cpu


@pytest.fixture
def compiler() -> None:
    """A compiler that can run the kernels' sources."""
    if not on_cpu.runs():
        pytest.skip("needs Linux, and g++ that knows half precision")
