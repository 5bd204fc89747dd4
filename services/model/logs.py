"""The log: text or JSON, one record a line whatever a client sends, and nothing of a conversation unless asked for."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

# Attributes of a log record, set by logging's `extra`:
FIELDS = "fields"  # what a program would look for
TRACE = "trace"  # a traceback as text, see `describe`

_PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)
# What ends a line or moves a terminal's cursor.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Fields that the request's message already shows.
_SHOWN = ("method", "path", "status", "seconds")
_SHORT = {"request_id": "id"}


def set_up(level: str, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Sends every logger's records to `stream` (stderr) in one form, libraries' and Python's warnings too."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Its lines about every call of our own to the tokenizer would drown ours.
    logging.getLogger("httpx").setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """`time level message name=value …`; a traceback follows indented, so that only records begin at a line's start."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], super().formatMessage(record))
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        shown = [f" {_SHORT.get(name, name)}={_value(value)}" for name, value in fields.items() if name not in _SHOWN]
        return line + "".join(shown)

    def format(self, record: logging.LogRecord) -> str:
        # What comes after the message begins at the first line break, for the message has none.
        lines = super().format(record).splitlines() + getattr(record, TRACE, "").splitlines()
        return "\n    ".join(lines)


def _value(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else repr(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, and `exception` with a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if trace := getattr(record, TRACE, ""):
            line["exception"] = trace
        # ASCII: no line separator of Unicode, no lone surrogate, no terminal sequence gets out.
        return json.dumps(line, default=str)


def describe(error: BaseException, *, with_text: bool) -> str:
    """The traceback of an error and of what caused it. Without its texts by default: they may quote what a client wrote."""
    if with_text:
        return "".join(traceback.format_exception(error)).rstrip()
    parts = []
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        frames = "".join(traceback.format_tb(at.__traceback__))
        parts.append(f"Traceback (most recent call last):\n{frames}{type(at).__module__}.{type(at).__qualname__}")
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
    return "\n\nThe cause or context of the following:\n\n".join(reversed(parts))
