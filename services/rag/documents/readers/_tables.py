"""Table rows as Markdown rows, and the tables that a page draws with ruling lines. Pure geometry and text."""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Box = tuple[float, float, float, float]  # x0, y0, x1, y1; y down

# Bounds: a drawing of ten thousand lines is no table.
MAX_LINES = 2000
MAX_WORK = 3_000_000  # cells times lines
# A cell with more text than this is a frame around a page or a column, not a cell.
MAX_CELL_TEXT = 1500
_MEET = 2.5  # points; lines closer than this meet
_SNAP = 6.0  # points; lines closer than this are the two sides of one line: no text fits between them


def markdown_row(cells: Iterable[str]) -> str:
    """``| a | b |``; bars inside a cell are escaped, line breaks become spaces."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


class Grid(NamedTuple):
    """A table drawn with lines: where its columns and rows begin, and which dividers are there."""

    xs: list[float]
    ys: list[float]
    vertical: list[Box]
    horizontal: list[Box]

    @property
    def box(self) -> Box:
        return self.xs[0], self.ys[0], self.xs[-1], self.ys[-1]

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the cell at a point inside, as if none were merged."""
        column = min(max(bisect_right(self.xs, x) - 1, 0), len(self.xs) - 2)
        row = min(max(bisect_right(self.ys, y) - 1, 0), len(self.ys) - 2)
        return row, column

    def whole(self, row: int, column: int) -> tuple[int, int]:
        """The top left one of the cells that this one is merged with, for want of a divider."""
        middle = (self.ys[row] + self.ys[row + 1]) / 2
        while column > 0 and not _divides(self.vertical, self.xs[column], middle, 0):
            column -= 1
        middle = (self.xs[column] + self.xs[column + 1]) / 2
        while row > 0 and not _divides(self.horizontal, self.ys[row], middle, 1):
            row -= 1
        return row, column


def _divides(lines: list[Box], at: float, middle: float, axis: int) -> bool:
    """Whether a line lies at ``at`` on ``axis`` and reaches over ``middle`` on the other one."""
    other = 1 - axis
    return any(
        abs((b[axis] + b[axis + 2]) / 2 - at) <= _SNAP and b[other] - _SNAP <= middle <= b[other + 2] + _SNAP
        for b in lines
    )


def grids(horizontal: Sequence[Box], vertical: Sequence[Box]) -> list[Grid]:
    """Tables among a page's ruling lines: at least two rows and two columns of lines that touch each other."""
    if len(horizontal) < 3 or len(vertical) < 3 or len(horizontal) + len(vertical) > MAX_LINES:
        return []
    parent = list(range(len(horizontal) + len(vertical)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    across = sorted(range(len(horizontal)), key=lambda i: horizontal[i][1])
    for j, (vx0, vy0, vx1, vy1) in enumerate(vertical, len(horizontal)):
        for i in across:
            hx0, hy0, hx1, hy1 = horizontal[i]
            if hy0 > vy1 + _MEET:
                break
            if hy1 >= vy0 - _MEET and hx0 <= vx1 + _MEET and hx1 >= vx0 - _MEET:
                parent[root(i)] = root(j)
    groups: dict[int, tuple[list[Box], list[Box]]] = {}
    for i, line in enumerate(itertools.chain(horizontal, vertical)):
        groups.setdefault(root(i), ([], []))[i >= len(horizontal)].append(line)
    found = []
    for lines_across, lines_down in groups.values():
        xs = _snap([(x0 + x1) / 2 for x0, _, x1, _ in lines_down])
        ys = _snap([(y0 + y1) / 2 for _, y0, _, y1 in lines_across])
        if len(xs) >= 3 and len(ys) >= 3 and len(xs) * len(ys) * (len(lines_across) + len(lines_down)) <= MAX_WORK:
            found.append(Grid(xs, ys, lines_down, lines_across))
    return sorted(found, key=lambda g: (g.ys[0], g.xs[0]))


def _snap(values: list[float]) -> list[float]:
    out: list[float] = []
    for value in sorted(values):
        if not out or value - out[-1] > _SNAP:
            out.append(value)
    return out


def aligned(rows: Sequence[Sequence[tuple[float, float, str]]], gap: float) -> list[list[str]] | None:
    """Cells of rows whose pieces ``(x0, x1, text)`` stand under each other, or None where they do not.

    Columns are divided by stretches of white, at least ``gap`` wide, that run through the full rows.
    """
    most = max((len(row) for row in rows), default=0)
    if most < 2:
        return None
    # Rows with merged cells bridge the white between columns; the fuller half of the rows knows better.
    full = [row for row in rows if len(row) >= max(2, 0.6 * most)]
    if len(full) < (3 if most == 2 else 2):
        return None
    columns: list[list[float]] = []
    for x0, x1 in sorted((x0, x1) for row in full for x0, x1, _ in row):
        if columns and x0 - columns[-1][1] < gap:
            columns[-1][1] = max(columns[-1][1], x1)
        else:
            columns.append([x0, x1])
    if len(columns) < 2:
        return None
    table: list[list[str]] = []
    for row in rows:
        cells = [""] * len(columns)
        for x0, x1, text in row:
            overlaps = [min(x1, right) - max(x0, left) for left, right in columns]
            # The first column that it touches; one that touches none goes to the nearest.
            at = next((i for i, o in enumerate(overlaps) if o > 0), overlaps.index(max(overlaps)))
            cells[at] = f"{cells[at]} {text}".strip()
        table.append(cells)
    # Words that happen to stand under each other fill only a few cells.
    filled = sum(bool(cell) for cells in table for cell in cells)
    return table if filled >= 0.4 * len(table) * len(columns) else None


def without_empty(table: list[list[str]]) -> list[list[str]]:
    """Rows and columns that hold nothing carry no meaning in a Markdown row."""
    keep = [i for i in range(len(table[0])) if any(row[i].strip() for row in table)] if table else []
    return [[row[i] for i in keep] for row in table if any(cell.strip() for cell in row)]
