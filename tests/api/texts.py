"""A tokenizer of single bytes, and a model that writes a given text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from orthrus_mlx.checkpoint.read import load_tokenizer
from tests.lossless.fake_model import FakeModel

EOS, MASK, VOCAB = 256, 257, 258


def byte_tokenizer(folder: Path) -> Any:
    """Byte b of a text is one token, so most characters beyond ASCII are split over several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: n for n, character in enumerate(alphabet)}
    vocab |= {"<eos>": EOS, "<mask>": MASK}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>", "<mask>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


class Writer(FakeModel):
    """Writes the given ids after a prompt of one id, then end tokens; two drafts in three stand."""

    def __init__(self, ids: Sequence[int], max_positions: int = 4096) -> None:
        super().__init__(VOCAB, block_size=4, layers=1, max_positions=max_positions)
        self.ids = [0, *ids, *[EOS] * 9]
        self.script(self.ids, [True, True, False])

    def _row(self, layers: Sequence[Sequence[int]]) -> np.ndarray:
        seen = list(layers[0])
        if seen != self.ids[: len(seen)]:  # drafts that will fall
            return super()._row(layers)
        logits = np.zeros(VOCAB, dtype=np.float32)
        logits[self.ids[min(len(seen), len(self.ids) - 1)]] = 5
        return logits
