"""The kinds of values that request parameters have: how each is checked, and how the API page describes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from services.model.errors import InvalidRequest


@dataclass(frozen=True)
class Number:
    """A JSON number within bounds; booleans are not numbers here, NaN and infinities are not JSON."""

    low: float
    high: float
    integer: bool = False
    above_low: bool = False  # low itself is excluded
    description: str = ""

    def check(self, name: str, value: Any) -> int | float:
        if type(value) is not int and (self.integer or type(value) is not float):
            refuse(name, f"must be {'an integer' if self.integer else 'a number'}, not {shown(value)}")
        try:
            fits = math.isfinite(value) and self.low <= value <= self.high
        except OverflowError:  # an integer beyond every float
            fits = False
        if not fits or (self.above_low and value == self.low):
            refuse(name, f"must be {self._range()}, not {shown(value)}")
        return value

    def _range(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low:g}"
        if self.integer and abs(self.low) > 1e6:
            return "a 64-bit integer"
        return (
            f"{'more than' if self.above_low else 'from'} {self.low:g}{',' if self.above_low else ''} to {self.high:g}"
        )

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "integer" if self.integer else "number", "description": self.description}
        found["exclusiveMinimum" if self.above_low else "minimum"] = self.low
        return found if self.high == math.inf else found | {"maximum": self.high}


@dataclass(frozen=True)
class Flag:
    description: str = ""

    def check(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            refuse(name, f"must be true or false, not {shown(value)}")
        return bool(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean", "description": self.description}


@dataclass(frozen=True)
class Text:
    description: str = ""

    def check(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            refuse(name, f"must be a string, not {shown(value)}")
        return str(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "description": self.description}


@dataclass(frozen=True)
class Structure:
    """A value with a parser of its own."""

    parse: Callable[[str, Any], Any]
    json_schema: Mapping[str, Any]

    def check(self, name: str, value: Any) -> Any:
        return self.parse(name, value)

    def schema(self) -> dict[str, Any]:
        return dict(self.json_schema)


Parameter = Number | Flag | Text | Structure


def refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{name} {why}", param=name)


def shown(value: Any) -> str:
    if isinstance(value, dict | list) and len(value) > 8:
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    try:
        return clipped(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "a value too large to show"


def clipped(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
