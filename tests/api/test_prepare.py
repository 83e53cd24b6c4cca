"""`prepare` measures all that a first request would wait for, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orthrus_mlx import generate, mlx_generate, prepare
from orthrus_mlx.device import calibrate, probe
from orthrus_mlx.model import Model
from tests.lossless import row_kernels


def test_nothing_is_measured_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))
    model = row_kernels.build(Model, block_size=4, max_position_embeddings=100)
    steps: list[tuple[str, int, int]] = []
    prepare(model, progress=lambda *step: steps.append(step))
    assert {stage for stage, *_ in steps} == {"probe", "calibrate"}
    for stage in ("probe", "calibrate"):
        done = [(n, total) for name, n, total in steps if name == stage]
        assert done[-1][0] == done[-1][1]
    assert list(tmp_path.iterdir())

    def again(*_: Any, **__: Any) -> Any:
        pytest.fail("measured again")

    monkeypatch.setattr(probe, "probe", again)
    monkeypatch.setattr(calibrate, "calibrate", again)
    prepare(model)
    for numerics in ("fast", "exact"):
        assert len(list(mlx_generate(model, [1, 2], (), 9, numerics=numerics))) == 9
    assert generate.stored_probe(model) is not None
