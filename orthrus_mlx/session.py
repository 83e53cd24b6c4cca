"""A conversation's KV cache: each turn reads only what the cache does not hold yet."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from .chat.prompt import encode_chat
from .decoding.consensus import common_prefix
from .decoding.constraints import Constraint
from .decoding.grammar import compile_constraint
from .decoding.prefixes import load_cache, save_cache
from .decoding.scheduler import Evidence
from .generate import GenerationResponse, stream_generate


def has_thinking_switch(tokenizer: Any, template_config: Mapping[str, Any]) -> bool:
    """Whether the chat template lets one choose between thinking and not."""
    question = [{"role": "user", "content": "?"}]
    on, off = (
        encode_chat(tokenizer, question, {**template_config, **thinking_config(thinking)})[1]
        for thinking in (True, False)
    )
    return on != off


def thinking_config(thinking: bool | None) -> dict[str, bool]:
    """What a chat template takes to think or not; None leaves it to the template."""
    return {} if thinking is None else {"enable_thinking": thinking}


class ChatSession:
    """Streams answers to growing (or edited) conversations over one reused KV cache.

    The messages are the caller's; the session only remembers which ids its cache holds.
    Before an answer it keeps the longest prefix that those ids share with the new prompt,
    trims the rest and reads what is missing. So undoing, retrying or editing a turn needs
    no call here, and costs only the ids that changed.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, template_config: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template_config = dict(template_config or {})
        self.thinking: bool | None = None  # whether to think; None as the template does by itself
        self.reused_tokens = 0  # how much of the last prompt was in the cache already
        self.prompt_text = ""  # the last prompt, as the chat template wrote it
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the cache's memory back."""
        self._cache: list[Any] = make_prompt_cache(self.model)
        self._held: list[int] = []  # the ids that the cache holds
        # How many drafts were accepted in this conversation, by whether a constraint held: that
        # makes it easier to guess.
        self._evidence = {False: Evidence(), True: Evidence()}

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the chat template lets one choose between thinking and not."""
        return has_thinking_switch(self.tokenizer, self.template_config)

    @property
    def cached_tokens(self) -> int:
        """How many tokens the cache holds."""
        return len(self._held)

    @property
    def cache_bytes(self) -> int:
        """How large the cache is."""
        return sum(layer.nbytes for layer in self._cache)

    def stream(
        self, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Generator[GenerationResponse, None, None]:
        """Stream the answer to `messages`; `options` are those of `stream_generate`.

        Closing the iterator at any token keeps what was said in the cache. If it raises, the
        cache goes back to what it shared with the prompt before the call.
        """
        config = self.template_config | thinking_config(self.thinking)
        ids, self.prompt_text = encode_chat(self.tokenizer, messages, config)
        # One id at least must be read again, for its logits.
        shared = min(common_prefix(self._held, ids), max(len(ids) - 1, 0))
        self._trim_to(shared)
        self.reused_tokens = shared

        said: list[int] = []
        answer = stream_generate(
            self.model,
            self.tokenizer,
            ids[shared:],
            prompt_cache=self._cache,
            cached_ids=ids[:shared],
            evidence=self._evidence[options.get("constraint") is not None],
            **options,
        )
        try:
            with closing(answer):
                for response in answer:
                    said.append(response.token)
                    yield response
        except GeneratorExit:  # closed by the caller, between two tokens
            self._hold(ids + said)
            raise
        except BaseException:
            # Raised inside a forward pass, some layers may hold more than others.
            self._trim_to(shared)
            raise
        self._hold(ids + said)

    def prepare(self, constraint: Constraint) -> None:
        """Make what a constraint needs, which takes seconds for the first of a large vocabulary.

        Raises:
            ConstraintError: if the tokenizer cannot write what is asked for.
        """
        ends = frozenset(self.tokenizer.eos_token_ids)
        compile_constraint(constraint, self.tokenizer, self.model.config.vocab_size, ends, ())

    def save_cache(self, path: Path, key: str) -> None:
        """Write the cache to a file `*.safetensors`, for a session with the same `key`.

        The key stands for all that the cache depends on: the weights, and how it is quantized.
        """
        save_cache(path, self._cache if self._held else [], self._held, key)

    def load_cache(self, path: Path, key: str) -> None:
        """Take up a cache that `save_cache` wrote, if it fits; else it is all read again."""
        found = load_cache(path, key, self._cache)
        if found is not None:
            self._cache, self._held = found.cache, found.ids.tolist()

    def _hold(self, ids: list[int]) -> None:
        """Note that the cache holds the start of `ids`: all but the last token said."""
        self._held = ids[: self._cache[0].offset]

    def _trim_to(self, length: int) -> None:
        """Give back all that the cache holds beyond `length` tokens."""
        for layer in self._cache:
            trim_prompt_cache([layer], layer.offset - length)
        self._held = self._held[:length]
