"""Answers that quote the tag at the end of the thinking, in the messages of a conversation.

Some templates, Qwen3's among them, take the tag in an earlier answer for the end of that answer's
own thinking, and leave out what stands before it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def render_whole(render: Callable[[Messages], str], messages: Messages, closes: str) -> str:
    """Render messages so that every answer that quotes the tag `closes` stands in the text."""
    quoting = [message for message in messages if _quotes(message, closes)]
    if not quoting:
        return render(messages)
    # Qwen3's template looks for thinking in the content only where it does not stand beside it.
    beside = {"reasoning_content": ""}
    text = render([{**beside, **m} if _quotes(m, closes) else m for m in messages])
    at = 0
    for message in quoting:  # in their order, so that a long text is searched once
        content = message["content"].strip()
        at = text.find(content, at)
        if at < 0:
            break
        at += len(content)
    else:
        return text
    broken = f"{closes[0]} {closes[1:]}"  # the last resort: "< /think>"
    return render(
        [
            {**m, "content": m["content"].replace(closes, broken)} if _quotes(m, closes) else m
            for m in messages
        ]
    )


def _quotes(message: Mapping[str, Any], closes: str) -> bool:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return False
    # With thinking of its own before it, the tag is no quotation: the template knows what to do.
    return closes in content and not content.lstrip().startswith(closes.replace("/", "", 1))
