"""Batches: anchors only where an answer can be drafted, and the same ones every time."""

import numpy as np
import pytest

from orthrus_mlx.training.batches import Batches, padded_length
from orthrus_mlx.training.data import Example, Span


def example(ids: list[int], answers: list[Span]) -> Example:
    return Example(np.array(ids, np.int32), answers)


def examples(count: int = 30) -> list[Example]:
    """Texts of 10 to 39 ids with two answers each."""
    return [example(list(range(10 + i)), [Span(3, 5), Span(7, 10 + i - 1)]) for i in range(count)]


def test_an_anchor_stands_right_before_or_inside_the_answer_that_it_ends_with() -> None:
    batches = Batches(examples(), 4, 6, 64, seed=0)
    seen = set()
    for step in range(3 * batches.per_epoch):
        batch = batches[step]
        length = (batch.ids != 0).sum(axis=1) + 1  # ids count from 0, which is padding too
        for n, anchors, ends in zip(length, batch.anchors, batch.ends, strict=True):
            here = [(a, e) for a, e in zip(anchors, ends, strict=True) if e]
            assert len(set(here)) == len(here)
            for anchor, end in here:
                assert (anchor, end) in {(2, 5), (3, 5)} or (6 <= anchor < n - 2 and end == n - 1)
                seen.add(int(anchor))
    assert {2, 3, 6} <= seen


def test_fewer_places_than_anchors_leave_blocks_out() -> None:
    batch = Batches([example([1, 2, 3, 4], [Span(2, 4)])], 1, 5, 64, seed=0)[0]
    assert sorted(batch.anchors[batch.ends > 0]) == [1, 2]
    assert batch.ends.tolist()[0][2:] == [0, 0, 0]
    assert batch.n_tokens == 4


def test_an_answer_at_the_very_start_is_drafted_from_its_first_token() -> None:
    batch = Batches([example([1, 2, 3], [Span(0, 3)])], 1, 4, 64, seed=0)[0]
    assert sorted(batch.anchors[batch.ends > 0]) == [0, 1]


def test_an_epoch_shows_every_text_once_in_batches_of_like_lengths() -> None:
    batches = Batches(examples(32), 4, 2, 64, seed=0)
    lengths = sorted(batches[i].n_tokens for i in range(batches.per_epoch))
    in_order = [sum(10 + 4 * i + j for j in range(4)) for i in range(8)]
    assert lengths == in_order


def test_any_step_can_be_asked_for_first() -> None:
    forward = Batches(examples(), 4, 6, 64, seed=3)
    direct = Batches(examples(), 4, 6, 64, seed=3)
    for step in (0, 5, 6, 7, 20):
        wanted = [forward[i] for i in range(step + 1)][-1]
        got = direct[step]
        assert np.array_equal(wanted.ids, got.ids)
        assert np.array_equal(wanted.anchors, got.anchors)
        assert np.array_equal(wanted.ends, got.ends)


def test_seed_and_epoch_change_order_and_anchors() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        batches = Batches(examples(), 4, 6, 64, seed=seed)
        batch = batches[epoch * batches.per_epoch]
        return [*batch.ids[:, -1].tolist(), *batch.anchors.ravel().tolist()]

    assert first(0, 0) != first(1, 0)
    assert first(0, 0) != first(0, 1)


def test_lengths_are_padded_to_few_rungs() -> None:
    rungs = sorted({padded_length(n, 5000) for n in range(1, 5000)})
    assert rungs[:9] == [32, 64, 96, 128, 192, 256, 384, 512, 768]
    assert len(rungs) <= 15
    assert all(n <= padded_length(n, 5000) <= max(n + 32, 1.5 * n) for n in range(1, 5000))
    assert padded_length(40, 50) == 50


@pytest.mark.parametrize("length", [32, 256])
def test_anchors_default_to_one_in_eight_tokens(length: int) -> None:
    batch = Batches([example([1] * length, [Span(1, length)])], 1, None, 1024, seed=0)[0]
    assert batch.anchors.shape == (1, length // 8)
