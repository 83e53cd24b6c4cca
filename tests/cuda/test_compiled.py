"""Compiled passes compute what others do, and are traced once for each bucket."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from orthrus_mlx import cuda
from orthrus_mlx.cuda import accelerate, compiled
from orthrus_mlx.cuda.modules import CudaModel
from orthrus_mlx.decoding.cache import trim
from orthrus_mlx.device.probe import STEPS, one_layer
from orthrus_mlx.model import Model, TransformerBlock
from orthrus_mlx.rows import Rows, Segment

from .passes import MASK, PROMPT, build, build_accelerated, close, draft, logits, one_pass, verify


def test_other_devices_keep_the_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "on_cuda", lambda: False)
    model = build()
    assert accelerate(model) is model
    assert {type(part).__module__.split(".")[0] for part in model.modules()} == {
        "orthrus_mlx",
        "mlx",
    }
    assert type(model) is Model
    assert not any("cuda" in type(part).__module__ for part in model.modules())


def test_names_weights_and_attributes_stay() -> None:
    model = build()
    model.origin = "a checkpoint"
    before = tree_flatten(model.parameters())
    assert accelerate(model) is model and type(model) is CudaModel
    assert model.origin == "a checkpoint"
    after = tree_flatten(model.parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(after, before, strict=True))


@pytest.mark.parametrize("n", [0, 1, 100, 205])
def test_compiled_passes_compute_the_same(n: int) -> None:
    expected = logits(build(), n)
    model = build_accelerated()
    for _ in range(2):  # again once all is traced, and accelerated once more
        found = logits(model, n)
        assert close(found, expected, 1e-4)
        for a, b in zip(found, expected, strict=True):
            assert mx.array_equal(mx.argmax(a, -1), mx.argmax(b, -1))
        assert model._compiled._parts[0]._traces
        accelerate(model)


def test_many_greedy_ids_are_the_same() -> None:
    def answer(model: Any) -> list[int]:
        cache, ids = model.make_cache(), PROMPT[:9]
        verify(model, ids[:-1], cache)
        while len(ids) < 60:  # a two-pass cycle of eight rows
            start = cache[0].offset
            guesses = mx.argmax(draft(model, ids[-1], 8, cache), axis=-1).tolist()[:7]
            choices = mx.argmax(verify(model, [ids[-1], *guesses], cache), axis=-1).tolist()
            accepted = 0
            while accepted < 7 and guesses[accepted] == choices[accepted]:
                accepted += 1
            ids += choices[: accepted + 1]
            for layer in cache:
                layer.trim(layer.offset - start - 1 - accepted)
        return ids

    assert answer(build_accelerated()) == answer(build())


def test_several_sequences_in_one_pass() -> None:
    def run(model: Any) -> list[mx.array]:
        segments = []
        for n in (20, 7):
            cache = model.make_cache()
            verify(model, PROMPT[:n], cache)
            blocks = mx.array([[PROMPT[n], MASK, MASK]])
            segments.append(Segment(cache, mx.array(PROMPT[n : n + 3]), blocks))
        both = model.forward(Rows(segments))
        assert [segment.cache[0].offset for segment in segments] == [23, 10]
        return [*both, *(verify(model, [5, 6], segment.cache) for segment in segments)]

    assert close(run(build_accelerated()), run(build()), 1e-5)


def test_padded_rows_leave_finite_numbers() -> None:
    """A masked slot that holds NaN would spoil every row."""
    model = build_accelerated()
    cache = model.make_cache()
    verify(model, PROMPT[:9], cache)
    draft(model, PROMPT[9], 3, cache)
    one_pass(model, PROMPT[9:12], (0, 2), 3, cache)
    verify(model, PROMPT[12:15], cache)
    held: Any = [(layer.keys, layer.values) for layer in cache]
    assert all(bool(mx.all(mx.isfinite(a))) for pair in held for a in pair)


def test_attention_sees_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, int]] = set()
    attention = mx.fast.scaled_dot_product_attention

    def spied(q: mx.array, k: mx.array, v: mx.array, **more: Any) -> mx.array:
        shapes.add((q.shape[2], k.shape[2]))
        return attention(q, k, v, **more)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", spied)
    model = build_accelerated()
    cache = model.make_cache()
    for n in range(2, 14):
        verify(model, PROMPT[:n], cache)
        draft(model, 5, n, cache)
        one_pass(model, PROMPT[:n], (0, n - 1), n, cache)
    powers = (0, 2, 4, 8, 16, 32)
    assert shapes <= {(a + d, compiled.MIN_SLOTS) for a in powers for d in powers}
    assert shapes


def test_the_visible_slots_change_only_where_the_probe_looks() -> None:
    shown = [compiled.slots_for(n, kernels=False) for n in range(1, 3000)]
    assert all(slots >= n for n, slots in enumerate(shown, 1))
    assert set(shown) - {compiled.MIN_SLOTS} <= set(STEPS)


@pytest.mark.parametrize("before", [1, 3, 1020, 1024])
def test_a_cache_has_room_for_the_whole_pass(before: int) -> None:
    model = build_accelerated(max_position_embeddings=2000)
    cache = model.make_cache()
    verify(model, [7] * before, cache)
    held = cache[0].keys[:, :, :before]
    verify(model, [1, 2, 3], cache)
    assert cache[0].offset == before + 3 and cache[0].keys.shape[2] >= before + 4
    assert mx.array_equal(cache[0].keys[:, :, :before], held)


def test_a_new_cache_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In exact passes rows of nobody have one each time."""
    model = build_accelerated()
    expected = verify(model, PROMPT[:5])
    monkeypatch.setattr(mx, "eval", lambda *arrays: pytest.fail("the host waits"))
    found = verify(model, PROMPT[:5])
    monkeypatch.undo()
    assert mx.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_copy_with_fewer_layers_runs_these() -> None:
    model = build_accelerated()
    whole = verify(model, PROMPT[:5])
    found = verify(one_layer(model), PROMPT[:5])
    assert mx.allclose(found, verify(one_layer(build()), PROMPT[:5]), rtol=1e-4, atol=1e-4)
    assert mx.array_equal(verify(model, PROMPT[:5]), whole)


