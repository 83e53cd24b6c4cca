"""Attention of a few rows: on CUDA kernels of our own, elsewhere MLX's behind a mask."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from orthrus_mlx.cuda import accelerate, kernels, norm_rope
from orthrus_mlx.cuda import attention as ranged
from orthrus_mlx.cuda.attention import attend, fits, parts_of
from orthrus_mlx.cuda.ranges import StaticRows, StaticSegment, ranges, visible
from orthrus_mlx.rows import Rows, Segment, block_mask

from .passes import MASK, PROMPT, build, build_accelerated, logits, verify

on_cuda = pytest.mark.skipif(not kernels.runs_here(), reason="needs a CUDA device")

# (heads, KV heads, head_dim), (start, AR rows, diffusion rows, depths, spare rows), slots
PASSES = [
    ((4, 2, 64), (10, 4, 0, (0,), 0), 512),
    ((4, 4, 32), (0, 0, 8, (0,), 0), 512),
    ((4, 1, 128), (500, 5, 6, (0, 4), 2), 700),
    ((2, 1, 32), (1100, 2, 3, (1,), 1), 1536),  # more parts than are merged at once
    ((6, 1, 64), (70, 9, 3, (1,), 1), 300),  # two tiles of queries for each warp
    pytest.param((4, 1, 96), (4090, 13, 12, (0, 1, 2), 4), 5120, marks=on_cuda),
    pytest.param((2, 1, 32), (17000, 2, 2, (0,), 0), 20480, marks=on_cuda),
    pytest.param((32, 8, 128), (1000, 64, 64, (0, 7), 0), 1536, marks=on_cuda),
]


def inputs(heads: tuple[int, int, int], rows: int, slots: int) -> tuple[mx.array, ...]:
    n_heads, n_kv, dim = heads
    shapes = (1, n_heads, rows, dim), (1, n_kv, slots, dim), (1, n_kv, slots, dim)
    keys = mx.random.split(mx.random.key(3), 3)
    q, k, v = (
        mx.random.normal(shape, key=key).astype(mx.bfloat16)
        for shape, key in zip(shapes, keys, strict=True)
    )
    return q * 3, k, v


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(("heads", "rows", "slots"), PASSES)
def test_the_kernels_attend(heads: Any, rows: Any, slots: int) -> None:
    _, n_ar, n_diff, _, spare = rows
    q, k, v = inputs(heads, n_ar + n_diff + spare, slots)
    seen = seen_by(*rows)
    expected = mx.fast.scaled_dot_product_attention(
        *(a.astype(mx.float32) for a in (q, k, v)), scale=0.1, mask=visible(seen, slots)
    )
    out = attend(q, k, v, seen, 0.1)
    expected = expected.transpose(0, 2, 1, 3).reshape(out.shape)
    assert mx.allclose(out.astype(mx.float32), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize(("heads", "rows", "slots"), [PASSES[0], *PASSES[2:]])
def test_a_row_attends_with_the_same_bits_beside_any_others(
    heads: Any, rows: Any, slots: int
) -> None:
    start, n_ar, n_diff, _, spare = rows
    q, k, v = inputs(heads, n_ar + n_diff + spare, slots)
    whole = attend(q, k, v, seen_by(*rows), 0.1)
    for n, first, room in ((n_ar, 0, 512), (1, n_ar // 2, 0), (2, n_ar - 2, 512)):
        longer = [mx.pad(a, [(0, 0), (0, 0), (0, room), (0, 0)]) for a in (k, v)]
        at, part = start + first, slice(first, first + n)
        alone = attend(q[:, :, part], *longer, seen_by(at, n, 0, (0,)), 0.1)
        assert mx.array_equal(alone, whole[:, part])


def seen_by(*rows: Any, **padding: int) -> mx.array:
    """The ranges of these rows, on the device."""
    return mx.array(ranges(*rows, **padding))


def half(model: Any) -> Any:
    model.set_dtype(mx.bfloat16)
    return model


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("views", [(3, 0), (0, 5), (3, 5)])
@pytest.mark.parametrize("state", ["fused", "biased"])
def test_the_norm_and_rope_kernel_does_what_the_modules_do(
    views: tuple[int, int], state: str
) -> None:
    attention = half(build_accelerated(head_dim=32)).layers[0].self_attn
    if state == "biased":
        attention.v_proj.bias = mx.ones(attention.v_proj.weight.shape[0], mx.bfloat16)
    attention.fuse()
    assert (attention._qkv is None) == (state == "biased")
    n_ar, n_diff = views
    x = mx.random.normal((1, n_ar + n_diff, 32), key=mx.random.key(4)).astype(mx.bfloat16)
    own = seen_by(3000, n_ar, n_diff, (n_ar // 2,))
    alone = StaticSegment(slice(0, n_ar), slice(n_ar, n_ar + n_diff), own)
    rows = StaticRows(n_ar, own, (alone,), mx.zeros(()), kernels=True)
    assert norm_rope.fits(attention, x)
    by_kernel = attention.inputs(x, rows)
    for a, b in zip(by_kernel, attention.inputs(x, rows._replace(kernels=False)), strict=True):
        assert mx.allclose(a.astype(mx.float32), b.astype(mx.float32), rtol=3e-2, atol=5e-2)


@pytest.mark.usefixtures("cuda_kernels")
def test_passes_by_kernels_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels at once, in every kind of pass."""
    monkeypatch.setattr(mx, "compile", lambda run: run)  # sources cannot be run while it traces
    exact = half(build(head_dim=32))
    exact.set_dtype(mx.float32)
    expected = logits(exact, 40)
    model = half(build(head_dim=32))
    found = logits(accelerate(model), 40)
    assert model._compiled._kernels
    for a, b in zip(found, expected, strict=True):
        error: Any = mx.linalg.norm(a.astype(mx.float32) - b) / mx.linalg.norm(b)
        assert error.item() < 0.04


