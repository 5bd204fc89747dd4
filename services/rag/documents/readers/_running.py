"""Running heads and feet: lines in the margin that repeat from page to page, and page numbers. Pure.

A head is set apart from the text by white, stands at the same height on other pages, and says the same there but for
numbers. It is looked for among the pages around, so that memory does not grow with the document.
"""

import re
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from services.rag.documents.readers._words import Word

# Left and right pages may have different heads, a chapter may begin without one.
PAGES_BACK = 8
_LINES = 3  # at most, above and below
_APART = 0.8  # white to the text, in line heights
_DIGITS = re.compile(r"\d+")
_ROMAN = re.compile(r"\b[ivxlc]{1,6}\b")
_TOKEN = re.compile(r"[^\W_]+|#")
# What can only be a page number needs no second page.
_SURE = re.compile(
    r"^\W*(?:(?:page|seite)\s*\d+(?:\s*(?:of|/|von)\s*\d+)?|\d+\s*(?:/|of)\s*\d+|[-–—]\s*\d+\s*[-–—]|"
    r"第\s*\d+\s*[页頁](?:\W*共\s*\d+\s*[页頁])?)\W*$",
    re.IGNORECASE,
)
# A heading with a number that grows from page to page is no running head.
_STRUCTURE = re.compile(
    r"^\W*(?:chapter|section|part|article|rule|step|appendix|exhibit|question|lesson|unit|figure|table|annex|item|no|"
    r"kapitel|chapitre|capítulo)\W*\d[\d.]*\W*$|^\W*第\s*\d+\s*[章节節条條部编編回课課篇]",
    re.IGNORECASE,
)
_PAGE_NUMBER = re.compile(r"^(?:page|seite|p|第|共|of|von|页|頁|\W|#)*$", re.IGNORECASE)


class Margin(NamedTuple):
    """A line at the top or the bottom of a page."""

    key: str  # its text, numbers as "#"
    text: str
    y: float
    top: bool
    words: frozenset[int]  # positions in the page's words


def margins(words: Sequence[Word]) -> list[Margin]:
    """Lines above and below a page's text that white sets apart; a single line may be either."""
    rows: list[list[int]] = []
    edges: list[list[float]] = []
    for at in sorted(range(len(words)), key=lambda i: words[i].y0 + words[i].y1):
        word = words[at]
        middle = (word.y0 + word.y1) / 2
        if rows and middle < edges[-1][1] and middle > edges[-1][0]:
            rows[-1].append(at)
            continue
        rows.append([at])
        edges.append([word.y0, word.y1])
    if not rows:
        return []
    if len(rows) == 1:
        return [_margin(words, rows[0], top) for top in (True, False)]
    heights = sorted(w.y1 - w.y0 for w in words)
    body = heights[len(heights) // 2]
    out: list[Margin] = []
    for top in (True, False):
        order = list(range(len(rows))) if top else list(range(len(rows) - 1, -1, -1))
        for n in range(min(_LINES, len(rows) - 1)):
            here, following = edges[order[n]], edges[order[n + 1]]
            white = following[0] - here[1] if top else here[0] - following[1]
            if white > _APART * body:
                out += [_margin(words, rows[i], top) for i in order[: n + 1] if _small(words, rows[i], body)]
                break
        else:
            outermost = _margin(words, rows[order[0]], top)
            out += [outermost] if _SURE.match(outermost.text) else []
    return out


def _small(words: Sequence[Word], row: list[int], body: float) -> bool:
    """No larger than the text: a heading that opens each page the same way may be larger, and stays."""
    return max(words[i].y1 - words[i].y0 for i in row) <= 1.6 * body


def _margin(words: Sequence[Word], row: list[int], top: bool) -> Margin:
    text = " ".join(words[i].text for i in sorted(row, key=lambda i: words[i].x0))
    # Left and right pages have the same head in another order.
    key = " ".join(sorted(_TOKEN.findall(_ROMAN.sub("#", _DIGITS.sub("#", text.casefold())))))
    return Margin(key, text, sum(words[i].y0 for i in row) / len(row), top, frozenset(row))


class RunningHeads:
    """Remembers the margins of the pages around; ``see`` each page, then ask which words of a page to drop."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, list[Margin]]] = deque(maxlen=PAGES_BACK)

    def see(self, number: int, lines: list[Margin]) -> None:
        if all(page != number for page, _ in self._seen):
            self._seen.append((number, lines))

    def drop(self, number: int, lines: list[Margin]) -> set[int]:
        """Positions of the words of page ``number`` that are its running heads and feet."""
        out: set[int] = set()
        for line in lines:
            if _SURE.match(line.text) or any(
                self._same(number, line, page, other) for page, others in self._seen for other in others
            ):
                out |= line.words
        return out

    @staticmethod
    def _same(number: int, line: Margin, page: int, other: Margin) -> bool:
        if page == number or line.top != other.top or line.key != other.key or abs(line.y - other.y) > 3:
            return False
        if not any(c.isdigit() for c in line.text):
            return True  # the same words, perhaps in another order
        # The numbers differ: page numbers grow with the page, and nothing else may.
        if _PAGE_NUMBER.match(line.key):
            return True
        here, there = Counter(_DIGITS.findall(line.text)), Counter(_DIGITS.findall(other.text))
        mine, theirs = list((here - there).elements()), list((there - here).elements())
        if len(mine) != 1 or len(theirs) != 1 or max(len(mine[0]), len(theirs[0])) > 9 or _STRUCTURE.match(line.text):
            return False
        return int(mine[0]) - int(theirs[0]) == number - page
