"""Caches of earlier prompts: within their budget, for one user at a time, never seen in answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import KVCache

from orthrus_mlx.decoding.prefixes import Held, PrefixStore, fork

LAYERS, WIDTH = 2, 4
TOKEN = LAYERS * 2 * WIDTH * 4  # bytes


def make() -> list[Any]:
    return [KVCache() for _ in range(LAYERS)]


def write(cache: list[Any], ids: Sequence[int]) -> None:
    """What a pass leaves: every slot says which id is there."""
    if not ids:
        return
    values = mx.broadcast_to(
        mx.array(ids, mx.float32)[None, None, :, None], (1, 1, len(ids), WIDTH)
    )
    for layer in cache:
        layer.update_and_fetch(values, values)
        mx.eval(layer.keys, layer.values)


def holds(cache: list[Any]) -> list[int]:
    found = [layer.keys[0, 0, : layer.offset, 0].tolist() for layer in cache]
    assert found == [layer.values[0, 0, : layer.offset, 0].tolist() for layer in cache]
    assert all(ids == found[0] for ids in found)
    return [int(i) for i in found[0]]


texts = st.lists(st.integers(0, 1), min_size=1, max_size=300)


@given(st.lists(texts, min_size=1, max_size=12), st.integers(0, 3000), st.randoms())
def test_every_cache_found_holds_the_start_of_its_prompt(
    prompts: list[list[int]], tokens: int, draw: random.Random
) -> None:
    """Any order of finding and giving back; what is in use is nobody else's."""
    store, used = PrefixStore(tokens * TOKEN), []
    for prompt in prompts:
        if draw.random() < 0.5:  # a text that goes on from an earlier one
            prompt = [*draw.choice(prompts), *prompt]
        cache, n = store.find(prompt, make)
        assert n < len(prompt) and holds(cache) == prompt[:n] if n else cache[0].offset == 0
        assert all(cache is not other for other, _ in used)
        write(cache, prompt[n:])
        used.append((cache, prompt))
        if draw.random() < 0.5:
            store.grown(cache, prompt)
        while used and draw.random() < 0.6:
            cache, prompt = used.pop(draw.randrange(len(used)))
            assert holds(cache) == prompt
            store.give_back(cache, prompt)
            assert store.nbytes <= store.budget
    for cache, prompt in used:
        assert holds(cache) == prompt


def kept(store: PrefixStore, ids: list[int]) -> list[Any]:
    cache, n = store.find(ids, make)
    write(cache, ids[n:])
    store.give_back(cache, ids)
    return cache


def test_the_longest_prefix_is_taken_without_a_copy() -> None:
    store = PrefixStore(1 << 20)
    kept(store, [1, 2, 3])
    own = kept(store, [5, 6, 7, 8, 9])
    cache, n = store.find([5, 6, 7, 8, 1, 1], make)
    assert n == 4 and cache is own and holds(cache) == [5, 6, 7, 8]
    assert len(store) == 1  # it is in use now


def test_an_id_is_left_to_read() -> None:
    store = PrefixStore(1 << 20)
    kept(store, [1, 2, 3])
    assert store.find([1, 2, 3], make)[1] == 2


def test_of_a_cache_that_is_wanted_in_small_part_or_in_use_just_that_part_is_copied() -> None:
    store = PrefixStore(1 << 24)
    long = list(range(600))
    own = kept(store, long)
    cache, n = store.find([0, 1, 2, 9], make)
    assert n == 3 and cache is not own and cache[0].keys.shape[2] == 3
    assert holds(own) == long and len(store) == 1
    taken, n = store.find([*long, 1], make)
    assert taken is own and n == 600
    store.grown(taken, long)
    busy, n = store.find([*long[:500], 7], make)
    assert n == 500 and busy is not own and busy[0].keys.shape[2] == 500
    write(busy, [7])
    assert holds(own) == long and holds(busy) == [*long[:500], 7]


def test_the_least_recently_used_goes_first() -> None:
    one = sum(layer.nbytes for layer in kept(PrefixStore(1 << 20), [1]))  # 256 slots
    store = PrefixStore(2 * one)
    kept(store, [1, 1])
    kept(store, [2, 2])
    kept(store, [1, 1])  # renewed
    kept(store, [3, 3])
    assert store.find([2, 2, 2], make)[1] == 0
    assert store.find([1, 1, 1], make)[1] == 2


def test_the_start_of_another_text_is_not_kept_twice() -> None:
    store = PrefixStore(1 << 20)
    first, second = make(), make()
    write(first, [1, 2])
    write(second, [1, 2, 3])
    store.keep(Held(first, [1, 2]))
    store.keep(Held(second, [1, 2, 3]))
    assert len(store) == 1
    store.keep(Held(first, [1, 2]))
    assert len(store) == 1 and store.find([1, 2, 3, 4], make)[1] == 3


def test_exact_numerics_take_only_what_was_read_in_their_chunks() -> None:
    store = PrefixStore(1 << 24)
    ids = list(range(100))
    cache, _ = store.find(ids, make, 16)
    write(cache, ids[:99])
    store.grown(cache, ids[:99], 16)
    store.give_back(cache, ids)
    assert store.find(ids, make, 32)[1] == 0
    # In fast numerics all may be used, and what is read then is no use to exact ones.
    cache, n = store.find([*ids, 1], make)
    assert n == 99
    write(cache, [99])
    store.give_back(cache, [*ids, 1])
    assert store.find([*ids[:70], 1, 2], make, 16)[1] == 64


def test_a_copy_lets_the_other_be_written_in_place() -> None:
    cache = make()
    write(cache, list(range(5)))
    before = mx.get_active_memory()
    copy = fork(cache, 3, make())
    assert holds(copy) == [0, 1, 2]
    del copy
    write(cache, [5])
    assert holds(cache) == list(range(6))
    assert mx.get_active_memory() <= before + 1024


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    store = PrefixStore(1 << 20)
    for ids in ([1, 2, 3], [7, 8]):
        kept(store, ids)
    store.save(tmp_path, "this model")
    other = PrefixStore(1 << 20)
    other.load(tmp_path, "another model", make())
    assert not len(other)
    (tmp_path / "prefix-0007.safetensors").write_bytes(b"damaged")
    other.load(tmp_path, "this model", make())
    assert len(other) == 2
    cache, n = other.find([1, 2, 3, 4], make)
    assert n == 3 and holds(cache) == [1, 2, 3]
    store.clear()
    store.save(tmp_path, "this model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", [0, 100])
def test_a_budget_too_small_for_anything_keeps_nothing(budget: int) -> None:
    store = PrefixStore(budget)
    kept(store, [1, 2, 3])
    assert len(store) == 0 and store.nbytes == 0
