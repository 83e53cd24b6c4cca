"""Stand-ins for the model, the person and the screen, so that the chat needs none of them."""

import io
from collections.abc import Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from orthrus_mlx.cli.thinking import Kind
from orthrus_mlx.errors import ConstraintError

EOS = 0


class FakeTokenizer:
    """One id a character; the template writes `<role>content` lines."""

    has_chat_template = True
    think_start = "<think>"
    think_end = "</think>"

    def __init__(self) -> None:
        self.eos_added: list[str] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def add_eos_token(self, token: str) -> None:
        if token == "<bad>":
            raise ValueError("'<bad>' is not a token for this tokenizer")
        self.eos_added.append(token)

    def apply_chat_template(
        self, messages: Any, *, tokenize: bool, add_generation_prompt: bool, **config: Any
    ) -> str:
        assert not tokenize
        assert add_generation_prompt != config.get("continue_final_message", False)
        if config.get("refuse"):
            raise ValueError("roles must alternate")
        said = "".join(f"<{m['role']}>{m['content']}\n" for m in messages)
        opening = config.get(
            "opening", "<think>\n\n</think>" * (config.get("enable_thinking") is False)
        )
        return f"{said}<assistant>{opening}" if add_generation_prompt else said[:-1]


class FakeModel:
    """A model of two layers, as far as a cache is concerned."""

    layers = (None, None)


class FakeGenerate:
    """Plays `stream_generate` from a script: an answer a call, a character a token.

    An exception in an answer's list is raised there. The KV cache is treated as the engine
    treats it: after each token it holds the prompt and all tokens but the last.
    """

    def __init__(self, *answers: str | list[str | BaseException]) -> None:
        self.answers = list(answers)
        self.prompts: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.closed = 0

    def __call__(
        self, model: Any, tokenizer: Any, prompt: Any, max_tokens: int = 256, **options: Any
    ) -> Generator[Any, None, None]:
        ids = list(prompt)
        self.prompts.append("".join(map(chr, ids)))
        self.options.append({"max_tokens": max_tokens, **options})
        return self._answer(ids, self.answers.pop(0), max_tokens, options)

    def _answer(
        self, ids: list[int], answer: Any, max_tokens: int, options: dict[str, Any]
    ) -> Generator[Any, None, None]:
        cache = options.get("prompt_cache")
        try:
            options["prompt_progress_callback"](0, len(ids))
            options["prompt_progress_callback"](len(ids), len(ids))
            advance(cache, len(ids))
            pieces: list[Any] = [*answer] if isinstance(answer, str) else flatten(answer)
            pieces.append(None)
            for n, piece in enumerate(pieces[: max_tokens if max_tokens > 0 else None], 1):
                if isinstance(piece, BaseException):
                    raise piece
                if n > 1:
                    advance(cache, 1)
                finish = "stop" if piece is None else "length" if n == max_tokens else None
                yield response(piece or "", n, len(ids), finish, options.get("seed"))
        finally:
            self.closed += 1


def flatten(answer: Sequence[Any]) -> list[Any]:
    """Split the strings of a scripted answer into characters."""
    return [c for part in answer for c in (part if isinstance(part, str) else [part])]


def advance(cache: Any, tokens: int) -> None:
    """Put `tokens` positions into every layer of a cache."""
    import mlx.core as mx

    for layer in cache or ():
        layer.update_and_fetch(mx.zeros((1, 1, tokens, 1)), mx.zeros((1, 1, tokens, 1)))


def response(
    text: str, n: int, prompt_tokens: int, finish: str | None = None, seed: int | None = 0
) -> Any:
    """A response with the fields that the command line reads."""
    return SimpleNamespace(
        text=text,
        token=ord(text) if len(text) == 1 else EOS,
        prompt_tokens=prompt_tokens,
        prompt_tps=1000.0,
        generation_tokens=n,
        generation_tps=50.0,
        peak_memory=1.5,
        finish_reason=finish,
        forward_passes=max(n // 2, 1),
        cycles=max(n // 4, 1),
        drafted_tokens=n,
        accepted_tokens=n // 2,
        tokens_per_forward=n / max(n // 2, 1),
        seed=7 if seed is None else seed,
        near_ties=0,
        cut="max_tokens" if finish == "length" else None,
        complete=None,
    )


class FakeSession:
    """A chat session without cache: the script and the messages it was sent."""

    def __init__(self, *answers: str | list[str | BaseException], opening: str = "") -> None:
        self.generate = FakeGenerate(*answers)
        self.sent: list[list[Mapping[str, str]]] = []
        self.reused_tokens = 0
        self.cached_tokens = 0
        self.prompt_text = opening
        self.resets = 0
        self.prepared: list[Any] = []
        self.cannot_write = False
        self.thinking: bool | None = None
        self.has_thinking_switch = True

    def stream(
        self, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Generator[Any, None, None]:
        self.sent.append(list(messages))
        return self.generate(None, None, [65] * 10, **options)

    def reset(self) -> None:
        self.resets += 1

    def prepare(self, constraint: Any) -> None:
        self.prepared.append(constraint)
        if self.cannot_write:
            raise ConstraintError("No.")


class FakeReader:
    """A person who types these lines; an exception is what a key press raises."""

    def __init__(self, *lines: str | BaseException | type[BaseException]) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []

    def read(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


class FakeScreen:
    """Collects what is shown, by kind."""

    def __init__(self) -> None:
        self.shown: list[tuple[Kind, str]] = []
        self.open = False

    def write(self, kind: Kind, text: str) -> None:
        assert self.open
        self.shown.append((kind, text))

    def text(self, kind: Kind = Kind.answer) -> str:
        return "".join(text for k, text in self.shown if k is kind)

    def __enter__(self) -> "FakeScreen":
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False


def notes() -> Console:
    """A console whose lines `lines` gives back."""
    return Console(file=io.StringIO(), width=200, highlight=False)


def lines(console: Console) -> list[str]:
    """What was printed on a console that `notes` made, without blank lines."""
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line for line in file.getvalue().splitlines() if line.strip()]