def packed(model: Any, shapes: list[tuple[int, int, int]]) -> list[mx.array]:
    """A pass over several texts, (tokens before it, AR rows, rows of a block) each, and a step."""
    segments, sources, text = [], [], 3 * PROMPT
    for n, n_ar, length in shapes:
        cache = model.make_cache()
        if n:
            verify(model, text[:n], cache)
        ar = mx.array(text[n : n + n_ar]) if n_ar else None
        block = mx.array([[text[n], *[MASK] * (length - 1)]]) if length else None
        segments.append(Segment(cache, ar, block))
        sources.append(cache)
    found = [*model.forward(Rows(segments))]
    ends = [n + n_ar for n, n_ar, _ in shapes]
    assert [cache[0].offset for cache in sources] == ends
    again = [Segment(c, mx.array(text[e : e + 1])) for c, e in zip(sources, ends, strict=True)]
    return [a for a in (*found, *model.forward(Rows(again))) if a.size]


PACKED = {
    "steps": [(5, 1, 0), (40, 1, 0), (0, 1, 0)],
    "everything": [(5, 1, 3), (600, 2, 0), (9, 0, 6), (7, 4, 3)],
}


@pytest.mark.usefixtures("cuda_kernels")
@pytest.mark.parametrize("shapes", PACKED.values(), ids=PACKED)
def test_passes_over_several_texts_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[int, int, int]]
) -> None:
    monkeypatch.setattr(mx, "compile", lambda run: run)
    exact = half(build(head_dim=32))
    exact.set_dtype(mx.float32)
    expected = packed(exact, shapes)
    model = accelerate(half(build(head_dim=32)))
    found = packed(model, shapes)
    assert any(len(bucket.shares) == len(shapes) for bucket in model._compiled._parts[0]._traces)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        errors: Any = mx.linalg.norm(a.astype(mx.float32) - b, axis=-1) / mx.linalg.norm(b, axis=-1)
        # A row in bfloat16 alone is off by up to 0.07; one that sees a slot too few, by 0.7.
        assert errors.max().item() < 0.15


@pytest.mark.usefixtures("cuda_kernels")
def test_texts_in_another_order_are_the_same_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "compile", lambda run: run)
    model = accelerate(half(build(head_dim=32)))
    shapes = [(5, 1, 0), (9, 2, 0), (3, 3, 0)]
    one, other = packed(model, shapes), packed(model, shapes[::-1])
    several = [b for b in model._compiled._parts[0]._traces if len(b.shares) > 1]
    assert len(several) == 2  # the pass, and the step after it
    assert [(share.n_ar, share.n_diff) for share in several[0].shares] == [(4, 0), (4, 0), (1, 0)]
    assert mx.array_equal(one[0], other[0][mx.array([5, 3, 4, 0, 1, 2])])