def test_passes_of_the_same_bucket_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traced = build_accelerated(), []
    run = TransformerBlock.__call__

    def counted(self: Any, h: mx.array, *more: Any) -> mx.array:
        traced.append(h.shape[1])
        return run(self, h, *more)

    monkeypatch.setattr(TransformerBlock, "__call__", counted)
    cache = model.make_cache()
    for at in range(0, 40, 4):  # wherever they are in the text
        verify(model, PROMPT[at : at + 4], cache)
        draft(model, PROMPT[at + 4], 8, cache)
        one_pass(model, PROMPT[at : at + 4], (0, at // 12), 6, cache)
    assert traced == [4, 4, 8, 8, 32, 32]  # by layer


def test_a_bucket_of_several_sequences_is_traced_when_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced: list[Any] = []
    monkeypatch.setattr(mx, "compile", lambda run: traced.append(run) or (lambda *a: run(*a)))
    monkeypatch.setattr(compiled, "_run", lambda layers, embed, bucket, h, own, held: (h, held))
    part, share = compiled.CompiledLayers([], None), compiled.Share(1, 0, 512)
    counts = []
    for shares in [(share,) * 2, (share,) * 2, (share,) * 2, (share,), (share,)]:
        part(compiled.Bucket(shares, 512, mx.bfloat16, True), mx.zeros(1), mx.zeros(1), [])
        counts.append(len(traced))
    assert counts == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_compiled_passes_of_quantized_models(mode: str) -> None:
    def quantized() -> Any:
        model, group = build(), 16 if mode == "nvfp4" else 32
        nn.quantize(model, group_size=group, bits=8 if "8" in mode else 4, mode=mode)
        return model

    assert close(logits(accelerate(quantized()), 0), logits(quantized(), 0), 1e-4)


def test_keys_are_of_the_type_of_the_weights() -> None:
    """A cache of another type would lose what the new one holds."""
    model = build_accelerated()
    for dtype in (mx.bfloat16, mx.float16):
        model.set_dtype(dtype)
        accelerate(model)
        cache = model.make_cache()
        verify(model, PROMPT[:5], cache)
        assert {layer.keys.dtype for layer in cache} == {dtype}


def test_a_model_in_training_has_its_gradients() -> None:
    """A trace holds weights as constants."""

    def gradients(model: Any) -> dict[str, Any]:
        model.train()

        def loss(model: Any) -> mx.array:
            both = one_pass(model, PROMPT[:3], (1,), 2, model.make_cache())
            return (model(mx.array([PROMPT[:5]])) ** 2).sum() + sum((a**2).sum() for a in both)

        return dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))

    model = build_accelerated()
    verify(model, PROMPT[:5])  # traced before
    expected = gradients(build())
    for name, found in gradients(model).items():
        assert mx.allclose(found, expected[name], rtol=1e-3, atol=1e-3), name
    assert expected["model.layers.0.mlp.down_proj.weight"].any()


def test_traces_keep_nothing_alive() -> None:
    model = build_accelerated()
    verify(model, PROMPT[:5])
    gone = [weakref.ref(model), weakref.ref(model.layers[0].mlp), weakref.ref(model._compiled)]
    replaced = weakref.ref(model.layers[1].mlp)
    gc.disable()
    try:
        model.layers[1].mlp = copy.copy(model.layers[1].mlp)
        accelerate(model)
        verify(model, PROMPT[:5])
        assert replaced() is None
        del model
        assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


def test_few_traces_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "MAX_TRACES", 2)
    model = build_accelerated()
    for n in (2, 4, 8, 16, 4):
        verify(model, PROMPT[:n])
    assert [bucket.rows for bucket in model._compiled._parts[0]._traces] == [16, 4]


def test_a_model_that_ran_can_be_copied() -> None:
    model = build_accelerated()
    expected = verify(model, PROMPT[:5])
    assert mx.array_equal(verify(copy.deepcopy(model), PROMPT[:5]), expected)


def test_what_a_drafting_pass_computes_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of a verify pass, nor of one that is prepared while a draft pass runs."""
    submitted: list[int] = []
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: submitted.append(len(arrays)))
    model = build_accelerated()
    cache = model.make_cache()
    verify(model, PROMPT[:4], cache)
    assert not submitted
    block = Segment(cache, mx.array([5]), mx.array([[5, MASK, MASK]]))
    model.forward(Rows([block], prepared=True))
    assert not submitted
    trim(cache, 4)
    draft(model, 5, 4, cache)
    assert submitted == [2, 2]  # by layer: hidden states and cache


def test_a_model_that_does_more_goes_on_doing_so() -> None:
    class Counting(Model):
        passes = 0

        def backbone(self, rows: Rows) -> mx.array:
            self.passes += 1
            return super().backbone(rows)

    model = build()
    model.__class__ = Counting
    assert close(logits(accelerate(model)), logits(build()), 1e-4)
    assert isinstance(model, Counting) and isinstance(model, CudaModel)
    assert model.passes == 6 and model._compiled._parts[0]._traces
    assert type(accelerate(copy.copy(model))) is type(model)
