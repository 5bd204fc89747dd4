"""Reading order: from words with places to lines as a person reads them. Pure; knows nothing of PDF.

Columns are found as tall white gutters with running text on both sides; what stands across them (a title, a wide
table) splits the page above and below. Pieces that stand under each other in rows are a table and become Markdown rows.
All coordinates are points, y down.
"""

import itertools
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from services.rag.documents.readers import _tables as tables
from services.rag.documents.readers._words import Word

_GAP = 0.85  # of the line's height: wider white than between justified words
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MARKER = re.compile(
    r"^(?:[-•●○▪◆■□–*·]|\(?[0-9a-zA-Z一二三四五六七八九十]{1,4}[.)）、:：]?|[（(][^()（）]{1,4}[)）]|\[\d{1,4}\])$"
)
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_LTR = re.compile(r"[^\W\d_]")
_BINS = 300
_TABLE_ROWS = 150  # a page has no more lines; a hostile one may
_LEADER = re.compile(r"(?:\.\s?){5,}\s*[\divxlc]*$|…{2,}\s*\d*$")  # a line of a table of contents
_SENTENCE_END = re.compile(r"[。！？!?.;；…][”’\"')）」』】]*$")


class Piece(NamedTuple):
    """Words of one line with ordinary spaces between them; or a whole table row."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    head: float  # width of what cannot be parted: the first word, a number with its unit, one character without spaces
    row: bool = False

    @property
    def height(self) -> float:
        return self.y1 - self.y0


class Line(NamedTuple):
    """A line of the page, and whether the margin cut it, so that its sentence goes on in the next line."""

    text: str
    cut: bool


def lay_out(words: Sequence[Word], horizontal: Sequence[tables.Box], vertical: Sequence[tables.Box]) -> list[Line]:
    """The page's lines in reading order. The ruling lines make tables."""
    pieces, rest = _ruled(words, tables.grids(horizontal, vertical))
    pieces += _pieces(rest)
    out: list[Line] = []
    for region in _regions(pieces, 0):
        lines = list(_lines(region))
        if out and lines and out[-1].cut is False and _runs_on(out[-1].text, lines[0].text):
            out[-1] = Line(out[-1].text, True)
        out += lines
    return out


def _runs_on(left: str, right: str) -> bool:
    """Whether a sentence goes on at the head of the next column: by its words, as no margin tells."""
    if left.startswith("| ") or right.startswith("| ") or _SENTENCE_END.search(left[-12:]) or len(left) < 12:
        return False
    return bool(re.match(r"[a-z]{2}", right)) or (left.endswith((",", "，", "、", "-")) and right[:1].isalpha())


def _ruled(words: Sequence[Word], grids: list[tables.Grid]) -> tuple[list[Piece], list[Word]]:
    """Table rows for the words inside each grid, and the words outside all of them."""
    rows: list[Piece] = []
    rest = list(words)
    for grid in grids:
        x0, y0, x1, y1 = grid.box
        inside: dict[tuple[int, int], list[Word]] = {}
        outside = []
        whole: dict[tuple[int, int], tuple[int, int]] = {}
        for word in rest:
            x, y = (word.x0 + word.x1) / 2, (word.y0 + word.y1) / 2
            if x0 <= x <= x1 and y0 <= y <= y1:
                cell = grid.cell(x, y)
                if cell not in whole:
                    whole[cell] = grid.whole(*cell)
                inside.setdefault(whole[cell], []).append(word)
            else:
                outside.append(word)
        if len(inside) < 3 or len({c for _, c in inside}) < 2 or len({r for r, _ in inside}) < 2:
            continue
        table = [[""] * (len(grid.xs) - 1) for _ in grid.ys[1:]]
        for (row, column), content in inside.items():
            table[row][column] = _cell(content)
        if any(len(cell) > tables.MAX_CELL_TEXT for cells in table for cell in cells):
            continue
        rest = outside
        used = [i for i, row in enumerate(table) if any(row)]
        for i, cells in zip(used, tables.without_empty(table), strict=True):
            rows.append(
                Piece(tables.markdown_row(cells), x0, grid.ys[i] + 0.1, x1, grid.ys[i + 1] - 0.1, x1 - x0, True)
            )
    return rows, rest