def test_ranges_are_what_masks_say() -> None:
    """Three AR rows after ten tokens, and two blocks of two behind the first and the third."""
    seen = seen_by(10, 3, 4, (0, 2), padding=1)
    assert seen[0].tolist() == [10, 11, 12, 10, 11, 12, 13, 10]
    text, blocks = list(range(10)), [[13, 14], [15, 16], [17]]
    expected = [
        *([*text, *range(10, 10 + n)] for n in (1, 2, 3)),
        *[text + blocks[0]] * 2,
        *[[*text, 10, 11, *blocks[1]]] * 2,
        text + blocks[2],
    ]
    mask = visible(seen, 20)
    assert [[slot for slot in range(20) if row[slot]] for row in mask.tolist()] == expected
    assert mx.array_equal(block_mask(10, 3, 4, (0, 2)), mask[3:7, :17])
    model = build()
    cache = model.make_cache()
    verify(model, [1] * 10, cache)
    rows = Rows([Segment(cache, mx.array([1, 2, 3]), mx.array([[1, 0], [3, 0]]), (0, 2))])
    assert mx.array_equal(rows.positions, seen[0, :7])


def test_parts_grow_with_the_context() -> None:
    begin = 0
    for end, size in (*ranged.PARTS, (1 << 20, ranged.LARGEST)):
        # Or a tile of keys would lie in two parts.
        assert size % ranged.KEYS == 0 and (end - begin) % size == 0
        begin = end
    sizes = [parts_of(n) for n in (1, 128, 129, 2048, 4096, 4097, 16384, 16385, 32768)]
    assert sizes == [1, 1, 2, 16, 24, 25, 36, 37, 52]


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A layer that the kernels could run."""
    monkeypatch.setattr(ranged, "runs_here", lambda: True)
    return half(build(head_dim=32)).layers[0].self_attn


ROW = mx.zeros((1, 1, 32), mx.bfloat16)


def test_the_kernels_know_bfloat16_alone(attention: Any) -> None:
    assert fits(attention, ROW, ROW) and norm_rope.fits(attention, ROW)
    for dtype in (mx.float16, mx.float32):  # as of a cache from before `set_dtype`
        assert not fits(attention, ROW, ROW.astype(dtype))
        assert not norm_rope.fits(attention, ROW.astype(dtype))
    attention.head_dim = 80
    assert not fits(attention, ROW)
    attention.head_dim = 32
    attention.train()  # the kernels have no gradient
    assert not fits(attention, ROW) and not norm_rope.fits(attention, ROW)


@pytest.mark.parametrize(
    "rope",
    [
        nn.RoPE(16, traditional=False),
        nn.RoPE(32, traditional=True),
        nn.RoPE(32, scale=0.5),
        nn.ALiBi(),
    ],
)
def test_other_rotary_embeddings_are_left_to_their_modules(attention: Any, rope: Any) -> None:
    attention.rope = rope
    assert fits(attention, ROW) and not norm_rope.fits(attention, ROW)


def test_other_norms_are_left_to_their_modules(attention: Any) -> None:
    attention.k_norm_diff.weight = attention.k_norm_diff.weight.astype(mx.float32)
    assert not norm_rope.fits(attention, ROW)
    attention.k_norm_diff = nn.RMSNorm(32, eps=1e-3)
    attention.k_norm_diff.set_dtype(mx.bfloat16)
    assert not norm_rope.fits(attention, ROW)
    attention.k_norm_diff = nn.LayerNorm(32)
    assert not norm_rope.fits(attention, ROW)


@pytest.mark.usefixtures("cuda_kernels")
def test_a_cache_of_another_type_is_read_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a conversation begun before `set_dtype`."""
    monkeypatch.setattr(mx, "compile", lambda run: run)  # sources cannot be run while it traces
    model = accelerate(half(build(head_dim=32)))
    expected = []
    for dtype in (mx.bfloat16, mx.float32):
        cache = model.make_cache()
        verify(model, [1, 2, 3], cache)
        for layer in cache:
            layer.keys, layer.values = layer.keys.astype(dtype), layer.values.astype(dtype)
        expected.append(verify(model, [5, 6, 7, 8], cache).astype(mx.float32))
    assert mx.allclose(*expected, rtol=3e-2, atol=3e-2)


@pytest.mark.usefixtures("cuda_kernels")
def test_a_cache_of_another_type_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "compile", lambda run: run)
    found = []
    for model in (half(build(head_dim=32)), accelerate(half(build(head_dim=32)))):
        segments = []
        for n, dtype in ((3, mx.bfloat16), (5, mx.float32)):
            cache = model.make_cache()
            verify(model, PROMPT[:n], cache)
            for layer in cache:
                layer.keys, layer.values = layer.keys.astype(dtype), layer.values.astype(dtype)
            segments.append(Segment(cache, mx.array(PROMPT[n : n + 2])))
        found.append(model.forward(Rows(segments))[0].astype(mx.float32))
    assert mx.allclose(*found, rtol=5e-2, atol=5e-2)
