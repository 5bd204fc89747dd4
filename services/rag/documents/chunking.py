"""Cuts a page into chunks at sentence boundaries, Chinese ones included. Pure text.

A chunk never crosses a page, so its page number is exact, and its text is an exact slice of the page's text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from services.rag.documents.reflow import CJK

# Sizes are in estimated tokens. 512 is the window of stella, e5 and most BERT-like embedders, so all of these fit; on a
# CPU most of the time to an answer goes into reading the passages, so a chunk holds a fact and its surroundings, no more.
CHUNK_TOKENS = 200
OVERLAP_TOKENS = 40

_SENTENCE = re.compile(
    r"[^。！？!?；;\n.]*(?:[。！？!?；;]+[”’\"'）)」』】]*|\n+|\.+(?=[\s”’\"')\]]|$)[”’\"')\]]*\s*|\.(?!\s)|$)"
)
_CJK_RUN = re.compile(f"[{CJK}]+")


@dataclass(frozen=True)
class Span:
    start: int
    end: int


def estimate_tokens(text: str) -> int:
    """Without a tokenizer: a CJK character is about one token, four other characters are about one."""
    wide = sum(map(len, _CJK_RUN.findall(text)))
    return wide + (len(text) - wide + 3) // 4


def sentences(text: str) -> Iterator[Span]:
    """The sentences of ``text``, in order; together they cover it but for surrounding white space."""
    start = 0
    pending = False  # a decimal point or an abbreviation's dot does not end the sentence
    for match in _SENTENCE.finditer(text):
        if match.start() == match.end():
            continue
        if not pending:
            start = match.start()
        pending = match.group().endswith(".") and match.end() < len(text) and not text[match.end()].isspace()
        if not pending and (span := _strip(text, start, match.end())):
            yield span
    if pending and (span := _strip(text, start, len(text))):
        yield span


def chunk(text: str, *, limit: int = CHUNK_TOKENS, overlap: int = OVERLAP_TOKENS) -> list[Span]:
    """Spans of at most ``limit`` estimated tokens; each starts with up to ``overlap`` tokens of the one before."""
    pieces = [piece for sentence in sentences(text) for piece in _halve(text, sentence, limit)]
    sizes = [estimate_tokens(text[p.start : p.end]) for p in pieces]
    out: list[Span] = []
    first = 0
    while first < len(pieces):
        last, size = first, sizes[first]
        while last + 1 < len(pieces) and size + sizes[last + 1] <= limit:
            last += 1
            size += sizes[last]
        out.append(Span(pieces[first].start, pieces[last].end))
        if last + 1 == len(pieces):
            break
        # Step back over whole sentences, but always forward of where this chunk began.
        following, repeated = last + 1, 0
        while following - 1 > first and repeated + sizes[following - 1] <= overlap:
            following -= 1
            repeated += sizes[following]
        first = following
    return out


def _halve(text: str, span: Span, limit: int) -> Iterator[Span]:
    """A sentence longer than a chunk is cut, at a comma or space near the middle where there is one."""
    if estimate_tokens(text[span.start : span.end]) <= limit or span.end - span.start < 2:
        yield span
        return
    middle = (span.start + span.end) // 2
    reach = (span.end - span.start) // 4
    cuts = [m.end() for m in re.finditer(r"[，,、：:\s]", text[middle - reach : middle + reach])]
    cut = middle - reach + min(cuts, key=lambda c: abs(c - reach)) if cuts else middle
    if not span.start < cut < span.end:
        cut = middle
    for part in (Span(span.start, cut), Span(cut, span.end)):
        if stripped := _strip(text, part.start, part.end):
            yield from _halve(text, stripped, limit)


def _strip(text: str, start: int, end: int) -> Span | None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return Span(start, end) if start < end else None
