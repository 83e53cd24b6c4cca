"""The tuner: what a kernel does to its process costs nothing but the kernel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from orthrus_mlx import metal
from orthrus_mlx.checkpoint.plain import plain_qwen3
from orthrus_mlx.checkpoint.read import inspect, load_model
from orthrus_mlx.device import measured
from orthrus_mlx.metal import modules, verdict
from orthrus_mlx.metal import tune as tuner
from orthrus_mlx.metal.kernels import Product
from orthrus_mlx.metal.tune import tune
from orthrus_mlx.metal.verdict import Timed, Verdict, keep, stored, verdict_table
from orthrus_mlx.model import Model
from orthrus_mlx.rows import Rows
from tests import helpers
from tests.lossless import row_kernels

from .faulty import FAULTY

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
OTHER = "tiles-16"
FAULTS = {
    "compile": "it does not run: [metal::Device] Unable to build metal library from source",
    "row": "it is wrong: 64 x 128 at 4 bits, 64 values differ from MLX's, in rows 7",
    "bits": "it is wrong: 64 x 128 at 4 bits, 3 rows have other bits than the same among 16",
    "nan": "it is wrong: 64 x 128 at 4 bits, 1024 values differ from MLX's, in rows 1, 2, 3, 4, 5",
    "crash": "its process died (SIGABRT), checking 64 x 128 at 4 bits: [METAL] Command buffer",
    "exit": "its process died (exit code 3), checking 64 x 128 at 4 bits",
}


@pytest.fixture(autouse=True)
def a_mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A device that says it is one, and has measured nothing."""
    monkeypatch.setenv("ORTHRUS_MLX_CACHE", str(tmp_path))
    for module in (metal, verdict):
        monkeypatch.setattr(module, "on_metal", lambda: True)
    monkeypatch.setattr(tuner, "VARIANTS", (FAULTY, OTHER))


def small(**changes: Any) -> Any:
    """A model of small products, 64 x 128 (`down_proj`) among them."""
    model = row_kernels.build(Model, **SIZES, **changes)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=32, bits=4)
    return model.eval()


def tried(what: str, seconds: float = 60, **how: Any) -> Verdict:
    return tune(small(), seconds, (sys.executable, "-m", "tests.metal.faulty", what), **how)


def test_kernels_that_are_right_and_faster_are_used() -> None:
    found = tried("none")
    assert found.faults == {}
    model = small()
    assert set(found.choices) == set(modules.products(model))
    for choice in found.choices.values():  # the fastest, wherever it was faster
        assert choice.variant == FAULTY and choice.rows == frozenset(range(1, 17))
    measured._known.clear()
    assert stored(model).choices == found.choices
    assert verdict_table(model)["state"] == "our kernels"


@pytest.mark.parametrize("what", FAULTS)
def test_a_kernel_with_a_fault_is_never_used_and_said(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {OTHER} if what == "crash" else set()  # each costs a process
    monkeypatch.setattr(tuner, "VARIANTS", (FAULTY, *others))
    found = tried(what)
    assert list(found.faults) == [FAULTY]
    assert FAULTS[what] in found.faults[FAULTY]
    assert {timed.variant for timed in found.found} == others
    assert {choice.variant for choice in found.choices.values()} == others
    assert verdict_table(small())["faults"] == found.faults


def test_a_kernel_that_hangs_is_stopped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "VARIANTS", (FAULTY,))
    found = tried("hang", seconds=2)
    assert found.faults[FAULTY].startswith("it took more than 2 seconds, ")
    assert not found.choices


def test_a_kernel_that_is_no_faster_is_not_used() -> None:
    products = modules.products(small())
    assert FAULTY not in {choice.variant for choice in tried("slow").choices.values()}
    by_rows = [(1, 1.0, 1.2), (2, 1.0, 0.96), (4, 2.0, 1.0), (8, 3.0, 1.0), (16, 4.0, 5.0)]
    slower = [Timed("lanes-2", products[0], [(n, mlx, mlx) for n, mlx, _ in by_rows])]
    found = Verdict([*slower, Timed("lanes-4", products[0], by_rows)], {})
    assert {p: (c.variant, c.rows) for p, c in found.choices.items()} == {
        products[0]: ("lanes-4", {4, 8})
    }
    model = small()
    keep(model, Verdict(slower, {}))
    metal.accelerate(model)
    assert model.kernels is None and not any(type(m) in modules.STOCK for m in model.modules())
    assert verdict_table(model)["state"] == "MLX's kernels"


def test_the_real_process_proves_the_kernels_on_a_mac_and_finds_no_metal_elsewhere() -> None:
    found = tune(small())
    if mx.metal.is_available():
        assert found.faults == {}
    else:
        assert not found.choices and list(found.faults) == [FAULTY, OTHER]
        assert all("No Metal back-end" in why for why in found.faults.values())


# From here on: what a verdict does to a model.


