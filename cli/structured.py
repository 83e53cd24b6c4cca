"""Structured output on the command line: what an answer may be, and what it is expected to be."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from orthrus_mlx.decoding.constraints import Constraint

_PANEL = "Structured output"


def _option(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help, show_default=False, rich_help_panel=_PANEL)


JsonSchemaOption = Annotated[
    str | None,
    _option(
        "FILE|TEXT",
        "Answer in JSON that this schema describes: a file, or the schema itself; 'true' for any "
        "JSON.",
    ),
]
RegexOption = Annotated[
    str | None,
    _option("RE", "Answer with text that all of this regular expression matches."),
]
GrammarOption = Annotated[
    str | None,
    _option("FILE", "Answer with text that the grammar in this file derives: Lark or GBNF."),
]
ChoicesOption = Annotated[
    str | None,
    _option(
        "A,B,...",
        "Answer with one of these, separated by commas; \\, is a comma in a choice.",
    ),
]
PredictionOption = Annotated[
    str | None,
    _option(
        "FILE|TEXT",
        "What the answer will be much like, such as the text to edit: drafts at no cost. The "
        "answer stays the same.",
    ),
]

KINDS = ("json_schema", "regex", "grammar", "choices")


class Asked(NamedTuple):
    """A constraint, and how it was asked for.

    Attributes:
        kind: one of `KINDS`.
        text: what was typed.
        constraint: what it stands for.
    """

    kind: str
    text: str
    constraint: "Constraint"

    @property
    def noun(self) -> str:
        """What an answer is called."""
        return "JSON" if self.kind == "json_schema" else "text"


def read(kind: str, text: str) -> Asked:
    """Read a constraint as it is typed.

    Raises:
        ConstraintError: saying what is wrong with it, or that llguidance is not installed.
    """
    from orthrus_mlx.decoding import constraints
    from orthrus_mlx.errors import ConstraintError
    from orthrus_mlx.files import expanded

    def content(path: Path) -> str:
        from orthrus_mlx.files import read_text

        return read_text(path, ConstraintError, constraints.MAX_BYTES)

    made: Constraint
    if kind == "json_schema":
        path = named(text)
        if path is None and not text.lstrip().startswith(("{", "[", '"')) and text != "true":
            raise ConstraintError(f"There is no file {text}, and it is no JSON Schema either.")
        made = constraints.JsonSchema(text if path is None else content(path))
    elif kind == "regex":
        made = constraints.Regex(text)
    elif kind == "grammar":
        made = constraints.Grammar(content(expanded(text, ConstraintError)))
    else:
        made = constraints.Choices(split_choices(text))
    return Asked(kind, text, made)


def split_choices(text: str) -> list[str]:
    """The choices in a list with commas, without the blanks around each."""
    return [part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", text)]


def named(text: str) -> Path | None:
    """The file of this name, if there is one: anything else is text."""
    name = os.path.expanduser(text)  # noqa: PTH111  (pathlib raises for a name of no user)
    return Path(name) if os.path.lexists(name) else None


def from_flags(**given: str | None) -> Asked | None:
    """Read the one constraint that the flags of `KINDS` ask for, if any.

    Raises:
        BadParameter: for several, or one that cannot be used.
        ConstraintError: where llguidance is not installed.
    """
    asked = [(kind, text) for kind, text in given.items() if text is not None]
    if not asked:
        return None
    (kind, text), *others = asked
    if others:
        raise typer.BadParameter(
            f"cannot be combined with {_flag(others[0][0])}: an answer has one constraint",
            param_hint=_flag(kind),
        )

    from orthrus_mlx.decoding.constraints import library
    from orthrus_mlx.errors import ConstraintError

    library()
    try:
        return read(kind, text)
    except ConstraintError as error:
        raise typer.BadParameter(str(error), param_hint=_flag(kind)) from None


def read_prediction(text: str | None, mode: str) -> str | None:
    """The text that --prediction stands for."""
    if text is None:
        return None
    if mode == "ar":
        raise typer.BadParameter(
            "gives drafts, and --mode ar does not draft", param_hint="--prediction"
        )

    from orthrus_mlx.errors import PromptError
    from orthrus_mlx.files import PREDICTION_BYTES, read_text

    path = named(text)
    return text if path is None else read_text(path, PromptError, PREDICTION_BYTES)


@contextmanager
def building(console: "Console") -> Iterator[None]:
    """Show on a screen that a grammar is built: seconds for the first one of a large vocabulary."""
    from .console import is_screen

    if not is_screen(console):
        yield
        return
    with console.status("[dim]Building the grammar[/dim]"):
        yield


def _flag(kind: str) -> str:
    return "--" + kind.replace("_", "-")
