"""The terminal: two consoles, and text of others made fit for them."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class UsageError(Exception):
    """What was typed makes no sense together; exit code 2."""


def printable(text: object) -> str:
    """File names and messages come from anywhere: none may move the cursor or colour the terminal."""
    return "".join(_shown(c) for c in str(text))


def _shown(c: str) -> str:
    if c.isprintable():
        return c
    if c.isspace() or unicodedata.category(c) == "Zs":
        return " "
    # Left-to-right marks and the like are harmless, but overrides make one name look like another.
    return c if unicodedata.category(c) == "Cf" and not "\u202a" <= c <= "\u202e" else "�"


def safe(text: object) -> str:
    """``printable``, with Rich's brackets escaped."""
    return escape(printable(text))


LIST = "What can be read: "
_FORM = re.compile(r"(: upload it again with the| in the) form field 'password'")


def brief(reason: str) -> str:
    """A reason of the service, for one line of many: without the list of formats, and without words of its HTTP interface."""
    return _FORM.sub("", reason.partition(f". {LIST}")[0])


def count(number: int, noun: str) -> str:
    """``1 file``, ``1,200 files``."""
    return f"{number:,} {noun if number == 1 else noun.removesuffix('y') + 'ies' if noun.endswith('y') else noun + 's'}"


def size(number: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1024 or unit == "GB":
            break
        number /= 1024
    return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:,.1f} {unit}"


def confirmed(question: str) -> bool:
    """Asked on a terminal.

    Raises:
        UsageError: nobody is there to ask.
    """
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is at a terminal to say so: add --yes")
    try:
        return console.input(escape(f"{question} [y/N] ")).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def page_failures(document: Mapping[str, Any]) -> list[str]:
    """``page 3: a scan, OCR is off``; neighbours with the same reason in one line."""
    reasons = {
        int(report["page"]): str(report.get("message") or "no text")
        for report in document.get("page_reports") or []
        if report.get("failed")
    }
    for page in document.get("failed_pages") or []:
        reasons.setdefault(int(page), "no text")
    return [f"{_pages(pages)}: {reason}" for reason, pages in _by_reason(reasons)]


def _by_reason(reasons: Mapping[int, str]) -> Iterable[tuple[str, list[int]]]:
    together: dict[str, list[int]] = {}
    for page in sorted(reasons):
        together.setdefault(reasons[page], []).append(page)
    return together.items()


def _pages(pages: list[int]) -> str:
    """``page 3``, ``pages 1-4, 7``."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][1] + 1:
            runs[-1][1] = page
        else:
            runs.append([page, page])
    told = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"page {told}" if len(pages) == 1 else f"pages {told}"
