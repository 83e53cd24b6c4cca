"""The kernels' arithmetic: their Metal source, run as C++ on this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from orthrus_mlx.metal import kernels
from orthrus_mlx.metal.child import SPACING
from orthrus_mlx.metal.kernels import LANES, PLAIN, TILES, VARIANTS, Product, product_of

from . import on_cpu

needs_compiler = pytest.mark.usefixtures("compiler")

KINDS = [(4, 64, "bfloat16"), (8, 32, "float16"), (PLAIN, 1, "bfloat16")]
ALL_KINDS = [
    *((bits, group, dtype) for bits in (4, 8) for group in (32, 64, 128) for dtype in SPACING),
    *((PLAIN, 1, dtype) for dtype in SPACING),
]
# (outputs, dim) of q, k, gate and down of 1.7B, 4B and 8B, a 64th of the outputs by a fourth of the
# columns; then odd ones, of fewer outputs than a threadgroup takes and of few columns.
LAYERS = [(2048, 2048), (1024, 2048), (6144, 2048), (2048, 6144)]
LAYERS += [(4096, 2560), (1024, 2560), (9728, 2560), (2560, 9728)]
LAYERS += [(4096, 4096), (1024, 4096), (12288, 4096), (4096, 12288)]
LAYERS = [(outputs // 64, dim // 4) for outputs, dim in LAYERS]
ODD = [(1, 1024), (3, 384), (8, 128), (31, 256), (33, 640), (37, 1152)]


def computed(
    variant: str,
    product: Product,
    folder: Path,
    made: Path | None = None,
    backwards: bool = False,
    **how: Any,
) -> tuple[list[np.ndarray], bool]:
    """Products of 1, 2, ... rows, and whether the last one is right but for rounding."""
    made = made or on_cpu.program(variant, *product[2:], folder, **how)
    x, weights = on_cpu.inputs_and_weights(product, kernels.MAX_ROWS)
    found = on_cpu.run(made, x, weights, backwards=backwards)
    exact, size = on_cpu.float64(product, x, weights)
    # Half of the spacing where the result is rounded, and what float32 sums lose.
    allowed = SPACING[product.dtype] / 2 * np.abs(exact) + 1e-6 * size
    errors = np.abs(on_cpu.values(found[-1], product.dtype) - exact)
    return found, bool((errors <= allowed).all())


def check(variant: str, product: Product, folder: Path, **how: Any) -> None:
    found, right = computed(variant, product, folder, **how)
    assert right
    for rows, part in enumerate(found, start=1):
        assert (part == found[-1][:rows]).all(), rows  # bit for bit


@needs_compiler
@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        ("lanes-2", KINDS[0]),
        ("lanes-4", KINDS[1]),
        ("tiles-16", KINDS[2]),
        ("tiles-32", KINDS[0]),
    ],
)
def test_a_kernel_multiplies_with_the_same_bits_for_any_number_of_rows(
    kind: tuple[int, int, str], variant: str, tmp_path: Path
) -> None:
    """And reads nothing outside of its inputs, by the address sanitizer."""
    check(variant, Product(19, 320, *kind), tmp_path, sanitize=True)


@needs_compiler
@pytest.mark.full
@pytest.mark.parametrize("sanitize", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
def test_a_kernel_multiplies_at_all_shapes_and_packings(
    kind: tuple[int, int, str], variant: str, sanitize: bool, tmp_path: Path
) -> None:
    made = on_cpu.program(variant, *kind, tmp_path, sanitize)
    for outputs, dim in ODD if sanitize else LAYERS + ODD:
        check(variant, Product(outputs, dim, *kind), tmp_path, made=made)


@needs_compiler
@pytest.mark.parametrize("source", [LANES, TILES])
def test_the_sanitizer_sees_a_read_beyond_the_weights(source: str, tmp_path: Path) -> None:
    variant = "lanes-2" if source is LANES else "tiles-16"
    beyond = source.replace(", N - 1)", ", N)")
    assert beyond != source
    with pytest.raises(subprocess.CalledProcessError) as died:
        computed(variant, Product(19, 128, *KINDS[0]), tmp_path, sanitize=True, source=beyond)
    assert b"heap-buffer-overflow" in died.value.stderr


@needs_compiler
@pytest.mark.parametrize("barrier", [None, 0, 1, 2])
def test_a_missing_barrier_shows_and_the_order_of_threads_does_not(
    barrier: int | None, tmp_path: Path
) -> None:
    found = list(re.finditer(r" *(simd|thread)group_barrier\(.*?\);\n", TILES))
    assert len(found) == 3
    left_out = found[barrier].span() if barrier is not None else (0, 0)
    source = TILES[: left_out[0]] + TILES[left_out[1] :]
    product = Product(19, 320, *KINDS[0])
    made = on_cpu.program("tiles-16", *KINDS[0], tmp_path, source=source)
    right = [
        computed("tiles-16", product, tmp_path, made, backwards)[1] for backwards in (False, True)
    ]
    assert all(right) == (barrier is None)


def test_only_what_the_kernels_can_compute_is_a_product() -> None:
    def packed(outputs: int, dim: int, **how: Any) -> Any:
        module: Any = nn.QuantizedLinear(dim, outputs, bias=False, **how)
        module.set_dtype(mx.bfloat16)
        return module

    plain: Any = nn.Linear(64, 40, bias=False)
    assert product_of(plain) is None  # float32
    plain.set_dtype(mx.float16)
    assert product_of(plain) == Product(40, 64, PLAIN, 1, "float16")
    for bits in (4, 8):
        for group in (32, 64, 128):
            found = product_of(packed(40, 256, group_size=group, bits=bits))
            assert found == Product(40, 256, bits, group, "bfloat16")
    assert product_of(packed(40, 256, group_size=64, bits=3)) is None
    assert product_of(packed(40, 256, group_size=32, bits=4, mode="mxfp4")) is None
    assert product_of(packed(2, 64, group_size=32, bits=4)) is None  # 4 scales
    biased: Any = nn.Linear(64, 40)
    narrow: Any = nn.Linear(48, 40, bias=False)
    for module in (biased, narrow):
        module.set_dtype(mx.bfloat16)
        assert product_of(module) is None


def test_metal_takes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mx.fast.metal_kernel` is asked for: names, grid and constants."""
    asked: dict[str, Any] = {}

    def metal_kernel(**made: Any) -> Any:
        return lambda **call: [asked.update(made | call)]

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    kernels._kernel.cache_clear()
    product = Product(37, 320, 4, 64, "bfloat16")
    x, weights = on_cpu.inputs_and_weights(product, 5)
    try:
        kernels.multiply("tiles-16", product, x[None], tuple(weights))
    finally:
        kernels._kernel.cache_clear()
    assert asked["input_names"] == ["x", "weight", "scales", "biases"]
    assert asked["grid"] == (3 * 128, 1, 1) and asked["threadgroup"] == (128, 1, 1)
    assert dict(asked["template"])["ROWS"] == 8 and asked["output_shapes"] == [(1, 5, 37)]
    assert all(a.size >= 8 for a in asked["inputs"])
    assert "WEIGHTS" not in asked["source"] and asked["compile_options"] == {"math_mode": "safe"}
