"""OpenAI's /v1/completions: text goes on as it stands, without a chat template."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from ..errors import RequestError
from . import sse
from .answers import Answers, decode
from .ask import Ask, Service
from .events import Ended, Figures, Logprob, Said
from .fields import Fields, kind
from .openai import (
    BOOKKEEPING,
    MOST_TOP,
    error_body,
    extras,
    identify,
    read_prediction,
    read_response_format,
    read_sampling,
    usage,
)

MAX_TOKENS = 16  # of an answer where a request does not say, as OpenAI has it
MOST_ID = 2**31 - 1
CANNOT = {
    "suffix": "the model writes from left to right alone.",
    "tools": "they need a chat; ask /v1/chat/completions.",
    "functions": "they need a chat; ask /v1/chat/completions.",
    "messages": "this endpoint goes on with a prompt; ask /v1/chat/completions.",
}


def read(fields: Fields) -> Ask:
    """What a body asks for.

    Raises:
        RequestError: naming the field that cannot be honoured.
    """
    ask = Ask(prompts=_prompts(fields))
    read_sampling(fields, ask)
    read_prediction(fields, ask)
    read_response_format(fields, ask)
    longest = fields.count("max_tokens", 0)
    ask.options["max_tokens"] = MAX_TOKENS if longest is None else longest
    ask.logprobs = fields.count("logprobs", 0, MOST_TOP)
    if fields.flag("echo") and ask.logprobs is not None:
        raise fields.refuse(
            "echo", "cannot be combined with logprobs: those of a prompt are not computed."
        )
    best = fields.count("best_of", 1)
    if best not in (None, ask.n):
        raise fields.refuse("best_of", "must be n: all answers that are written are given back.")
    fields.refuse_any(CANNOT)
    fields.skip(*BOOKKEEPING, "return_token_ids")
    return ask


def _prompts(fields: Fields) -> list[str | list[int]]:
    """A text, ids, or a list of either."""
    given = fields.needed("prompt", fields.get("prompt"))
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise fields.refuse("prompt", f"is {kind(given)}; expected text, ids, or a list of them.")
    if not given:
        raise fields.refuse("prompt", "is empty.")
    if not isinstance(given[0], str | list):
        return [_ids(fields, given, "")]
    return [
        prompt if isinstance(prompt, str) else _ids(fields, prompt, f"[{n}]")
        for n, prompt in enumerate(given)
    ]


def _ids(fields: Fields, given: Any, where: str) -> list[int]:
    if not isinstance(given, list):
        raise fields.refuse("prompt", f"{where} is {kind(given)}; expected text or ids.".lstrip())
    for n, id in enumerate(given):
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= MOST_ID:
            raise fields.refuse("prompt", f"{where}[{n}] is no token id.")
    return given


class Reply:
    """The response to one request, streamed or whole."""

    def __init__(self, service: Service, fields: Fields, ask: Ask) -> None:
        self._service, self._ask = service, ask
        self._echo = bool(fields.flag("echo"))
        self._with_ids = bool(fields.flag("return_token_ids"))
        stream = fields.object("stream_options")
        self._with_usage = bool(stream and stream.flag("include_usage"))
        self._common = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": identify(service, ask),
        }

    async def whole(self, answers: Answers) -> dict[str, Any]:
        """The response as one object."""
        texts = await self._echoed(answers)
        logprobs: list[list[Logprob]] = [[] for _ in texts]
        ends: dict[int, Ended] = {}
        async for n, event in answers:
            if isinstance(event, Said):
                texts[n] += event.text
                logprobs[n] += event.logprobs
            elif isinstance(event, Ended):
                ends[n] = event
        choices = []
        for n, text in enumerate(texts):
            told = None if self._ask.logprobs is None else _Logprobs().written(logprobs[n])
            choices.append(self._choice(n, text, told, ends[n]))
        figures = [ends[n].figures for n in range(len(texts))]
        return {
            **self._common,
            "choices": choices,
            "usage": usage(figures, self._ask.n),
            "orthrus": extras(figures),
        }

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """The response as server-sent events."""
        figures: dict[int, Figures] = {}
        for n, text in enumerate(await self._echoed(answers)):
            if text:
                yield self._chunk(self._choice(n, text))
        logprobs = [_Logprobs() for _ in answers.jobs]
        async for n, event in answers:
            if event is None:
                yield sse.comment(answers.reading)
            elif isinstance(event, Said):
                plain = self._ask.logprobs is None
                told = None if plain else logprobs[n].written(event.logprobs)
                yield self._chunk(self._choice(n, event.text, told))
            elif isinstance(event, Ended):
                figures[n] = event.figures
                # Of what made the answers the last chunk with a choice tells.
                last = len(figures) == len(answers.jobs)
                more = {"orthrus": extras([figures[n] for n in sorted(figures)])} if last else {}
                yield self._chunk(self._choice(n, "", None, event), **more)
        if self._with_usage:
            totals = usage([figures[n] for n in sorted(figures)], self._ask.n)
            yield sse.data({**self._common, "choices": [], "usage": totals})
        yield sse.DONE

    def failed(self, error: RequestError, kind: str) -> str:
        """The event that ends a stream before its time."""
        return sse.data(error_body(error, kind))

    async def _echoed(self, answers: Answers) -> list[str]:
        """What each answer begins with: its prompt, if that is to be given back."""
        if not self._echo:
            return ["" for _ in answers.jobs]
        texts = [
            prompt if isinstance(prompt, str) else await decode(self._service, prompt)
            for prompt in self._ask.prompts
        ]
        return [text for text in texts for _ in range(self._ask.n)]

    def _choice(
        self, n: int, text: str, logprobs: Any = None, ended: Ended | None = None
    ) -> dict[str, Any]:
        reason = ended.reason if ended else None
        ids = {"token_ids": ended.figures.ids} if ended and self._with_ids else {}
        return {"index": n, "text": text, "logprobs": logprobs, "finish_reason": reason, **ids}

    def _chunk(self, choice: dict[str, Any], **more: Any) -> str:
        totals = {"usage": None} if self._with_usage else {}
        return sse.data({**self._common, "choices": [choice], **totals, **more})


class _Logprobs:
    """Log-probabilities of one answer as this API has them, with where each token is in it."""

    def __init__(self) -> None:
        self._at = 0
        # A character may be several tokens: it counts with the one that completes it.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def written(self, logprobs: Iterable[Logprob]) -> dict[str, Any]:
        """The next tokens' log-probabilities."""
        tokens, values, top, offsets = [], [], [], []
        for token in logprobs:
            tokens.append(_label(token))
            values.append(token.logprob)
            near: dict[str, float] = {}
            for one in (*token.top, token):  # the token itself too, likely or not
                near.setdefault(_label(one), one.logprob)
            top.append(near)
            offsets.append(self._at)
            own = token.token.encode() if token.bytes is None else bytes(token.bytes)
            self._at += len(self._decoder.decode(own))
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _label(token: Logprob) -> str:
    """A token's text, or its bytes where they are part of a character."""
    if token.bytes is None:
        return token.token
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