def proven(model: Any, rows: tuple[int, ...] = (2, 3, 8)) -> Verdict:
    """A verdict for all of a model's products."""
    ms = [(n, 2.0, 1.0 if n in rows else 3.0) for n in range(1, 17)]
    made = Verdict([Timed("lanes-2", product, ms) for product in modules.products(model)], {})
    keep(model, made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Product, int]]:
    """The products that kernels were asked for, computed by MLX."""
    from orthrus_mlx.metal import child

    found: list[tuple[Product, int]] = []

    def multiply(variant: str, product: Product, x: mx.array, weights: Any) -> mx.array:
        found.append((product, x.size // product.dim))
        return child.stock(product, x, weights)

    monkeypatch.setattr(modules, "multiply", multiply)
    return found


def logits(model: Any, rows: int) -> mx.array:
    ids = mx.arange(rows) + 3
    return model.forward(Rows.verify(ids, model.make_cache()))[0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_proven_kernel_runs_for_its_numbers_of_rows(
    tied: bool, asked: list[tuple[Product, int]]
) -> None:
    model, plain = small(tie_word_embeddings=tied), small(tie_word_embeddings=tied)
    proven(model)
    metal.accelerate(model)
    for rows in (1, 2, 3, 5, 8, 16, 17):
        asked.clear()
        assert mx.array_equal(logits(model, rows), logits(plain, rows))
        assert {n for _, n in asked} == ({rows} if rows in (2, 3, 8) else set())
        if asked:
            assert {product for product, _ in asked} == set(modules.products(model))
    model.train()
    asked.clear()
    logits(model, 3)
    assert not asked  # they have no gradient


def test_nothing_runs_without_a_verdict_or_where_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Product, int]]
) -> None:
    def uses(model: Any) -> bool:
        asked.clear()
        logits(metal.accelerate(model), 3)
        assert bool(asked) == bool(model.kernels)
        return bool(asked)

    assert not uses(small())
    proven(small())
    model = small()
    assert uses(model)
    off = small()
    off.tune = False  # as `load(..., tune=False)` leaves it
    assert not uses(off)
    for value, used in (("0", False), ("no", False), ("1", True)):
        monkeypatch.setenv("ORTHRUS_MLX_TUNE", value)
        assert uses(model) == used  # modules go back to MLX's own
    for changed in ("mlx", "version", "source"):
        with monkeypatch.context() as patch:
            if changed == "mlx":
                patch.setattr(measured, "MLX_VERSION", "0.99")
            elif changed == "version":
                patch.setattr(verdict, "__version__", "9.9")
            else:
                patch.setattr(verdict, "SOURCES", "other")
            assert not uses(model)
    assert uses(model)
    adapted = small()
    adapted.layers[0].mlp.gate_proj = LoRALinear.from_base(adapted.layers[0].mlp.gate_proj, r=2)
    assert not uses(adapted)
    model.set_dtype(mx.float32)
    assert not uses(model)  # of no shape that was tuned
    file = verdict.file_of(small())
    content = file.read_text()
    for damaged in (content[:-9], content.replace("lanes-2", "tiles-32"), "{}"):
        file.write_text(damaged)
        measured._known.clear()
        assert not uses(small())
    file.unlink()
    measured._known.clear()
    assert not uses(small())


def test_measurements_are_those_of_the_kernels_in_use() -> None:
    model = small()
    stock = measured.device_key(model)
    first = proven(model)
    assert measured.device_key(model) == stock  # loaded before the verdict
    keys = [stock, measured.device_key(metal.accelerate(model))]
    assert keys[1] == stock | {"kernels": first.digest}
    second = proven(model, rows=(2, 3))
    keys.append(measured.device_key(metal.accelerate(model)))
    assert second.digest != first.digest and len({str(key) for key in keys}) == 3
    model.tune = False
    assert measured.device_key(metal.accelerate(model)) == stock


def test_stock_mlx_lm_stays_stock(asked: list[tuple[Product, int]]) -> None:
    """What others are compared with holds the same weights and none of our kernels."""
    model = small()
    proven(model, rows=tuple(range(1, 17)))
    metal.accelerate(model)
    plain = plain_qwen3(model)
    plain(mx.array([[1, 2, 3]]))
    assert not asked
    q = plain.model.layers[0].self_attn.q_proj
    assert q.weight is model.model.layers[0].self_attn.q_proj.weight


def test_a_loaded_model_and_its_checkpoint_have_the_same_measurements(tmp_path: Path) -> None:
    weights = dict(tree_flatten(small().parameters()))
    config = row_kernels.CONFIG | SIZES
    checkpoint = inspect(helpers.write_checkpoint(tmp_path / "model", config, weights))
    for tuned in (False, True):
        model = load_model(checkpoint)
        assert (model.kernels is not None) == tuned
        assert measured.device_key(checkpoint) == measured.device_key(model)
        assert load_model(checkpoint, tune=False).kernels is None
        proven(model)
