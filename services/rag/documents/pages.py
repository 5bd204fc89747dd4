"""What a reader gives: pages, each with text or with the reason why it has none.

The reader seam. A reader is one file in ``readers/`` with ``read(path, options) -> Iterator[PageText | PageFailure]``: pages
in order, starting at ``options.first_page``. It runs in the reading process, with limits around it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PageText:
    """One page that can be searched: a printed page, a slide, a sheet, a chapter, a section."""

    number: int  # 1-based
    total: int  # pages of the document as far as known; right on the last page
    text: str
    label: str = ""  # what a person calls the place: "slide 3", "Sales, rows 2-101"; empty for a printed page
    method: Literal["text", "ocr"] = "text"
    notes: tuple[str, ...] = ()  # what was left out and why, in a sentence each


@dataclass(frozen=True)
class PageFailure:
    """One page that cannot be searched, and why."""

    number: int
    total: int
    reason: str
    label: str = ""


Page = PageText | PageFailure


class ReadError(Exception):
    """The file as a whole cannot be read; the message says why, and what to do."""


@dataclass(frozen=True)
class Options:
    """What a reader may need beside the file. ``password`` opens an encrypted file; ``ocr`` allows reading pictures."""

    password: str | None = None
    ocr: bool = False
    first_page: int = 1
