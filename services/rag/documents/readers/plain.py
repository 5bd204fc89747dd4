"""Plain text in any encoding: blocks of lines."""

import itertools
import statistics
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from services.rag.documents.encoding import open_text
from services.rag.documents.pages import Options, PageFailure, PageText
from services.rag.documents.reflow import clean, reflow
from services.rag.documents.sections import PAGE_CHARS, Section, pages, split

BLOCK_LINES = 200
_SAMPLE_LINES = 400
_LINE_CHARS = 1 << 20  # a file of one endless line is taken in pieces


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a block of lines; paragraphs are joined where the file was wrapped at a margin.

    Raises:
        ReadError: it is not text, or empty.
    """
    with open_text(path) as file:
        wrapped = is_hard_wrapped([line.rstrip() for line in itertools.islice(file, _SAMPLE_LINES)])
        file.seek(0)
        lines = _numbered(iter(lambda: file.readline(_LINE_CHARS), ""))
        yield from pages(_sections(lines, wrapped), options)


def is_hard_wrapped(lines: list[str]) -> bool:
    """Whether lines end at a margin and sentences go on in the next: it has to look like prose, not like a log."""
    # A wrapped line is followed by a line, and the last of a paragraph is not.
    pairs = [(a, b) for a, b in itertools.pairwise(lines) if a.strip() and b.strip()]
    if len(pairs) < 4:
        return False
    widths = [_width(a) for a, _ in pairs]
    measure = max(widths) if len(widths) < 20 else statistics.quantiles(widths, n=20)[-1]
    full = sum(width >= 0.75 * measure for width in widths)
    # What goes on in the middle of a sentence begins with a small letter or a Chinese character, not with a date.
    going_on = sum(b[0].islower() or unicodedata.east_asian_width(b[0]) in "WF" for _, b in pairs)
    return 40 <= measure <= 120 and full >= 0.7 * len(pairs) and going_on >= 0.5 * len(pairs)


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    number = 1
    for line in lines:
        yield number, line.rstrip("\r\n")
        number += line.endswith(("\n", "\r"))


def _sections(lines: Iterator[tuple[int, str]], wrapped: bool) -> Iterator[Section]:
    held: list[tuple[int, str]] = []
    size = 0
    for number, line in lines:
        if held and (size + len(line) > PAGE_CHARS or len(held) == BLOCK_LINES):
            # Rather end at a blank line, if there is one near the end.
            last = next((i for i in range(len(held) - 1, len(held) * 3 // 4, -1) if not held[i][1].strip()), len(held))
            yield from _section(held[:last], wrapped)
            held = held[last:]
            size = sum(len(text) + 1 for _, text in held)
            if held and size + len(line) > PAGE_CHARS:
                yield from _section(held, wrapped)
                held, size = [], 0
        held.append((number, line))
        size += len(line) + 1
    yield from _section(held, wrapped)


def _section(lines: list[tuple[int, str]], wrapped: bool) -> Iterator[Section]:
    lines = [(number, line) for number, line in lines if line.strip() or wrapped or len(lines) > 1]
    if not lines:
        return
    first, last = lines[0][0], lines[-1][0]
    label = f"lines {first}-{last}" if last > first else f"line {first}"
    text = "\n".join(line for _, line in lines).replace("\u00ad", "")
    text = reflow(text) if wrapped else clean(text)
    for part, piece in enumerate(split(text, PAGE_CHARS), 1):
        yield Section(label if part == 1 else f"{label} ({part})", piece)


def _width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)
