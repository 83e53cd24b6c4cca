"""What a client is told of how likely a token was."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .events import Logprob


class Logprobs:
    """Turns log-probabilities [vocab_size] into what the APIs tell of them."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        # Of tokenizers whose tokens are bytes, each written as one character.
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        inner = getattr(tokenizer, "_tokenizer", tokenizer)
        added = getattr(inner, "added_tokens_decoder", {})
        self._added = {int(number): str(token) for number, token in added.items()}

    def of(self, token: int, logprobs: mx.array, count: int) -> Logprob:
        """A token, and the `count` likeliest ones at its place."""
        top: tuple[Logprob, ...] = ()
        if count:
            n = min(count, logprobs.size)
            near = mx.argpartition(-logprobs, kth=n - 1)[:n]
            ids: Any = near.tolist()
            values: Any = logprobs[near].tolist()
            ranked = sorted(zip(values, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
            top = tuple(self._one(id, value) for value, id in ranked)
        value: Any = logprobs[token].item()
        return self._one(token, value, top)

    def _one(self, token: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        own = self._bytes(token)
        text = own.decode(errors="replace") if own is not None else self._tokenizer.decode([token])
        # JSON has no infinity: a token that was impossible has the least that a float32 says.
        return Logprob(text, None if own is None else list(own), max(logprob, -3.4e38), top)

    def _bytes(self, token: int) -> bytes | None:
        if token in self._added:
            return self._added[token].encode()
        written = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(written, str) and all(c in self._byte_of for c in written):
            return bytes(self._byte_of[c] for c in written)
        return None
