"""A conversation's KV cache: each turn reads only what the cache does not hold yet."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from .decoding.consensus import common_prefix
from .decoding.scheduler import Evidence
from .errors import ChatTemplateError
from .generate import GenerationResponse, stream_generate


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    template_config: Mapping[str, Any] | None = None,
) -> tuple[list[int], str]:
    """Turn messages into the prompt for the next answer: its ids, and its text."""
    if not tokenizer.has_chat_template:
        raise ChatTemplateError(
            "This tokenizer has no chat template, so it cannot tell who says what. Add the base "
            "model's chat_template.jinja to the checkpoint, or send a raw prompt "
            "(orthrus-mlx generate --ignore-chat-template)."
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            **(template_config or {}),
        )
    # A template is a program that came with the checkpoint: whatever it raises is a refusal.
    except Exception as error:
        raise ChatTemplateError(f"The chat template refused the messages: {error}") from error
    return list(tokenizer.encode(text, add_special_tokens=False)), text


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
        self.reused_tokens = 0  # how much of the last prompt was in the cache already
        self.prompt_text = ""  # the last prompt, as the chat template wrote it
        self.reset()

    def reset(self) -> None:
        """Forget everything and give the cache's memory back."""
        self._cache: list[Any] = make_prompt_cache(self.model)
        self._held: list[int] = []  # the ids that the cache holds
        self._evidence = Evidence()  # how many drafts were accepted in this conversation

    @property
    def cached_tokens(self) -> int:
        """How many tokens the cache holds."""
        return len(self._held)

    def stream(
        self, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Generator[GenerationResponse, None, None]:
        """Stream the answer to `messages`; `options` are those of `stream_generate`.

        Closing the iterator at any token keeps what was said in the cache. If it raises, the
        cache goes back to what it shared with the prompt before the call.
        """
        ids, self.prompt_text = encode_chat(self.tokenizer, messages, self.template_config)
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
            evidence=self._evidence,
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

    def _hold(self, ids: list[int]) -> None:
        """Note that the cache holds the start of `ids`: all but the last token said."""
        self._held = ids[: self._cache[0].offset]

    def _trim_to(self, length: int) -> None:
        """Give back all that the cache holds beyond `length` tokens."""
        for layer in self._cache:
            trim_prompt_cache([layer], layer.offset - length)
        self._held = self._held[:length]