def _cell(words: list[Word]) -> str:
    text = ""
    for row in _rows(_pieces(words)):
        line = _row_text(row)
        wide = text[-1:] > "\u2e80" or line[:1] > "\u2e80"
        text += line if not text or wide else f" {line}"
    return text


def _pieces(words: Sequence[Word]) -> list[Piece]:
    out: list[Piece] = []
    run: list[Word] = []
    for word in words:
        if run and not _follows(run, word):
            out.append(_piece(run))
            run = []
        run.append(word)
    if run:
        out.append(_piece(run))
    return out


def _follows(run: list[Word], word: Word) -> bool:
    last = run[-1]
    low = min(last.y1 - last.y0, word.y1 - word.y0)
    if min(last.y1, word.y1) - max(last.y0, word.y0) < 0.5 * low or (word.text > "\u058f" and _RTL.search(word.text)):
        return False
    high = max(last.y1 - last.y0, word.y1 - word.y0)
    limit = 2.5 if len(run) == 1 and _MARKER.match(last.text) and not last.text.isalnum() else _GAP
    return -0.5 * high < word.x0 - last.x1 < limit * high


def _piece(run: list[Word]) -> Piece:
    text = run[0].text
    for before, word in itertools.pairwise(run):
        close = word.x0 - before.x1 < 0.12 * (word.y1 - word.y0)
        text += word.text if word.glued and close else f" {word.text}"
    tall = run[0] if len(run) == 1 else max(run, key=lambda w: w.y1 - w.y0)
    # A number and its unit are not parted: they went to the next line together.
    head = run[1 if len(run) > 1 and _NUMBER.fullmatch(run[0].text) else 0].x1 - run[0].x0
    if text[0] > "\u2e80":
        head = min(head, tall.y1 - tall.y0)
    return Piece(text, min(w.x0 for w in run), tall.y0, max(w.x1 for w in run), tall.y1, head)


