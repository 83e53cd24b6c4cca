"""The fields of a request's JSON, read one by one: their types, their ranges, and what is left."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import RequestError

DEEPEST = 64  # levels of nested JSON


class Fields:
    """A JSON object of a request. Every field may be null, which is as good as absent.

    Attributes:
        raw: the object.
        where: how messages name it; "" for the body itself.
    """

    def __init__(self, raw: Any, where: str = "") -> None:
        if not isinstance(raw, Mapping):
            what = where or "The body"
            raise RequestError(f"{what} is {kind(raw)}; expected a JSON object.", where or None)
        self.raw, self.where = raw, where
        self._read: set[str] = set()
        self._ignored: list[str] = []

    def name(self, field: str) -> str:
        """How messages name a field."""
        return f"{self.where}.{field}" if self.where else field

    def get(self, field: str) -> Any:
        """A field of any type; None if it is null or absent."""
        self._read.add(field)
        return self.raw.get(field)

    def refuse(self, field: str, why: str) -> RequestError:
        """The error to raise about a field."""
        return RequestError(f"{self.name(field)} {why}", self.name(field))

    def _typed(self, field: str, expected: str, *types: type) -> Any:
        value = self.get(field)
        if value is None:
            return None
        if (isinstance(value, bool) and bool not in types) or not isinstance(value, types):
            raise self.refuse(field, f"is {kind(value)}; expected {expected}.")
        return value

    def text(self, field: str) -> str | None:
        """A string."""
        found: str | None = self._typed(field, "a string", str)
        return found

    def flag(self, field: str) -> bool | None:
        """True or false."""
        found: bool | None = self._typed(field, "true or false", bool)
        return found

    def count(self, field: str, least: int = 0, most: int | None = None) -> int | None:
        """A whole number within a range."""
        value: int | float | None = self._typed(field, "a whole number", int, float)
        if value is None:
            return None
        whole = int(value)
        if whole != value or whole < least or (most is not None and whole > most):
            span = f"from {least} to {most}" if most is not None else f"of at least {least}"
            raise self.refuse(field, f"is {value!s:.40}; expected a whole number {span}.")
        return whole

    def number(self, field: str, least: float, most: float) -> float | None:
        """A number within a range."""
        value: float | None = self._typed(field, "a number", int, float)
        if value is not None and not least <= value <= most:
            raise self.refuse(field, f"is {value!s:.40}; expected {least:g} to {most:g}.")
        return value

    def items(self, field: str) -> list[Any] | None:
        """An array."""
        found: list[Any] | None = self._typed(field, "an array", list)
        return found

    def object(self, field: str) -> Fields | None:
        """An object."""
        value = self._typed(field, "an object", dict)
        return None if value is None else Fields(value, self.name(field))

    def objects(self, field: str) -> list[Fields]:
        """An array of objects; empty where it is absent."""
        values = enumerate(self.items(field) or ())
        return [Fields(value, f"{self.name(field)}[{n}]") for n, value in values]

    def one_of(self, field: str, known: Iterable[str]) -> str | None:
        """One of some strings."""
        value = self.text(field)
        known = list(known)
        if value is not None and value not in known:
            raise self.refuse(field, f"is {value!r:.80}; expected one of {', '.join(known)}.")
        return value

    def needed(self, field: str, value: Any) -> Any:
        """A value that was read from a field, which must be there."""
        if value is None:
            raise self.refuse(field, "is missing.")
        return value

    def refuse_any(self, why: Mapping[str, str]) -> None:
        """Refuse fields that cannot be honoured, unless they ask for nothing."""
        for field, reason in why.items():
            if self.get(field) not in (None, False, "", [], {}):
                raise self.refuse(field, f"cannot be honoured: {reason}")

    def skip(self, *fields: str) -> None:
        """Note fields that are known and make no difference here."""
        self._read.update(fields)

    def ignore(self, name: str) -> None:
        """Note something within a field that makes no difference here."""
        self._ignored.append(name)

    @property
    def unknown(self) -> list[str]:
        """Fields that nothing asked for, and what was ignored within others."""
        return [str(field) for field in self.raw if field not in self._read] + self._ignored


def parse_body(body: bytes) -> Fields:
    """The JSON object that a request's body is.

    Raises:
        RequestError: saying what is wrong.
    """
    try:
        raw = json.loads(body.decode(), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8 at byte {error.start}.") from None
    except RecursionError:
        raise RequestError("The body is nested too deep.") from None
    except ValueError as error:
        raise RequestError(f"The body is not valid JSON: {error}.") from None
    if _deeper(raw, DEEPEST):
        raise RequestError(f"The body is nested more than {DEEPEST} levels deep.")
    return Fields(raw)


def kind(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None:
        return "null"
    kinds: list[tuple[Any, str]] = [(bool, "a boolean"), (str, "a string"), (list, "an array")]
    kinds += [(int | float, "a number"), (Mapping, "an object")]
    return next(name for type_, name in kinds if isinstance(value, type_))


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    """A number that can be written as JSON again; 1e999 cannot."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.40} is too large a number")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether JSON is nested deeper than so many levels."""
    parts = [value]
    for _ in range(levels):
        below = [
            p.values() if isinstance(p, dict) else p for p in parts if isinstance(p, dict | list)
        ]
        parts = [part for group in below for part in group]
        if not parts:
            return False
    return any(isinstance(part, dict | list) for part in parts)
