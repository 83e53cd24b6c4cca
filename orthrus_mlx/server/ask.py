"""One form for the requests of all APIs, and how the worker gets to answer them."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from ..chat.prompt import encode_chat, encode_text
from ..decoding.checks import room_to_answer
from ..decoding.constraints import Constraint, JsonSchema, ToolCalls
from ..device.measured import device_name
from ..errors import ConstraintError, RequestError
from .events import Event
from .logprobs import Logprobs
from .pieces import Pieces, Tags
from .worker import Job, Worker

MAX_SEED = 2**64
LONG_TOKEN = 16  # characters; few tokens have more
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass
class Ask:
    """What a request asks for.

    Attributes:
        messages: a conversation to answer, as chat templates take it.
        prompts: or texts, or lists of ids, to continue as they stand.
        unfinished: whether the last message is to be gone on with.
        tools: as OpenAI's chat API has them.
        tool_choice: "auto", "none", "required" or the name of a tool.
        parallel: whether there may be several calls.
        constraint: what the answer's text may be.
        template: variables for the chat template.
        stops: strings that end an answer.
        n: answers to each prompt.
        seed: keys the sampling noise of the first answer; the next one has the next.
        logprobs: how many of the likeliest tokens to tell at each place; None for no logprobs.
        options: everything else, by the names of `GenerationOptions`.
    """

    messages: list[dict[str, Any]] | None = None
    prompts: list[str | list[int]] = field(default_factory=list)
    unfinished: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    parallel: bool = True
    constraint: JsonSchema | None = None
    template: dict[str, Any] = field(default_factory=dict)
    stops: list[str] = field(default_factory=list)
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Service:
    """A loaded model and what it is served with.

    Attributes:
        worker: writes the answers.
        tokenizer: the model's.
        name: what the model is called.
        options: defaults of requests, by the names of `GenerationOptions`.
        template: variables for the chat template; a request's own come on top.
        created: when it was loaded, in seconds since 1970.
    """

    worker: Worker
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.model, self.tokenizer = self.worker.ready.result()
        self.tags = Tags.of(self.tokenizer)
        self.ends = frozenset(self.tokenizer.eos_token_ids)
        self._logprobs = Logprobs(self.tokenizer)
        self._shows_tools: bool | None = None

    def fingerprint(self, numerics: str) -> str:
        """OpenAI's system_fingerprint: what an answer depends on, beside the request."""
        own = json.dumps([self.options, self.template], sort_keys=True, default=str)
        chats = str(getattr(self.tokenizer, "chat_template", ""))
        made_by = (version("orthrus-mlx"), version("mlx"), device_name())
        parts = (self.worker.weights, chats, own, numerics, *made_by)
        return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def encode(self, ask: Ask) -> list[list[int]]:
        """The ids of each prompt; may take as long as a chat template does.

        Raises:
            GenerationError: if there is nothing to answer, or the template refuses it.
        """
        if ask.messages is None:
            return [
                encode_text(self.tokenizer, prompt)
                if isinstance(prompt, str)
                else self._ids(prompt)
                for prompt in ask.prompts
            ]
        template = self.template | ask.template
        shown = ask.tools if ask.tool_choice != "none" else []
        if (shown or any("tool_calls" in m for m in ask.messages)) and not self.shows_tools:
            raise RequestError(
                "This model's chat template has no place for tools; the model would not see them.",
                "tools",
            )
        if shown:
            template["tools"] = shown
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of markup in messages: its sender does not see it
            ids, _ = encode_chat(self.tokenizer, ask.messages, template, unfinished=ask.unfinished)
        return [ids]

    def _ids(self, prompt: list[int]) -> list[int]:
        """Ids as they were given; refused before anything else is answered if they are none."""
        size = self.model.config.vocab_size
        strange = next((id for id in prompt if not 0 <= id < size), None)
        if strange is not None:
            raise RequestError(
                f"prompt has the id {strange}; the vocabulary has {size:,} ids.", "prompt"
            )
        return prompt

    @property
    def shows_tools(self) -> bool:
        """Whether the chat template shows tools to the model."""
        if self._shows_tools is None:
            question = [{"role": "user", "content": "?"}]
            tool = {"type": "function", "function": {"name": "x", "parameters": {}}}
            with_tools = encode_chat(self.tokenizer, question, {"tools": [tool]})[0]
            self._shows_tools = with_tools != encode_chat(self.tokenizer, question)[0]
        return self._shows_tools

    @property
    def switches_thinking(self) -> bool:
        """Whether the chat template has a variable that turns thinking on or off."""
        return "enable_thinking" in str(getattr(self.tokenizer, "chat_template", ""))

    def jobs(
        self, ask: Ask, deliver: Callable[[int, list[Event]], None], prompts: Sequence[list[int]]
    ) -> list[Job]:
        """The jobs of a request: `n` for each prompt, in their order.

        Args:
            ask: the request.
            deliver: takes (number of the answer, its next events).
            prompts: what `encode` made of it.

        Raises:
            GenerationError: if a prompt leaves no room for an answer, or a grammar cannot be used.
        """
        for prompt in prompts:  # before a grammar is made of tools that no prompt can hold
            room_to_answer(self.model.config, 0, len(prompt))
        options = self.options | ask.options
        options["constraint"] = self._grammar(ask)
        if ask.seed is not None and self.worker.exact:
            options["numerics"] = "exact"
        prediction = options.pop("prediction", None)
        if prediction is not None and options.get("mode") != "ar":
            # Encoded here, as the engine has others waiting; no answer is longer than the context.
            longest = self.model.config.max_position_embeddings
            prediction = prediction[: longest * LONG_TOKEN]
            ids = encode_text(self.tokenizer, prediction, add_special_tokens=False)
            options["prediction"] = ids[:longest]
        calls = bool(ask.tools) and ask.tool_choice != "none"
        first = secrets.randbits(32) if ask.seed is None else ask.seed
        jobs = []
        for n, prompt in enumerate(p for p in prompts for _ in range(ask.n)):
            pieces = Pieces(
                self.tokenizer,
                self.tags if ask.messages is not None else None,
                ends=self.ends,
                thinks=self.tags.open_in(self.tokenizer, prompt),
                tools=calls,
                one_call=not ask.parallel,
                stops=ask.stops,
                logprobs=None
                if ask.logprobs is None
                else partial(self._logprobs.of, count=ask.logprobs),
            )
            seed = (first + n) % MAX_SEED
            jobs.append(Job(prompt, {**options, "seed": seed}, pieces, partial(deliver, n)))
        return jobs

    def _grammar(self, ask: Ask) -> Constraint | None:
        """What the answer may be, where that is said: by a format, a required call, a strict tool.

        Tools that are not strict may have any arguments in it.
        """
        if not ask.tools or ask.tool_choice == "none":
            return ask.constraint
        strict = [tool["function"].get("strict") is True for tool in ask.tools]
        if ask.tool_choice == "auto" and not any(strict) and ask.constraint is None:
            return None
        tools = []
        for tool, is_strict in zip(ask.tools, strict, strict=True):
            function = tool["function"]
            if not is_strict and not _usable(function.get("parameters")):
                tool = {**tool, "function": {**function, "parameters": {"type": "object"}}}
            tools.append(tool)
        return ToolCalls(tools, ask.tool_choice, ask.parallel, ask.constraint)


def _usable(schema: Any) -> bool:
    """Whether a JSON Schema can be followed."""
    try:
        JsonSchema(schema or {"type": "object"})
    except ConstraintError:
        return False
    return True


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint wants to be sampled, by its generation_config.json; else temperature 1."""
    found: dict[str, Any] = {"temperature": 1.0}
    for name in SAMPLING:
        value = generation_config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value
    if generation_config.get("do_sample") is False:
        found["temperature"] = 0.0
    if found.get("repetition_penalty") == 1.0:
        del found["repetition_penalty"]
    return found
