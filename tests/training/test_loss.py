"""The loss of many blocks at once equals one block at a time through the decoding path."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from orthrus_mlx.checkpoint.config import ModelConfig
from orthrus_mlx.model import Model, is_diffusion
from orthrus_mlx.training import loss as loss_module
from orthrus_mlx.training.loss import DiffWeights, block_loss, cast, read_texts
from tests.helpers import draft, random_config, random_weights, verify


def random_model(seed: int) -> tuple[Model, DiffWeights]:
    raw = random_config(seed, block_size=4)
    model = Model(ModelConfig.from_dict(raw))
    model.load_weights(list(random_weights(raw, seed).items()))
    return model, {n: a for n, a in tree_flatten(model.parameters()) if is_diffusion(n)}


# Blocks at a text's start, inside, running past an answer's end, past the text's, and not there.
ANCHORS = mx.array([[0, 3, 9, 10], [5, 1, 0, 7]], mx.int32)
ENDS = mx.array([[12, 5, 12, 12], [8, 8, 0, 10]], mx.int32)


def random_ids(model: Model, seed: int) -> mx.array:
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (2, 12))
    ids[1, 10:] = 0  # padding
    return mx.array(ids.astype(np.int32))


def naive_loss(model: Model, ids: mx.array) -> float:
    """One block at a time: read what precedes the anchor, draft, compare row by row."""
    masks = [model.config.mask_token_id] * (model.config.block_size - 1)
    gaps = []
    for text, anchors, ends in zip(ids.tolist(), ANCHORS.tolist(), ENDS.tolist(), strict=True):
        teacher = log_softmax(model(mx.array(text)[None])[0])
        for anchor, end in zip(anchors, ends, strict=True):
            cache = model.make_cache()
            if anchor:
                verify(model, text[:anchor], cache)
            student = log_softmax(draft(model, mx.array([text[anchor], *masks]), cache))
            for row in range(len(masks)):
                if anchor + row + 1 < end:
                    p, q = teacher[anchor + row], student[row]
                    gaps.append(float((np.exp(p) * (p - q)).sum()))
    return float(np.mean(gaps))


def log_softmax(logits: mx.array) -> np.ndarray:
    x = np.array(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_drafting_block_by_block(seed: int) -> None:
    model, view = random_model(seed)
    ids = random_ids(model, seed)
    got = block_loss(model, view, read_texts(model, ids), ids, ANCHORS, ENDS)
    assert got.item() == pytest.approx(naive_loss(model, ids), rel=1e-5)


def gradients(
    model: Model, view: DiffWeights, ids: mx.array, checkpoint: bool = False
) -> DiffWeights:
    read = read_texts(model, ids)
    return mx.grad(lambda v: block_loss(model, v, read, ids, ANCHORS, ENDS, checkpoint))(view)


def test_gradients_point_where_the_loss_falls() -> None:
    model, view = random_model(1)
    ids = random_ids(model, 1)
    read = read_texts(model, ids)

    def loss(v: DiffWeights) -> float:
        return block_loss(model, v, read, ids, ANCHORS, ENDS).item()

    grads = gradients(model, view, ids)
    assert grads.keys() == view.keys()
    for name in view:  # a small step against each gradient alone falls by about its square
        square = grads[name].square().sum().item()
        size = 2e-3 / max(square**0.5, 1e-6)
        fall = loss({**view, name: view[name] + size * grads[name]}) - loss(
            {**view, name: view[name] - size * grads[name]}
        )
        assert fall == pytest.approx(2 * size * square, rel=0.1, abs=2e-5), name


@pytest.mark.parametrize("how", ["layers recomputed", "rows in chunks"])
def test_saving_memory_changes_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, view = random_model(2)
    ids = random_ids(model, 2)
    wanted = gradients(model, view, ids)
    if how == "rows in chunks":
        monkeypatch.setattr(loss_module, "CHUNK", 5 * model.config.vocab_size)
    got = gradients(model, view, ids, checkpoint=how == "layers recomputed")
    for name in view:
        assert np.allclose(np.array(got[name]), np.array(wanted[name]), rtol=1e-4, atol=1e-6), name


def test_the_model_is_left_as_it_was_found() -> None:
    model, view = random_model(3)
    before = {name: np.array(a) for name, a in tree_flatten(model.parameters())}
    doubled = {name: 2 * a for name, a in view.items()}
    gradients(model, doubled, random_ids(model, 3))
    for name, a in tree_flatten(model.parameters()):
        assert np.array_equal(before[name], np.array(a)), name


def test_half_precision_comes_close() -> None:
    model, view = random_model(0)
    ids = random_ids(model, 0)
    exact = naive_loss(model, ids)
    model.set_dtype(mx.bfloat16)
    view = cast(view, mx.bfloat16)
    got = block_loss(model, view, read_texts(model, ids), ids, ANCHORS, ENDS)
    assert got.dtype == mx.float32
    assert got.item() == pytest.approx(exact, rel=0.1)
