"""Two documents that say different things of the same: found by code, in figures, where a small model picks one. Pure text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import combinations

from services.rag.documents.chunking import sentences
from services.rag.passages import Passage
from services.rag.quantities import MONTHS, Quantity, held, is_year, measures, missing, quantities
from services.rag.relevance import coverage
from services.rag.terms import content_terms

# How alike two sentences are but for their figures (Jaccard of content terms), and how much of the question each holds. Two
# editions repeat a sentence nearly word for word; two products differ in their names.
ALIKE = 0.75
ON_TOPIC = 0.5

# The number of an item, a page or a section tells where something stands.
_PLACE = re.compile(
    r"^\W*(?:\d{1,3}[.)、．）]\s*(?!\d)|\d{1,3}(?:\.\d{1,3})+[.)、．）]?\s+(?=[^\W\d]))"
    r"|\b(?:sections?|sec\.?|chapters?|ch\.|pages?|pp?\.|tables?|figures?|fig\.|appendix|clause|article|no\.)\s*\d+(?:[.-]\d+)*"
    r"|[§¶]\s*\d+(?:\.\d+)*|第\s*[\d.零一二三四五六七八九十百]+\s*[页頁章节節条條款项項]|[表图圖]\s*\d+(?:[.-]\d+)*",
    re.IGNORECASE,
)
_NUMERAL = re.compile(r"[\d.,:零〇一二三四五六七八九十百千万亿两]+%?")
_NAME = re.compile(r"[^\W\d]\w*\d\w*")  # H2, P1
_ZEROS = re.compile(r"\.0+$")
_DATE = re.compile(r"\d{4}\s*(?:[-/.]\s*\d|年\s*\d+\s*月)")
# A measure in terms of a smaller one: 1.5 minutes are 90 seconds.
_IN = {
    "minute": (60, "s"),
    "hour": (3600, "s"),
    "day": (86_400, "s"),
    "week": (604_800, "s"),
    "year": (12, "months"),
    "kilometre": (1000, "m"),
    "kilogram": (1000, "g"),
}


@dataclass(frozen=True)
class Statement:
    passage: Passage
    quote: str  # an exact slice of the passage
    figures: tuple[Quantity, ...]


def conflict(question: str, passages: Sequence[Passage]) -> tuple[Statement, Statement] | None:
    """The statements of two documents that answer ``question`` with different figures, or None.

    Only whole sentences that are alike in everything but their figures count. Where the question names a figure that only
    one of them has (a version, a year), it asks for that one, and there is no conflict. Nor is there one where each tells
    the figures of a year of its own.
    """
    asked = {q.value for q in _figures(question)}
    candidates: list[tuple[float, Statement, frozenset[str]]] = []
    for passage in passages:
        for span in sentences(passage.text):
            quote = passage.text[span.start : span.end]
            figures = tuple(_figures(quote))
            if not figures:
                continue
            words = frozenset(
                t for t in content_terms(_PLACE.sub(" ", quote)) if not _NUMERAL.fullmatch(t) and t not in MONTHS
            )
            if words and (on_topic := coverage(question, quote)) >= ON_TOPIC:
                candidates.append((on_topic, Statement(passage, quote, figures), words))
    best: tuple[float, Statement, Statement] | None = None
    for (covered, one, words), (other_covered, other, other_words) in combinations(candidates, 2):
        if one.passage.document_id == other.passage.document_id:
            continue
        if len(words & other_words) < ALIKE * len(words | other_words):
            continue
        mine, others = _differing(one, other)
        # Where only one of them has more, it says more, not otherwise.
        if not mine or not others or not asked.isdisjoint(q.value for q in mine + others):
            continue
        if _names(words) != _names(other_words) or _own_years(one, other, mine, others):
            continue
        rank = min(covered, other_covered)
        if best is None or rank > best[0]:
            best = (rank, one, other)
    return best[1:] if best else None


def untold(answer: str, found: tuple[Statement, Statement]) -> bool:
    """Whether ``answer`` lacks the figures in which one of the two differs from the other."""
    mine, others = _differing(*found)
    return bool(missing(mine + others, held(_figures(answer))))


def _differing(one: Statement, other: Statement) -> tuple[list[Quantity], list[Quantity]]:
    """The figures of each that the other lacks."""
    return missing(one.figures, held(other.figures)), missing(other.figures, held(one.figures))


def _own_years(one: Statement, other: Statement, mine: list[Quantity], others: list[Quantity]) -> bool:
    """Whether the years differ, and with them what is said of each; a date is said itself."""
    named = any(q.text.lower() in MONTHS for q in one.figures + other.figures)
    if named or _DATE.search(one.quote) or _DATE.search(other.quote):
        return False
    return all(any(map(is_year, found)) and not all(map(is_year, found)) for found in (mine, others))


def _names(words: frozenset[str]) -> set[str]:
    return {word for word in words if _NAME.fullmatch(word)}


def _figures(text: str) -> Iterator[Quantity]:
    """The numbers of ``text`` that say something, equal values written alike."""
    for q in quantities(_PLACE.sub(" ", text)):
        if q.value.count(".") > 1:
            yield q
            continue
        q = replace(q, value=_ZEROS.sub("", q.value))
        known = [_IN[name] for name in measures(q.unit) if name in _IN]
        if len(measures(q.unit)) == 1 and known and not is_year(q):
            factor, unit = known[0]
            q = replace(q, value=_ZEROS.sub("", format((Decimal(q.value) * factor).normalize(), "f")), unit=unit)
        yield q
