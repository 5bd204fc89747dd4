"""Lines found on the picture of a page become text in reading order: columns, rows, paragraphs. Pure geometry.

A page is cut where a gutter runs through several lines of prose (columns, read one after the other); a table has gutters
too, but its cells are short, and it is read row by row.
"""

import itertools
import math
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Corners = tuple[tuple[float, float], ...]  # of a box: four (x, y) in pixels, clockwise from the top left

GUTTER = 0.5  # of a line's height: the least width of a gutter
MARGIN = 0.2  # of a line's height: found boxes are wider than their ink by this much at each end
PROSE_LINES = 3  # fewer lines beside a gutter are not a column
PROSE_WIDTH = 7.0  # in heights of a line, the median: narrower lines are cells or labels
PARAGRAPH = 0.7  # of a line's height: the gap after which a blank line stands
CELL = 1.5  # of a line's height: Chinese pieces further apart are two cells, not one word


@dataclass(frozen=True)
class Line:
    """A piece of one line and where it stands."""

    text: str
    at: Corners


@dataclass(frozen=True)
class _Box:
    text: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def arrange(lines: Sequence[Line]) -> str:
    """The text of ``lines`` as a person reads them: one line each, a blank line between paragraphs; "" for none."""
    if not lines:
        return ""
    boxes = _level(lines)
    height = max(1.0, statistics.median(box.height for box in boxes))
    return "\n\n".join(_paragraphs(block, height) for block in _blocks(boxes, height))


def _level(lines: Sequence[Line]) -> list[_Box]:
    """Boxes along the axes of the text: a scan is seldom straight, and half a degree shifts a line by its height."""
    slopes = []
    for line in lines:
        (x0, y0), (x1, y1), _, bottom_left = line.at
        if math.dist((x0, y0), (x1, y1)) > 3 * math.dist((x0, y0), bottom_left):
            slopes.append(math.atan2(y1 - y0, x1 - x0))
    angle = statistics.median(slopes) if slopes else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    boxes = []
    for line in lines:
        top_left, top_right, _, bottom_left = line.at
        width, height = math.dist(top_left, top_right), math.dist(top_left, bottom_left)
        cx, cy = sum(x for x, _ in line.at) / 4, sum(y for _, y in line.at) / 4
        x, y = cx * cos + cy * sin, cy * cos - cx * sin
        half = width / 2 - min(MARGIN * height, width / 4)
        boxes.append(_Box(line.text, x - half, y - height / 2, x + half, y + height / 2))
    return boxes


def _blocks(boxes: Sequence[_Box], height: float) -> list[list[_Box]]:
    """Runs of rows, in reading order: the columns of a page one after the other."""
    blocks: list[list[_Box]] = []
    for run in _runs(_rows(boxes), height):
        gutter = _column_gutter(run, height)
        if gutter is None:
            blocks.append(run)
            continue
        for side in ([b for b in run if b.right <= gutter], [b for b in run if b.right > gutter]):
            blocks.extend(_blocks(side, height))
    return blocks


def _runs(rows: Sequence[list[_Box]], height: float) -> list[list[_Box]]:
    """Cut the page, top to bottom, wherever a gutter begins or ends."""
    runs: list[list[_Box]] = []
    run: list[_Box] = []
    for row in rows:
        both = [*run, *row]
        before, own = _gaps(run, height), _gaps(row, height)
        ends = before and not _gaps(both, height)
        begins = own and not before and any(_covers(box, max(own, key=_breadth)) for box in run)
        if run and (ends or begins):
            runs.append(run)
            run = list(row)
        else:
            run = both
    return [*runs, run] if run else runs


def _gaps(boxes: Sequence[_Box], height: float) -> list[tuple[float, float]]:
    """Stretches of x, inside the hull, that no box touches and that are wide enough for a gutter."""
    gaps = []
    reach = -math.inf
    for box in sorted(boxes, key=lambda b: b.left):
        if math.isfinite(reach) and box.left - reach >= GUTTER * height:
            gaps.append((reach, box.left))
        reach = max(reach, box.right)
    return gaps


def _breadth(gap: tuple[float, float]) -> float:
    return gap[1] - gap[0]


def _covers(box: _Box, gap: tuple[float, float]) -> bool:
    """Whether most of a gap lies under ``box``: a title over two columns."""
    return min(box.right, gap[1]) - max(box.left, gap[0]) > _breadth(gap) / 2


def _column_gutter(boxes: Sequence[_Box], height: float) -> float | None:
    """The right edge of what stands left of a gutter between columns of prose; None: read row by row."""
    for left_end, _ in sorted(_gaps(boxes, height), key=_breadth, reverse=True):
        left = [b for b in boxes if b.right <= left_end]
        right = [b for b in boxes if b.right > left_end]
        if all(_is_prose(side, height) for side in (left, right)):
            return left_end
    return None


def _is_prose(boxes: Sequence[_Box], height: float) -> bool:
    widths = [sum(b.width for b in row) for row in _rows(boxes)]
    return len(widths) >= PROSE_LINES and statistics.median(widths) >= PROSE_WIDTH * height


def _rows(boxes: Sequence[_Box]) -> list[list[_Box]]:
    """Boxes that stand beside each other, left to right; rows top to bottom."""
    rows: list[list[_Box]] = []
    for box in sorted(boxes, key=lambda b: b.middle):
        if rows and box.middle - rows[-1][0].middle < 0.5 * min(box.height, rows[-1][0].height):
            rows[-1].append(box)
        else:
            rows.append([box])
    return [sorted(row, key=lambda b: b.left) for row in rows]


def _paragraphs(boxes: Sequence[_Box], height: float) -> str:
    text = ""
    bottom = math.inf
    for row in _rows(boxes):
        if text:
            text += "\n\n" if min(b.top for b in row) - bottom > PARAGRAPH * height else "\n"
        text += _joined(row)
        bottom = max(b.bottom for b in row)
    return text


def _joined(row: Sequence[_Box]) -> str:
    text = row[0].text
    for before, box in itertools.pairwise(row):
        near = box.left - before.right < CELL * box.height
        wide = _is_wide(text[-1:]) or _is_wide(box.text[:1])
        text += box.text if near and wide else f" {box.text}"
    return text


def _is_wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in "WF"
