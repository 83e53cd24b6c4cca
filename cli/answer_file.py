"""`orthrus-mlx generate --prompts`: a file of prompts in, a file of answers out."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any


def read(prompts: Path, output: Path) -> list[Any]:
    """Read the file of prompts, and see that there is a folder for the answers, before any wait."""
    from orthrus_mlx.files import check_parent
    from orthrus_mlx.tools.answer_file import read_prompts

    check_parent(output)
    return read_prompts(prompts)


def run(
    model: Any,
    tokenizer: Any,
    asked: list[Any],
    output: Path,
    options: Mapping[str, Any],
    *,
    constraint: Any,
    concurrency: int,
    system_prompt: str | None,
    raw: bool,
    template_config: Mapping[str, Any],
    think: bool | None,
    also: Mapping[str, Any],
    quiet: bool,
) -> None:
    """Answer what is not answered yet, with a bar, and say what it came to."""
    from orthrus_mlx.session import thinking_config
    from orthrus_mlx.tools.answer_file import Progress, answer_file

    from .console import note, stderr_console
    from .progress import Bar, probe_bar
    from .terminal import no_echo

    notes, progress = stderr_console(), stderr_console(quiet=quiet)
    start, before = perf_counter(), list[int]()
    with no_echo(), Bar(progress, "Answering") as bar, probe_bar(progress) as probing:

        def show(come: Progress) -> None:
            before.append(come.done)
            bar(come.done, come.total)

        def measured(done: int, total: int) -> None:
            nonlocal start
            probing(done, total)
            if len(before) < 2:  # nothing was answered yet: that was no time for answers
                start = perf_counter()

        end = answer_file(
            model,
            tokenizer,
            asked,
            output,
            options,
            concurrency=concurrency,
            system_prompt=system_prompt,
            raw=raw,
            template_config={**template_config, **thinking_config(think)},
            also=also,
            progress=show,
            probe_progress_callback=measured,
            constraint=constraint,
        )
    if end.failed:
        lines = "line has" if end.failed == 1 else "lines have"
        note(notes, f'{end.failed} {lines} an "error" in place of an answer.')
    if not quiet:
        seconds = max(perf_counter() - start, 1e-9)
        old = f" ({before[0]} lines were there already)" if before[0] else ""
        note(notes, f"Answers: {end.done - end.failed} in {output}{old}")
        note(notes, f"Generation: {end.tokens} tokens, {end.tokens / seconds:.3f} tokens-per-sec")
