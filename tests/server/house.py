"""A server in this process, with a model that writes what a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from orthrus_mlx.server.ask import Service
from orthrus_mlx.server.guard import Settings
from orthrus_mlx.server.run import _run, _Server, config, listen
from orthrus_mlx.server.worker import Worker
from tests.lossless.fake_model import FakeModel
from tests.structured.schemas import VOCAB_SIZE, thinking_tokenizer

# As Qwen3's does it: tools in the system message, thinking and calls between tags.
TEMPLATE = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}
{%- if not loop.last or not continue_final_message %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
TURN = "<|im_start|>assistant\n"


@functools.cache
def tokenizer() -> Any:
    """The bundled tokenizer with Qwen3's tags as single ids, and a template that has tools."""
    inner = thinking_tokenizer()._tokenizer
    inner.chat_template = TEMPLATE
    return TokenizerWrapper(inner)


class Actor(FakeModel):
    """Answers a message with the text that a script has for it, else with the message itself."""

    def __init__(self, script: dict[str, str], max_positions: int = 4096) -> None:
        super().__init__(VOCAB_SIZE, block_size=6, layers=1, max_positions=max_positions)
        self._script, self._tokenizer = script, tokenizer()
        self._known: dict[tuple[int, ...], list[int]] = {}
        self.broken: BaseException | None = None  # raised by the next pass
        self.slow = threading.Event()  # each pass waits for it, once it was made to
        self.slow.set()
        self.gate: threading.Semaphore | None = None  # of which each pass takes one, where it is
        self.passes = 0

    def forward(self, rows: Any) -> Any:
        """A pass, which can be made to fail or to wait."""
        self.slow.wait(30)
        if self.gate is not None:
            self.gate.acquire(timeout=30)
        self.passes += 1
        if self.broken is not None:
            broken, self.broken = self.broken, None
            raise broken
        return super().forward(rows)

    def answer(self, asked: str, prompt: str) -> str:
        """What to write, given the last message, behind all of the prompt."""
        return self._script.get(asked, asked)

    def _row(self, layers: Sequence[Sequence[int]]) -> np.ndarray:
        seen = list(layers[0])
        logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
        logits[self._next(seen)] = 9
        return logits

    def _next(self, seen: list[int]) -> int:
        end = min(self._tokenizer.eos_token_ids)
        marks = self._marks
        starts = [n for n in range(len(seen)) if seen[n : n + len(marks)] == marks]
        if not starts:
            return end
        begin = starts[-1] + len(marks)
        key = tuple(seen[:begin])
        if key not in self._known:
            text = self._tokenizer.decode(seen[: starts[-1]])
            asked = text.rpartition("<|im_start|>")[2].partition("\n")[2].partition("<|im_end|>")[0]
            ids = self._tokenizer.encode(self.answer(asked, text), add_special_tokens=False)
            self._known[key] = [*ids, *[end] * 9]
        said, answer_ids = seen[begin:], self._known[key]
        if said[: len(answer_ids)] != answer_ids[: len(said)]:
            # Something stood there already, such as closed thinking: the answer comes behind it.
            closed = self._closed
            if said[: len(closed)] == closed:
                said = said[len(closed) :]
            if said[: len(answer_ids)] != answer_ids[: len(said)]:
                return end
        return answer_ids[min(len(said), len(answer_ids) - 1)]

    @functools.cached_property
    def _marks(self) -> list[int]:
        ids: list[int] = self._tokenizer.encode(TURN, add_special_tokens=False)
        return ids

    @functools.cached_property
    def _closed(self) -> list[int]:
        text = "<think>\n\n</think>\n\n"
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


@dataclass
class House:
    """A running server.

    Attributes:
        url: where it is.
        service: what it serves.
        model: what writes.
        log: what it said.
        http: a client.
        code: how it ended.
        paths: its routes.
    """

    url: str
    service: Service
    model: Any
    log: list[str]
    http: httpx2.Client
    code: int | None = None
    paths: frozenset[str] = frozenset()

    def post(self, path: str, body: Any, **options: Any) -> Any:
        """A request with a JSON body."""
        return self.http.post(path, json=body, **options)

    def chat(self, text: str, **fields: Any) -> Any:
        """The response to one message, which must be 200."""
        body = {"messages": [{"role": "user", "content": text}], **fields}
        response = self.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        return response.json()


@contextlib.contextmanager
def serving(
    model: Any,
    its_tokenizer: Any = None,
    *,
    options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **limits: Any,
) -> Iterator[House]:
    """A server of a model, on a free port, until the block ends."""
    given = its_tokenizer or tokenizer()
    worker = Worker(lambda: (model, given), **{"calibrate": False, "prefix_memory": 0, **limits})
    worker.start()
    worker.ready.result(60)
    service = Service(worker, "test-model", {"temperature": 0.0, **(options or {})})
    log: list[str] = []
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    up = threading.Event()
    how = config(service, Settings(**{"log": log.append, **(settings or {})}))
    server, paths = _Server(how), frozenset(route.path for route in how.app.routes)
    http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    house = House(f"http://127.0.0.1:{port}", service, model, log, http, paths=paths)

    def run() -> None:
        asyncio.run(_run(server, worker, taken, up.set, log.append))
        house.code = int(worker.dead is not None and not server.told)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(30)
    try:
        yield house
    finally:
        model_slow = getattr(model, "slow", None)
        if model_slow is not None:
            model_slow.set()
        http.close()
        server.should_exit = server.force_exit = True
        thread.join(30)
        worker.abandon()
        worker.join(30)
        taken.close()
