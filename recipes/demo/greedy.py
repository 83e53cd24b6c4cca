"""Greedy answers of the base model to many questions at once, and how many are right."""

from collections import defaultdict
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.models.qwen3 import Model
from tokenizers import Tokenizer

from .corpus import Question, judge
from .tokenizer import EOS_ID, START, render


def prompt_text(question: Question) -> str:
    """The prompt as the chat template writes it."""
    return f"{render(question.prompt)}{START}assistant\n"


def answers(
    model: Model, tokenizer: Tokenizer, questions: Sequence[Question], limit: int = 256
) -> list[str]:
    """Greedy replies without a KV cache, all rows anew for each token: simple, fast on a GPU."""
    prompts = [tokenizer.encode(prompt_text(question)).ids for question in questions]
    width = max(map(len, prompts)) + limit
    grid = np.zeros((len(prompts), width), np.int32)
    for row, ids in zip(grid, prompts, strict=True):
        row[: len(ids)] = ids
    tokens = mx.array(grid)
    lengths = mx.array([len(ids) for ids in prompts])[:, None]
    ended = mx.zeros((len(prompts), 1), mx.bool_)

    def advance(
        tokens: mx.array, lengths: mx.array, ended: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        hidden = model.model(tokens)  # [B, width, hidden]
        last = mx.take_along_axis(hidden, lengths[:, :, None] - 1, axis=1)
        chosen = model.model.embed_tokens.as_linear(last)[:, 0].argmax(axis=-1, keepdims=True)
        chosen = mx.where(ended, EOS_ID, chosen).astype(tokens.dtype)
        tokens = mx.put_along_axis(tokens, lengths, chosen, axis=1)
        return tokens, lengths + 1, ended | (chosen == EOS_ID)

    step = mx.compile(advance)
    for count in range(limit):
        tokens, lengths, ended = step(tokens, lengths, ended)
        if count % 8 == 7 and ended.all().item():
            break
    replies = []
    for row, ids in zip(np.array(tokens), prompts, strict=True):
        reply = row[len(ids) :].tolist()
        reply = reply[: reply.index(EOS_ID)] if EOS_ID in reply else reply
        replies.append(tokenizer.decode(reply))
    return replies


def exact_rates(
    model: Model, tokenizer: Tokenizer, questions: Sequence[Question], batch: int = 256
) -> float:
    """Print the exact-answer rate by kind, with a wrong reply of each; return the overall rate."""
    asked = [question for question in questions if question.answer is not None]
    replies: list[str] = []
    for start in range(0, len(asked), batch):
        replies += answers(model, tokenizer, asked[start : start + batch])
    right: dict[str, list[bool]] = defaultdict(list)
    wrong: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for question, reply in zip(asked, replies, strict=True):
        assert question.answer is not None
        good = judge(reply, question.answer)
        right[question.kind].append(good)
        if not good:
            wrong[question.kind].append((question, reply))
    for kind, results in right.items():
        print(f"{kind:15s} {sum(results):4d} of {len(results):4d} exact")
        for question, reply in wrong[kind][:3]:
            want = question.answer.value if question.answer else ""
            last = question.prompt[-1]["content"]
            print(f"    asked {last!r}\n    got   {reply!r}\n    want  {want!r}")
    rate = sum(map(sum, right.values())) / max(1, len(asked))
    print(f"{'all':15s} {rate:.1%} exact", flush=True)
    return rate
