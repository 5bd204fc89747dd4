"""What is searched of a chunk beside its text: the document's name and title, the place's label, the headings above it. Pure.

Only searched: it is never shown or quoted. A reader of flowing text gives the headings as the page's label; a PDF's are
lines like any others, and are told by their numbering.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from services.rag.store.records import Chunk, Document, Page

# Numbered headings, from the highest level down. "1. …" is not among them: it is mostly a list's item.
_KINDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"第[一二三四五六七八九十百零\d]{1,4}[编篇部章](?:分)?(?=\s|：|:|\S)",
        r"第[一二三四五六七八九十百零\d]{1,4}节",
        r"附(?:录|件)?\s*[一二三四五六七八九十A-Z\d]{1,2}(?=[\s：:、])",
        r"(?i:chapter|part|section|appendix)\s+(?:\d+|[A-Z]|[IVXL]+)(?=[\s:.])",
        r"[一二三四五六七八九十]{1,3}、",
        r"[（(][一二三四五六七八九十]{1,3}[）)]",
        r"\d{1,2}\s+(?=[A-Z\u4e00-\u9fff])",
        r"\d{1,2}\.\d{1,2}\.?\s*(?=[A-Za-z\u4e00-\u9fff])",
        r"\d{1,2}\.\d{1,2}\.\d{1,2}\.?\s*(?=[A-Za-z\u4e00-\u9fff])",
    )
)
_DECIMAL = 6  # the first of the kinds that name those above them
_HEADING_WIDTH = 80  # columns: a character of CJK text takes two
_HEADING_WORDS = 12
_SENTENCE = re.compile(r"[。！？!?；;，,]|[.:：]$|\.{3,}|…|·{3,}|\s\d{1,3}$|=|\{|\}")
_DEPTH = 3
SEPARATOR = " › "
# What a label says of the place alone, which nobody asks for: "lines 2-40", "slide 3", "part 2", "Sales, rows 2-101", "Limits (2)".
_PLACE = re.compile(r"^(?:lines?|slide|part|page) \d+(?:-\d+)?|, rows? \d+(?:-\d+)?$| \(\d+\)$")
_TITLE_CHARS = 200

Heading = tuple[int, str]  # where it begins in its page, and the path that ends with it


def headings(pages: Iterable[str]) -> list[list[Heading]]:
    """For each page's text the heading paths that begin on it; the first, at 0, is the one that goes on from before."""
    path: list[tuple[int, str]] = []
    out: list[list[Heading]] = []
    for text in pages:
        found: list[Heading] = [(0, _join(path))]
        at = 0
        for line in text.split("\n"):
            kind = _kind(line)
            if kind is not None:
                path = [*_above(path, kind, line.strip()), (kind, line.strip())][-_DEPTH:]
                found.append((at, _join(path)))
            at += len(line) + 1
        out.append(found)
    return out


def heading_at(found: Sequence[Heading], start: int) -> str:
    """The path that holds at ``start`` of a page, by what :func:`headings` found on it."""
    return found[bisect_right(found, start, key=lambda heading: heading[0]) - 1][1]


@dataclass(frozen=True)
class Context:
    """``words`` are searched as words beside the chunk's text; ``heading`` is embedded above it (empty: nothing is)."""

    words: str
    heading: str


def contexts(document: Document, pages: Mapping[int, Page], chunks: Iterable[Chunk]) -> dict[str, Context]:
    """The context of each chunk of a document, by chunk id."""
    names = _names(document)
    numbers = sorted(pages)
    found = dict(zip(numbers, headings(pages[n].text for n in numbers), strict=True))
    out: dict[str, Context] = {}
    for chunk in chunks:
        label = _PLACE.sub("", pages[chunk.page].label) if chunk.page in pages else ""
        # A page that is called by its heading was cut at headings; what looks like one within it is not.
        path = label or (heading_at(found[chunk.page], chunk.start) if chunk.page in found else "")
        words = " ".join(part for part in (*names, path) if part)
        # The innermost heading alone: with the whole path the passages of a chapter come to lie close together.
        out[chunk.id] = Context(words, path.rpartition(SEPARATOR)[2])
    return out


def embedded(text: str, context: Context | None) -> str:
    """What is embedded of a chunk."""
    heading = context.heading if context is not None else ""
    return f"{heading}\n{text}" if heading and not text.startswith(heading) else text


def _names(document: Document) -> list[str]:
    """The document's title, where its metadata has one, and the words of its file's name."""
    title = document.metadata.get("title")
    stem = re.sub(r"[_\-.]+", " ", PurePath(document.filename).stem)
    return [title[:_TITLE_CHARS], stem] if isinstance(title, str) else [stem]


def _kind(line: str) -> int | None:
    line = line.strip()
    if not 2 <= len(line) <= _HEADING_WIDTH or len(line.split()) > _HEADING_WORDS or _SENTENCE.search(line):
        return None
    if len(line) + sum(c > "\u2e80" for c in line) > _HEADING_WIDTH:
        return None
    # The deepest that fits: 2.1.3 also begins like 2.1.
    return next((i for i in reversed(range(len(_KINDS))) if _KINDS[i].match(line)), None)


def _above(path: Sequence[tuple[int, str]], kind: int, heading: str) -> list[tuple[int, str]]:
    """Those of ``path`` that the heading stands under."""
    number = heading.split(maxsplit=1)[0]
    return [
        (k, text)
        for k, text in path
        # 4.1 does not stand under 3, also where the line of 4 was not told to be a heading.
        if k < kind and (k < _DECIMAL or number.startswith(text.split(maxsplit=1)[0].rstrip(".") + "."))
    ]


def _join(path: Sequence[tuple[int, str]]) -> str:
    return SEPARATOR.join(text for _, text in path)
