"""The Typer app: its commands, and how errors leave it.

To add a command, write `cli/NAME.py` with a function that imports what it needs inside its
body, and add one line under "The commands" below. Modules imported here may import typer and
the standard library only: `orthrus-mlx --help` must not wait for MLX.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orthrus_mlx.errors import OrthrusError

from . import bench, cache_prompt, chat, convert, generate, habits, info, models, train, verify


class _Commands(TyperGroup):
    """Turns what a command raises into one clear line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OrthrusError as error:
            from .console import print_error

            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            print_error(OrthrusError(habits.in_flags(error, command.params if command else [])))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _discard_stdout()
            raise typer.Exit(141) from None  # as a shell reports a process that SIGPIPE ended
        except Exception as error:
            flag = getattr(error, "option_name", "")  # of an option that does not exist
            if reason := habits.REFUSED.get(flag):
                ctx = getattr(error, "ctx", None)
                raise typer.BadParameter(reason, ctx, param_hint=flag) from None
            raise


def _discard_stdout() -> None:
    """Send what is still buffered nowhere: the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"orthrus-mlx {version('orthrus-mlx')}")
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
app.command(epilog=cache_prompt.EXAMPLES)(cache_prompt.cache_prompt)
app.command(epilog=info.EXAMPLES)(info.info)
app.command("list", epilog=models.LIST_EXAMPLES)(models.list_models)
app.command("rm", epilog=models.REMOVE_EXAMPLES)(models.remove_models)
app.command(epilog=verify.EXAMPLES)(verify.verify)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=train.EXAMPLES)(train.train)
