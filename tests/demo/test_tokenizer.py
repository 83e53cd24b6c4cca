"""The demo's tokenizer and training rows: lossless text, single digits, the template's ids."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import Tokenizer

from recipes.demo import rows, tokenizer
from recipes.demo.corpus import KINDS, conversation
from recipes.demo.corpus.core import draw

pytestmark = pytest.mark.full
ODD = "naïve café 日本語 😀 \t x  y\r\n  z ½ × ÷ ≠"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(tokenizer.train(conversation(0, i) for i in range(4000)), folder)
    (folder / "config.json").write_text('{"model_type": "qwen3", "eos_token_id": 2}')
    return folder


@pytest.fixture(scope="module")
def bare(folder: Path) -> Tokenizer:
    return tokenizer.load(folder)


@pytest.fixture(scope="module")
def wrapped(folder: Path) -> TokenizerWrapper:
    return load_tokenizer(folder)


def streamed(wrapped: TokenizerWrapper, ids: list[int]) -> str:
    detokenizer: Any = wrapped.detokenizer
    detokenizer.reset()
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    return detokenizer.text


def test_the_size_leaves_a_row_for_the_mask(bare: Tokenizer, wrapped: TokenizerWrapper) -> None:
    assert bare.get_vocab_size() == len(wrapped) == tokenizer.MASK_ID < tokenizer.VOCABULARY
    assert wrapped.eos_token_ids == {tokenizer.EOS_ID}
    assert wrapped.encode("<|im_end|>") == [tokenizer.EOS_ID]


def test_mlx_lm_streams_it_as_byte_level_bpe(wrapped: TokenizerWrapper) -> None:
    assert isinstance(wrapped.detokenizer, BPEStreamingDetokenizer)


def test_digits_are_tokens_of_their_own(bare: Tokenizer) -> None:
    tokens = bare.encode("12+345 = 357, x2").tokens
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))
    joined = [token for token in bare.get_vocab() if sum(c.isdigit() for c in token) > 1]
    assert not joined


@pytest.mark.parametrize("name", KINDS)
def test_the_corpus_survives_encoding(name: str, bare: Tokenizer, wrapped: Any) -> None:
    rng = random.Random(name)
    for _ in range(60):
        messages = draw(KINDS[name], rng).messages
        text = tokenizer.render(messages)
        ids = bare.encode(text).ids
        assert bare.decode(ids, skip_special_tokens=False) == text
        assert wrapped.encode(text) == ids
        assert streamed(wrapped, ids) == text


def test_any_text_survives(bare: Tokenizer, wrapped: TokenizerWrapper) -> None:
    ids = bare.encode(ODD).ids
    assert bare.decode(ids) == ODD
    assert wrapped.encode(ODD) == ids
    assert streamed(wrapped, ids) == ODD


def test_rows_hold_the_ids_of_the_chat_template(bare: Tokenizer, wrapped: Any) -> None:
    conversations = [conversation(1, i) for i in range(300)]
    for messages, (ids, learn) in zip(conversations, rows.encode(conversations, bare), strict=True):
        assert ids.tolist() == wrapped.apply_chat_template(messages, return_dict=False)
        learned = wrapped.decode(ids[learn].tolist())
        mine = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
        assert learned == "".join(mine)
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = wrapped.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    assert text == tokenizer.render(prompt) + "<|im_start|>assistant\n"


def test_conversations_are_short(bare: Tokenizer) -> None:
    encoded = rows.encode((conversation(2, i) for i in range(3000)), bare)
    lengths = sorted(len(ids) for ids, _ in encoded)
    assert lengths[int(0.95 * len(lengths))] <= 384
    assert lengths[-1] <= 512


def test_packing_keeps_conversations_whole(bare: Tokenizer) -> None:
    encoded = list(rows.encode((conversation(2, i) for i in range(500)), bare))
    tokens, learned = rows.pack(encoded, 512, pad=0)
    assert learned.sum() == sum(learn.sum() for _, learn in encoded)
    assert (tokens != 0).sum() == sum(len(ids) for ids, _ in encoded)
    assert (tokens != 0).mean() > 0.9
    packed = {row.tobytes()[: len(ids) * 2] for row in tokens for ids, _ in encoded[:1]}
    assert encoded[0][0].tobytes() in packed
    assert not learned[tokens == 0].any()
    assert tokens.dtype == np.uint16
