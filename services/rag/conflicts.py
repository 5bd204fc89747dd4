"""Two documents that say different things of the same: found by code, in figures, where a small model picks one. Pure text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from services.rag.documents.chunking import sentences
from services.rag.passages import Passage
from services.rag.relevance import coverage
from services.rag.terms import content_terms

# How alike two sentences are but for their figures (Jaccard of content terms), and how much of the question each holds. Two
# editions repeat a sentence nearly word for word; two products differ in their names.
ALIKE = 0.75
ON_TOPIC = 0.5

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*%?")
_SOFT = re.compile(r"[\s,]+")


@dataclass(frozen=True)
class Statement:
    passage: Passage
    quote: str  # an exact slice of the passage
    figures: frozenset[str]


def conflict(question: str, passages: Sequence[Passage]) -> tuple[Statement, Statement] | None:
    """The statements of two documents that answer ``question`` with different figures, or None.

    Only whole sentences that are alike in everything but their figures count. Where the question names a figure that only
    one of them has (a version, a year), it asks for that one, and there is no conflict.
    """
    asked = set(_NUMBER.findall(question))
    candidates: list[tuple[float, Statement, frozenset[str]]] = []
    for passage in passages:
        for span in sentences(passage.text):
            quote = passage.text[span.start : span.end]
            figures = frozenset(_SOFT.sub("", f) for f in _NUMBER.findall(quote))
            if not figures:
                continue
            words = frozenset(t for t in content_terms(quote) if not t.isdigit() and not _NUMBER.fullmatch(t))
            if words and (on_topic := coverage(question, quote)) >= ON_TOPIC:
                candidates.append((on_topic, Statement(passage, quote, figures), words))
    best: tuple[float, Statement, Statement] | None = None
    for (covered, one, words), (other_covered, other, other_words) in combinations(candidates, 2):
        if one.passage.document_id == other.passage.document_id or asked & (one.figures ^ other.figures):
            continue
        if one.figures <= other.figures or other.figures <= one.figures:
            continue  # one says more, not otherwise
        if len(words & other_words) < ALIKE * len(words | other_words):
            continue
        rank = min(covered, other_covered)
        if best is None or rank > best[0]:
            best = (rank, one, other)
    return best[1:] if best else None


def untold(answer: str, found: tuple[Statement, Statement]) -> bool:
    """Whether ``answer`` lacks the figures in which one of the two differs from the other."""
    said = {_SOFT.sub("", f) for f in _NUMBER.findall(answer)}
    one, other = found
    return not (one.figures - other.figures <= said and other.figures - one.figures <= said)
