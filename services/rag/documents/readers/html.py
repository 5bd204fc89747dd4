"""HTML pages: sections by headings, without menus, scripts and hidden text."""

import re
from collections.abc import Iterator
from pathlib import Path

from services.rag.documents import encoding, markup
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.sections import pages, sections

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a section.

    Raises:
        ReadError: it is not text, or nothing in it can be seen.
    """
    yield from pages(sections(markup.blocks(decode(path.read_bytes()))), options)


def decode(data: bytes) -> str:
    """The text of an HTML file, by its BOM, its meta tag and its content."""
    declared = _CHARSET.search(data[:4096])
    text = encoding.decode(data, declared[1].decode("ascii", errors="replace") if declared else None)
    if text is None:
        raise ReadError("the file is not text in any known encoding: save it as UTF-8")
    return text.removeprefix("\ufeff")
