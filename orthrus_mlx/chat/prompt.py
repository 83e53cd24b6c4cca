"""From words to ids: chat templates, which are programs of strangers, and the words of users.

A chat template comes with a checkpoint. It is rendered in a process of its own, which has
`RENDER_SECONDS` and may write `LONGEST` characters and 10 more for each that it was given; a
template that goes on beyond is stopped. Markup of the tokenizer (`<|im_end|>`) in a message is
encoded as the text that it is, so that nothing pasted into a message can end the turn.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from ..errors import ChatTemplateError, PromptError
from .quoting import render_whole

RENDER_SECONDS = 5  # a long conversation takes a few milliseconds
LONGEST = 1_000_000  # characters
_START_SECONDS = 60  # for Python and transformers to be read from a slow disk

# Their own words may hold tags such as <think>; only what can end a turn is text there too.
_TRUSTED_ROLES = ("assistant", "system")
# What is said otherwise than by a variable.
_TAKEN = ("self", "messages", "conversations", "conversation", "tokenize")


def encode_text(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Turn text into ids; a PromptError if it is no text, as bytes that are not UTF-8 are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt is not valid Unicode at character {error.start + 1}: "
            "was it typed or saved in another encoding than UTF-8?"
        ) from None
    return list(tokenizer.encode(text, **options))


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    template_config: Mapping[str, Any] | None = None,
    *,
    unfinished: bool = False,
    skip: int = 0,
    apart: bool = False,
) -> tuple[list[int], str]:
    """Turn messages into the prompt for the next answer: its ids, and its text.

    If `unfinished`, the last message is not over, and the prompt ends with it. The first `skip`
    characters are left out. Markup in a message is encoded as text, and a warning says so.
    If `apart`, no token reaches across the start of the last message: none would if the model wrote
    it. See `encode_start`.
    """
    if not tokenizer.has_chat_template:
        raise ChatTemplateError(
            "This tokenizer has no chat template, so it cannot tell who says what. Add the base "
            "model's chat_template.jinja to the checkpoint, or send a raw prompt "
            "(orthrus-mlx generate --ignore-chat-template)."
        )
    listed = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not listed or not all(isinstance(message, Mapping) for message in messages):
        raise PromptError(
            f"messages is {messages!r:.80}; expected a list of messages, such as "
            '[{"role": "user", "content": "Hello!"}].'
        )
    cut, messages, markup = cut_markup(tokenizer, messages)
    for token in markup:
        warnings.warn(
            f"{token} in a message is markup of this model; it is sent as plain text.", stacklevel=2
        )
    ending = {"add_generation_prompt": not unfinished}
    if unfinished:
        ending["continue_final_message"] = True
    text = render_whole(
        lambda messages: render_chat(tokenizer, messages, {**ending, **(template_config or {})}),
        messages,
        getattr(tokenizer, "think_end", None) or "</think>",
    )
    text = text[skip:]
    start = _start_in(text, messages[-1]["content"]) if apart else ""
    halves = [text.removesuffix(start), start] if start else [text]
    parts = [part for half in halves for part in (half.split(cut) if markup else [half])]
    ids = [id for part in parts for id in encode_text(tokenizer, part, add_special_tokens=False)]
    return ids, "".join(parts)


def encode_start(tokenizer: Any, text: str, answer: str) -> list[int]:
    """The ids of an unfinished answer, which end a prompt that `encode_chat` encoded `apart`.

    White space at its start is left to the prompt: templates strip it or bring some of their own.

    Args:
        tokenizer: the one that encoded the prompt.
        text: the text of the prompt.
        answer: the last message.
    """
    message = {"role": "assistant", "content": _start_in(text, answer)}
    cut, messages, _ = cut_markup(tokenizer, [message])
    parts = messages[0]["content"].split(cut)
    return [id for part in parts for id in encode_text(tokenizer, part, add_special_tokens=False)]


def _start_in(text: str, answer: str) -> str:
    """An unfinished answer as a template wrote it at the end of `text`; some strip white space."""
    return next((s for s in (answer.lstrip(), answer.strip()) if text.endswith(s)), "")


def cut_markup(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Any], list[str]]:
    """Cut each token of markup in the messages in two.

    Returns:
        (what stands at each cut and nowhere else, the messages, the tokens found).
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = [t for t in added if len(t.content) > 1 and not t.content.isspace()]
    every = _any_of([t.content for t in tokens])
    special = _any_of([t.content for t in tokens if t.special])
    found: dict[str, None] = {}

    def cut_in(value: Any, pattern: re.Pattern[str]) -> Any:
        if isinstance(value, Mapping):
            return {key: cut_in(item, pattern) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [cut_in(item, pattern) for item in value]
        while isinstance(value, str) and pattern.search(value):  # one may hold another
            found.update(dict.fromkeys(pattern.findall(value)))
            value = pattern.sub(lambda match: match[0][0] + mark + match[0][1:], value)
        return value

    def trusted(message: Any) -> bool:
        return isinstance(message, Mapping) and message.get("role") in _TRUSTED_ROLES

    used = {c for text in _strings(messages) for c in text}
    mark = next(chr(c) for c in range(0xE000, 0xF900) if chr(c) not in used)  # of private use
    safe = [cut_in(message, special if trusted(message) else every) for message in messages]
    return mark, safe, list(found)


def _any_of(tokens: list[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """Write messages with the tokenizer's chat template, within bounds of time and size."""
    for name in _TAKEN:
        if name in variables:
            raise ChatTemplateError(f"{name!r} is no variable of a chat template to be set.")
    try:
        if not _is_jinja(tokenizer):  # code that is installed here, not the checkpoint's
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **variables))
        if not messages:
            raise ValueError("there are none")
        request = _request(tokenizer, messages, dict(variables))
    # A template is a program that came with the checkpoint: whatever it raises is a refusal.
    except Exception as error:
        raise ChatTemplateError(f"The chat template refused the messages: {error}") from error
    reply = _renderer.ask(request)
    if "error" in reply:
        raise ChatTemplateError(f"The chat template refused the messages: {reply['error']}")
    if "too_long" in reply:
        raise ChatTemplateError(
            f"The chat template writes more than {json.loads(request)['longest']:,} characters, "
            "far beyond what the messages hold; replace the checkpoint's chat_template.jinja."
        )
    return str(reply["text"])


def prepare_rendering() -> None:
    """Start the process that renders chat templates, so that the first prompt need not wait."""
    with suppress(OSError):  # the first prompt tries again
        _renderer.start()


def _is_jinja(tokenizer: Any) -> bool:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerBase

    if isinstance(tokenizer, TokenizerWrapper):
        if tokenizer._chat_template is not None:
            return False
        tokenizer = tokenizer._tokenizer
    apply = getattr(type(tokenizer), "apply_chat_template", None)
    return apply is PreTrainedTokenizerBase.apply_chat_template


def _request(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], variables: dict[str, Any]
) -> bytes:
    """Put together what transformers and mlx-lm would hand to the template."""
    template = tokenizer.get_chat_template(
        variables.pop("chat_template", None), variables.get("tools")
    )
    given = {
        **tokenizer.special_tokens_map,
        "enable_thinking": getattr(tokenizer, "has_thinking", False),
        **variables,
    }
    said = [{key: value for key, value in m.items() if value is not None} for m in messages]
    size = len(json.dumps([said, variables]))
    request = {
        "messages": said,
        "template": template,
        "variables": given,
        "seconds": RENDER_SECONDS,
        "longest": LONGEST + 10 * size,
    }
    return json.dumps(request).encode()