def _rows(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Pieces on one line together, from left to right; lines from top to bottom."""
    rows: list[tuple[Piece, list[Piece]]] = []
    # The tallest piece of a line says where the line is; an exponent is taken in by its neighbour.
    for piece in sorted(pieces, key=lambda p: (p.y0 + p.y1) / 2):
        middle = (piece.y0 + piece.y1) / 2
        for n in range(len(rows) - 1, max(len(rows) - 4, -1), -1):
            core, members = rows[n]
            small, big = (core, piece) if core.height <= piece.height else (piece, core)
            overlap = min(core.y1, piece.y1) - max(core.y0, piece.y0)
            same = abs((core.y0 + core.y1) / 2 - middle) < 0.35 * small.height or (
                small.height < 0.8 * big.height and overlap > 0.55 * small.height
            )
            if same and not core.row and not piece.row:
                members.append(piece)
                rows[n] = (big, members)
                break
        else:
            rows.append((piece, [piece]))
    return [sorted(members, key=lambda p: p.x0) for _, members in rows]


def _regions(pieces: list[Piece], depth: int) -> Iterator[list[list[Piece]]]:
    """Rows of each single-column region, regions in reading order."""
    rows = _rows(pieces)
    split = _gutter(rows) if depth < 8 else None
    if split is None:
        if rows:
            yield rows
        return
    first, last, x = split
    inside = [p for row in rows[first : last + 1] for p in row]
    yield from _regions([p for row in rows[:first] for p in row], depth + 1)
    yield from _regions([p for p in inside if (p.x0 + p.x1) / 2 < x], depth + 1)
    yield from _regions([p for p in inside if (p.x0 + p.x1) / 2 >= x], depth + 1)
    yield from _regions([p for row in rows[last + 1 :] for p in row], depth + 1)


def _gutter(rows: list[list[Piece]]) -> tuple[int, int, float] | None:
    """The best place to part columns: first row, last row, x; None where the rows are one column."""
    if len(rows) < 3:
        return None
    left = min(p.x0 for row in rows for p in row)
    right = max(p.x1 for row in rows for p in row)
    if right - left < 40:
        return None
    step = (right - left) / _BINS
    cover = np.zeros((len(rows), _BINS), dtype=bool)
    for r, row in enumerate(rows):
        for p in row:
            cover[r, int((p.x0 - left) / step) : int((p.x1 - left) / step) + 1] = True
    before = np.logical_or.accumulate(cover, axis=1)
    after = np.logical_or.accumulate(cover[:, ::-1], axis=1)[:, ::-1]
    both = before & after & ~cover
    # For each x, the run of rows that leave it white with the most text on both sides.
    start = np.zeros(_BINS, dtype=int)
    score = np.zeros(_BINS, dtype=int)
    best, best_start, best_end = np.zeros((3, _BINS), dtype=int)
    for r in range(len(rows)):
        score = np.where(cover[r], 0, score + both[r])
        start = np.where(cover[r], r + 1, start)
        better = (score > best) | ((score == best) & (score > 0) & (best_start == start))
        best, best_start, best_end = (
            np.where(better, score, best),
            np.where(better, start, best_start),
            np.where(better, r, best_end),
        )
    for _ in range(6):
        top = int(best.max())
        if top < 2:
            return None
        at = int(best.argmax())
        same = (best == top) & (best_start == best_start[at]) & (best_end == best_end[at])
        # The widest stretch of equal bins is the gutter; its middle is the cut.
        ends = np.flatnonzero(np.diff(np.concatenate(([0], same.astype(int), [0]))))
        stretches = list(zip(ends[::2], ends[1::2], strict=True))
        a, b = max(stretches, key=lambda s: s[1] - s[0])
        x = left + (a + b) / 2 * step
        found = _columns(rows, int(best_start[at]), int(best_end[at]), x)
        if found is not None:
            return found
        best = np.where(same, 0, best)
    return None


def _columns(rows: list[list[Piece]], first: int, last: int, x: float) -> tuple[int, int, float] | None:
    """The run of rows, trimmed, if both sides of ``x`` are columns of text rather than columns of a table."""
    sides = [([p for p in row if p.x1 <= x], [p for p in row if p.x0 >= x]) for row in rows[first : last + 1]]
    # What stands alone on the right before the columns begin (a date) is above them.
    while sides and not sides[0][0]:
        sides.pop(0)
        first += 1
    lefts, rights = [s[0] for s in sides if s[0]], [s[1] for s in sides if s[1]]
    if len(lefts) < 3 or len(rights) < 3 or first >= last:
        return None
    height = statistics.median(p.height for side in lefts + rights for p in side)
    gap = min(p.x0 for side in rights for p in side) - max(p.x1 for side in lefts for p in side)
    if gap < 0.6 * height or (any(p.row for side in lefts + rights for p in side) and gap < height):
        return None
    if _are_text((lefts, rights), height):
        return first, last, x
    together = sum(bool(a and b) for a, b in sides) / min(len(lefts), len(rights))
    return (first, last, x) if together < 0.5 and gap >= height else None


def _are_text(sides: Sequence[Sequence[list[Piece]]], height: float) -> bool:
    """Running text fills its column, and its lines go on in the next ones; the cells of a table do neither."""
    goes_on: list[bool] = []
    for side in sides:
        pieces = [p for row in side for p in row]
        if statistics.median(p.x1 - p.x0 for p in pieces) < 8 * height:
            return False
        # There may be several columns on a side: pieces that overlap from left to right share one.
        columns: list[list[Piece]] = []
        edge = float("-inf")
        for piece in sorted(pieces, key=lambda p: p.x0):
            if piece.x0 > edge:
                columns.append([])
            columns[-1].append(piece)
            edge = max(edge, piece.x1)
        fills: list[float] = []
        for column in columns:
            left, right = column[0].x0, max(p.x1 for p in column)
            lines = sorted(column, key=lambda p: p.y0)
            fills += [(p.x1 - p.x0) / max(right - left, 1e-3) for p in lines]
            goes_on += [_goes_on(a, b, right - 1.5 * height) for a, b in itertools.pairwise(lines)]
        if statistics.median(fills) < 0.55:
            return False
    return bool(goes_on) and sum(goes_on) >= 0.25 * len(goes_on)


def _goes_on(line: Piece, following: Piece, edge: float) -> bool:
    """By their characters: whether a sentence runs from this line into the next."""
    if following.text[0].islower() or line.text.endswith((",", "-", "，", "、")):
        return True
    return line.x1 > edge and following.text[0] > "\u2e80" and not _SENTENCE_END.search(line.text[-12:])


def _lines(rows: list[list[Piece]]) -> Iterator[Line]:
    merged = [_merge(row) for row in rows]
    lines: list[Piece] = []
    at = 0
    while at < len(merged):
        if (found := _table(merged, at)) is not None:
            end, cells = found
            for row, row_cells in _with_labels(merged[at:end], cells):
                text = tables.markdown_row(row_cells)
                lines.append(Piece(text, row[0].x0, row[0].y0, row[-1].x1, row[0].y1, 0, True))
            at = end
        else:
            row = merged[at]
            tall = max(row, key=lambda p: p.height)
            x0, x1 = min(p.x0 for p in row), max(p.x1 for p in row)
            lines.append(Piece(_row_text(row), x0, tall.y0, x1, tall.y1, row[0].head, row[0].row))
            at += 1
    yield from _cut_lines(lines)


def _merge(row: list[Piece]) -> list[Piece]:
    """Pieces that were drawn apart but stand together, such as a line's words drawn one by one."""
    out = [row[0]]
    before = row[0]
    for piece in row[1:]:
        last = out[-1]
        marker = len(out) == 1 and last is before and _MARKER.match(last.text) and not last.text.isalnum()
        near = piece.x0 - last.x1 < (2.5 if marker else _GAP) * max(last.height, piece.height)
        if near and not _RTL.search(before.text) and not _RTL.search(piece.text):
            space = "" if piece.x0 - last.x1 < 0.12 * piece.height else " "
            text = f"{last.text}{space}{piece.text}"
            out[-1] = last._replace(text=text, x1=max(last.x1, piece.x1), y0=min(last.y0, piece.y0))
        else:
            out.append(piece)
        before = piece
    return out


def _row_text(row: list[Piece]) -> str:
    joined = " ".join(p.text for p in row)
    right_to_left = len(_RTL.findall(joined))
    if not right_to_left:
        return " ".join(p.text for p in _merge(row))
    if 2 * right_to_left < len(_LTR.findall(joined)):
        return joined
    # Read from the right; a stretch of left-to-right words in it keeps its own order.
    out: list[str] = []
    latin: list[str] = []
    for piece in reversed(row):
        if _LTR.search(piece.text) and not _RTL.search(piece.text):
            latin.insert(0, piece.text)
        else:
            out += [*latin, piece.text]
            latin = []
    return " ".join(out + latin)


def _table(rows: list[list[Piece]], at: int) -> tuple[int, list[list[str]]] | None:
    """The longest table that begins with row ``at``: its end and its cells."""
    if len(rows[at]) < 2 or rows[at][0].row:
        return None
    end, full = at + 1, at + 1
    while end < min(len(rows), at + _TABLE_ROWS) and not rows[end][0].row:
        before, row = rows[end - 1], rows[end]
        height = max(p.height for p in row)
        if row[0].y0 - before[0].y1 > 2.5 * height:
            break
        if len(row) >= 2:
            full = end + 1
        elif end - full >= 2 or row[0].x1 - row[0].x0 > 0.6 * (rows[at][-1].x1 - rows[at][0].x0):
            break
        end += 1
    height = statistics.median(p.height for row in rows[at:full] for p in row)
    # A paragraph after the table can hold a wide space by chance: fewer rows may still be a table.
    for stop in range(full, max(at + 1, full - 4), -1):
        if len(rows[stop - 1]) < 2:
            continue
        cells = tables.aligned([[(p.x0, p.x1, p.text) for p in row] for row in rows[at:stop]], 0.6 * height)
        if cells is not None:
            return stop, cells
    return None


def _with_labels(rows: list[list[Piece]], cells: list[list[str]]) -> Iterator[tuple[list[Piece], list[str]]]:
    """A label set in the middle between two rows belongs to both of them."""
    for i in range(1, len(rows) - 1):
        above, here, below = rows[i - 1][0], rows[i][0], rows[i + 1][0]
        reach = 0.1 * here.height
        if len(rows[i]) == 1 and here.y0 < above.y1 - reach and here.y1 > below.y0 + reach:
            column = next(n for n, cell in enumerate(cells[i]) if cell)
            if not cells[i - 1][column] and not cells[i + 1][column]:
                cells[i - 1][column] = cells[i + 1][column] = cells[i][column]
                cells[i] = []
    yield from ((row, row_cells) for row, row_cells in zip(rows, cells, strict=True) if row_cells)


def _cut_lines(lines: list[Piece]) -> Iterator[Line]:
    """Each line, with whether it was cut: the next line's first word would not have fitted behind it."""
    plain = [p for p in lines if not p.row]
    if not plain:
        yield from (Line(p.text, False) for p in lines)
        return
    left, right = min(p.x0 for p in plain), _margin(plain)
    margins = [p.x1 for p in plain]
    pitches = [b.y0 - a.y0 for a, b in itertools.pairwise(plain) if b.y0 > a.y0]
    pitch = statistics.median(pitches) if pitches else 0.0
    for block in _blocks(lines, pitch):
        # A block may have a narrower measure (an abstract, a quotation); its lines say so by ending together.
        ends = sorted(p.x1 for p in block)
        own = _margin(block)
        justified = len(block) >= 4 and sum(end > own - 1.5 * block[0].height for end in ends) >= 0.6 * len(block)
        edge = own if justified else right
        start = min(p.x0 for p in block) if justified else left
        firm = sum(end > edge - 1.5 * block[0].height for end in (ends if justified else margins)) >= 3
        for line, following in itertools.pairwise(block):
            yield Line(line.text, _is_cut(line, following, edge, edge - start, firm))
        yield Line(block[-1].text, False)


def _margin(lines: list[Piece]) -> float:
    """Where lines end on the right; a few that stick out do not make the margin."""
    ends = sorted(p.x1 for p in lines)
    return ends[-1 - len(ends) // 12]


def _blocks(lines: list[Piece], pitch: float) -> Iterator[list[Piece]]:
    """Lines of one size that follow each other closely; a table row is alone."""
    block: list[Piece] = []
    for line in lines:
        if block:
            last = block[-1]
            same_size = 0.85 < line.height / max(last.height, 0.1) < 1.18
            near = line.y0 - last.y0 < 1.6 * pitch or pitch == 0
            if line.row or last.row or not same_size or not near:
                yield block
                block = []
        block.append(line)
    yield block


def _is_cut(line: Piece, following: Piece, right: float, measure: float, firm: bool) -> bool:
    """``firm``: several lines end at the right margin; else the widest line of a few may only seem to be full."""
    if line.row or measure < 8 * line.height or _LEADER.search(line.text[-60:]):
        return False
    room = right - line.x1
    if room >= following.head + 0.3 * line.height:
        return False
    if line.x1 - line.x0 <= 0.65 * measure and not line.text.endswith(("/", "-", "\u00ad")):
        return False
    if not firm:
        return _goes_on(line, following, right - line.height)
    ended = bool(_SENTENCE_END.search(line.text[-12:]))
    indented = following.x0 - line.x0 > 0.8 * line.height and not _MARKER.match(line.text.split(" ")[0])
    return not (ended and (indented or room > 1.5 * line.height))
