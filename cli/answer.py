"""One answer of `orthrus-mlx generate`: streamed to stdout, with what it cost on stderr."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any

from . import structured

if TYPE_CHECKING:
    from rich.console import Console


def run(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    sent: str,
    options: Mapping[str, Any],
    *,
    asked: structured.Asked | None,
    show_thinking: bool,
    quiet: bool,
) -> None:
    """Answer a prompt, and say what that cost and what cut it.

    Args:
        model: a model from `orthrus_mlx.load`.
        tokenizer: its tokenizer.
        ids: the prompt.
        sent: the text of the prompt.
        options: those of `stream_generate`.
        asked: the constraint among them.
        show_thinking: thinking goes to stdout too.
        quiet: nothing goes to stderr.
    """
    from orthrus_mlx.generate import stream_generate

    from .console import note, stderr_console
    from .progress import prefill_bar, probe_bar
    from .stats import BY_FLAG, cut_line, generation_lines, no_drafts_line
    from .terminal import no_echo
    from .thinking import think_tags

    notes, progress = stderr_console(), stderr_console(quiet=quiet)
    aside = None if show_thinking else progress
    printer = _Printer(aside, sent, think_tags(tokenizer))
    with (
        _Interrupt() as interrupt,
        no_echo(),
        prefill_bar(progress) as reading,
        probe_bar(progress) as probing,
    ):
        with structured.building(progress) if asked else nullcontext():
            answer = stream_generate(
                model,
                tokenizer,
                ids,
                prompt_progress_callback=reading,
                probe_progress_callback=probing,
                **options,
            )
        printer.print(answer)
    last = printer.last
    if not quiet and last is not None:
        for line in generation_lines(last, sampled=options["temperature"] > 0):
            note(notes, line)
        if why := no_drafts_line(last, options["mode"], BY_FLAG):
            note(notes, why)
    noun = asked.noun if asked else ""
    stopped = "Ctrl-C" if interrupt.noted else None
    cut = cut_line(last, BY_FLAG, stopped=stopped, thinks=printer.thinks, noun=noun)
    if not quiet and cut is not None:
        note(notes, cut)
    if interrupt.noted:
        raise KeyboardInterrupt


class _Interrupt:
    """Notes a Ctrl-C that ends its block, which can then be told after the figures."""

    noted = False

    def __enter__(self) -> "_Interrupt":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.noted = kind is KeyboardInterrupt
        return self.noted


class _Printer:
    """Streams the answer to stdout, ending with one line break, and its thinking aside."""

    def __init__(self, aside: "Console | None", prompt: str, tags: tuple[str, str]) -> None:
        from .render import PlainScreen
        from .thinking import Answer

        self.last: Any = None  # the last response
        self._screen = PlainScreen(sys.stdout, aside)
        self._answer = Answer(self._screen.write, prompt, tags)

    @property
    def thinks(self) -> bool:
        """Whether the model was still thinking when the answer ended."""
        return self.last is not None and self._answer.thinks

    def print(self, responses: Any) -> None:
        """Print all that comes; what was held back too, if it is interrupted."""
        with self._screen, closing(responses):
            try:
                for self.last in responses:
                    self._answer.feed(self.last.text)
            finally:
                self._answer.finish()
