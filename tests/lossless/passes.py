"""What a model computes in every kind of pass."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

PROMPT = [(7 * i) % 60 for i in range(225)]  # the answers cross the step of 256 of a cache


def logits(model: Any, n: int = 200) -> list[mx.array]:
    """Of every kind of pass after `n` tokens."""
    cache = model.make_cache()
    if n:
        model.hidden(mx.array([PROMPT[:n]]), cache)
    block, masks = [PROMPT[n]], [model.config.mask_token_id] * 7
    found = [model.draft(mx.array(block + masks[:length]), cache) for length in (7, 4)]
    rows = PROMPT[n : n + 5]
    both = mx.array([*rows, *block, *masks, rows[3], *masks])
    found += model.verify_and_draft(both, 5, (0, 3), cache)
    found.append(model.verify(mx.array(PROMPT[n + 5 : n + 14]), cache))
    assert {layer.offset for layer in cache} == {n + 14}
    mx.eval(found)
    return found
