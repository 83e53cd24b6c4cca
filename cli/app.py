"""The Typer app: its commands, and how errors leave it.

To add a command, write `cli/NAME.py` with a function that imports what it needs inside its
body, and add one line under "The commands" below. Modules imported here may import typer and
the standard library only: `orthrus-mlx --help` must not wait for MLX.
"""

import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orthrus_mlx.errors import OrthrusError
from orthrus_mlx.signals import ends_as_exception

from . import (
    bench,
    cache_prompt,
    chat,
    convert,
    generate,
    habits,
    info,
    models,
    ranks,
    report,
    serve,
    train,
    tune,
    verify,
)


class _Commands(TyperGroup):
    """Turns what a command raises into one clear line and an exit code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ranks.COMMANDS:
            if name in self.commands:
                self.commands[name].params.append(ranks.alone_option())

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _one_line_errors():
            ranks.meet()
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        from .console import note, stderr_console
        from .streams import write_any_text

        def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
            note(stderr_console(), f"note: {message}")

        def in_flags(error: OrthrusError) -> str:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            return habits.in_flags(error, command.params if command else [])

        # It warns of long prompts, which are checked later on, and quotes checkpoints as they are.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        write_any_text(sys.stdout, lambda line: note(stderr_console(), line))
        with _one_line_errors(in_flags), ends_as_exception(), warnings.catch_warnings():
            warnings.showwarning = show_warning
            result = super().invoke(ctx)
            sys.stdout.flush()  # a full disk may show only now
            return result


@contextmanager
def _one_line_errors(
    words: Callable[[OrthrusError], str] = str,
) -> Generator[None, None, None]:
    """End the program with one line and an exit code, whatever was raised."""
    from .console import for_terminal, print_error
    from .streams import discard

    try:
        yield
    except typer.Exit:
        raise
    except OrthrusError as error:
        print_error(OrthrusError(words(error)))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        discard(sys.stdout)  # what is still buffered: the reader of the pipe has gone
        raise typer.Exit(141) from None  # as a shell reports a process that SIGPIPE ended
    except OSError as error:
        discard(sys.stdout)  # else what is still buffered fails once more at the end
        print_error(error)
        raise typer.Exit(1) from None
    except Exception as error:
        flag = getattr(error, "option_name", "")  # of an option that does not exist
        if reason := habits.REFUSED.get(flag):
            ctx = getattr(error, "ctx", None)
            raise typer.BadParameter(reason, ctx, param_hint=flag) from None
        if hasattr(error, "message") and hasattr(error, "format_message"):  # a usage error
            error.message = for_terminal(error.message)
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        from orthrus_mlx._version import __version__

        typer.echo(f"orthrus-mlx {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="orthrus-mlx",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command explains itself with examples: orthrus-mlx chat --help",
)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Run Orthrus dual-view language models on your own Mac, several tokens a step.

    Every token is the one that plain decoding would choose: the second view only drafts.
    """


# The commands, in the order of `orthrus-mlx --help`.
app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=generate.EXAMPLES, cls=habits.MlxLmCommand)(generate.generate)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=cache_prompt.EXAMPLES)(cache_prompt.cache_prompt)
app.command(epilog=info.EXAMPLES)(info.info)
app.command("list", epilog=models.LIST_EXAMPLES)(models.list_models)
app.command("rm", epilog=models.REMOVE_EXAMPLES)(models.remove_models)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=tune.EXAMPLES)(tune.tune)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=train.EXAMPLES)(train.train)