class _Renderer:
    """The process that renders; it starts when it is needed, and again after it was stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process id that started it

    def start(self) -> None:
        """Start the process, without waiting for it."""
        if self._process is not None and self._owner == os.getpid():
            return
        self._connection, theirs = Pipe()
        argument = json.dumps([theirs.fileno(), sys.path])
        script = Path(__file__).with_name("template_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for us
        )
        theirs.close()
        self._owner, self._ready = os.getpid(), False

    def ask(self, request: bytes) -> dict[str, Any]:
        """Send a request and wait for the reply; stop the process if none comes in time."""
        with self._lock:
            try:
                self.start()
                if not self._ready:
                    if not self._connection.poll(_START_SECONDS):
                        raise EOFError
                    self._connection.recv_bytes()
                    self._ready = True
                self._connection.send_bytes(request)
                if not self._connection.poll(RENDER_SECONDS):
                    raise ChatTemplateError(
                        f"The chat template takes longer than {RENDER_SECONDS} s for these "
                        "messages and was stopped; replace the checkpoint's chat_template.jinja."
                    )
                return dict(json.loads(self._connection.recv_bytes()))
            except (EOFError, OSError) as error:
                self.stop()
                raise ChatTemplateError(
                    "The chat template cannot be rendered: its process "
                    f"({sys.executable}) did not start or ended early. {error}".rstrip()
                ) from None
            except BaseException:  # a reply may be on its way
                self.stop()
                raise

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._connection.close()
            self._process.kill()
            self._process.wait()
        self._process = None


_renderer = _Renderer()
atexit.register(_renderer.stop)
