"""What bends the logits on the command line: penalties and biases, as mlx-lm has them."""

import json
from typing import Annotated, Any

import typer

_PANEL = "Penalties"


def _penalty(what: str, **more: Any) -> Any:
    return typer.Option(metavar="X", help=what, show_default=False, rich_help_panel=_PANEL, **more)


def _context(name: str) -> Any:
    return typer.Option(
        metavar="N",
        min=1,
        help=f"How many of the last tokens the {name} penalty looks at.",
        rich_help_panel=_PANEL,
    )


RepetitionPenaltyOption = Annotated[
    float | None,
    _penalty("Divide the logits of tokens said lately by this; 1 for none.", min=0.0),
]
RepetitionContextOption = Annotated[int, _context("repetition")]
PresencePenaltyOption = Annotated[
    float | None, _penalty("Take this off the logit of each token said lately.")
]
PresenceContextOption = Annotated[int, _context("presence")]
FrequencyPenaltyOption = Annotated[
    float | None, _penalty("Take this off the logit of a token for each time it was said lately.")
]
FrequencyContextOption = Annotated[int, _context("frequency")]
LogitBiasOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Numbers to add to the logits of tokens, by id: '{\"151645\": -5}'.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


def parse_logit_bias(text: str | None) -> dict[int, float]:
    """Read the value of --logit-bias."""
    try:
        given = json.loads(text or "{}")
        return {int(token): _finite(bias) for token, bias in given.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise _bad_bias("must be a JSON object of token ids and numbers") from None


def check_bias(bias: dict[int, float], model: Any) -> None:
    """Refuse a bias of an id that the model does not have."""
    for token in bias:
        if not 0 <= token < model.config.vocab_size:
            last = model.config.vocab_size - 1
            raise _bad_bias(f"{token} is no token of this model: ids go from 0 to {last}")


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > 1e9:
        raise ValueError
    return float(number)


def _bad_bias(problem: str) -> typer.BadParameter:
    return typer.BadParameter(problem, param_hint="--logit-bias")
