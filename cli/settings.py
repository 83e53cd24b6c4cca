"""What `/set` changes: the sampling and decoding settings of a chat."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from orthrus_mlx.checkpoint.config import read_json
from orthrus_mlx.errors import OrthrusError

from . import structured
from .options import MAX_SEED, Cycle, Mode, Numerics, Thinking
from .reader import typed_path


class SettingError(OrthrusError):
    """A setting that does not exist, or a value that it does not take."""


class Setting(NamedTuple):
    """How a setting is read from text (ValueError if it cannot be), and what it takes."""

    read: Callable[[str], Any]
    takes: str
    choices: tuple[str, ...] = ()


def _temp(text: str) -> float:
    return _between(float(text), 0.0, math.nextafter(math.inf, 0))


def _share(text: str) -> float:
    return _between(float(text), 0.0, 1.0)


def _count(text: str) -> int:
    return _between(int(text), 0, math.inf)


def _max_tokens(text: str) -> int:
    value = int(text)
    return value if value == -1 else _between(value, 1, math.inf)


def _seed(text: str) -> int | None:
    return None if text.lower() == "none" else _between(int(text), 0, MAX_SEED)


def _between(value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:  # holds for nan too
        raise ValueError
    return value


def _constraint(kind: str, text: str) -> structured.Asked | None:
    if kind in FILES and structured.named(typed := str(typed_path(text))):
        text = typed
    return None if text.lower() == "none" else structured.read(kind, text)


def _one_of(names: type[StrEnum]) -> Setting:
    choices = tuple(name.value for name in names)
    return Setting(names, ", ".join(choices), choices)


SETTINGS = {
    "temp": Setting(_temp, "a number from 0 up"),
    "top_p": Setting(_share, "a number from 0 to 1"),
    "top_k": Setting(_count, "a whole number from 0 up; 0 for all"),
    "min_p": Setting(_share, "a number from 0 to 1"),
    "max_tokens": Setting(_max_tokens, "a whole number from 1 up, or -1 for all that fits"),
    "seed": Setting(_seed, "a whole number from 0 up, or none for a fresh one each time"),
    "thinking": Setting(Thinking, "on, off, or auto for what the template does", (*Thinking,)),
    "mode": _one_of(Mode),
    "cycle": _one_of(Cycle),
    "numerics": _one_of(Numerics),
    "json_schema": Setting(partial(_constraint, "json_schema"), "a file, JSON text, or none"),
    "regex": Setting(partial(_constraint, "regex"), "a regular expression, or none"),
    "grammar": Setting(partial(_constraint, "grammar"), "a file in Lark or GBNF, or none"),
    "choices": Setting(partial(_constraint, "choices"), "texts with commas between, or none"),
}
FILES = ("json_schema", "grammar")  # settings that may name a file

# What mlx-lm and Ollama call them.
_ALIASES = {"temperature": "temp", "num_predict": "max_tokens", "think": "thinking"}


def checkpoint_defaults(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the sampling settings of a checkpoint's generation_config.json.

    Returns:
        (settings, problems): the settings that it names, none where it is greedy; and a line about
        each value that cannot be used.
    """
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    settings, problems = {}, []
    for name, key in _CONFIG_KEYS.items():
        if config.get(key) is None:
            continue
        try:
            settings[name] = SETTINGS[name].read(str(config[key]))
        except ValueError:
            takes = SETTINGS[name].takes
            problems.append(f"{path}: {key} is not used; it should be {takes}.")
    if config.get("do_sample") is True:
        settings.setdefault("temp", 1.0)  # as in transformers
    greedy = config.get("do_sample") is False or not settings.get("temp")
    return ({} if greedy else settings), problems


_CONFIG_KEYS = {"temp": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


@dataclass
class Settings:
    """Sampling and decoding settings; `asked` is the one constraint."""

    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    seed: int | None = None
    thinking: Thinking = Thinking.auto
    mode: Mode = Mode.auto
    cycle: Cycle = Cycle.auto
    numerics: Numerics = Numerics.fast
    asked: structured.Asked | None = None

    def set(self, name: str, text: str) -> str:
        """Read a value from text, if any, or say what was expected; return what holds now."""
        name = self._known(name)
        if not text:
            return f"{name} = {self._show(name)}"
        try:
            value = SETTINGS[name].read(text)
        except OrthrusError:  # of a constraint, which says what is wrong
            raise
        except ValueError:
            takes = SETTINGS[name].takes
            raise SettingError(f"{name} cannot be {text!r}; it takes {takes}.") from None
        if name not in structured.KINDS:
            setattr(self, name, value)
        elif value is not None or self._asked(name):
            self.asked = value
        return f"{name} = {self._show(name)}"

    def _known(self, name: str) -> str:
        """Find the setting that is meant."""
        name = name.lstrip("-").replace("-", "_")
        name = _ALIASES.get(name, name)
        if name not in SETTINGS:
            near = get_close_matches(name, SETTINGS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(SETTINGS)}."
            raise SettingError(f"No setting is called {name!r}. {hint}")
        return name

    def lines(self) -> list[str]:
        """List all settings and what they take."""
        return [
            f"{name:<12}{shorten(self._show(name), 30):<9} {setting.takes}"
            for name, setting in SETTINGS.items()
        ]

    def _show(self, name: str) -> str:
        if name in structured.KINDS:
            return self.asked.text if self.asked and self._asked(name) else "none"
        return str(getattr(self, name)).lower()

    def _asked(self, kind: str) -> bool:
        return self.asked is not None and self.asked.kind == kind

    def options(self, attempt: int = 0) -> dict[str, Any]:
        """Give the arguments for `stream_generate`; each attempt at an answer has its own seed."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temp,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": None if self.seed is None else (self.seed + attempt) % (MAX_SEED + 1),
            "mode": self.mode.value,
            "cycle": self.cycle.value,
            "numerics": self.numerics.value,
            "constraint": self.asked.constraint if self.asked else None,
        }


def shorten(text: str, width: int = 60) -> str:
    """Text in one line, cut where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
