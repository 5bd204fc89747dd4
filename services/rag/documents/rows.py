"""Rows of cells as Markdown, which a language model reads well and a person can check; long tables in blocks."""

from collections.abc import Iterable, Iterator, Sequence

from services.rag.documents.sections import PAGE_CHARS, Block, Section, split, tidy

BLOCK_ROWS = 100
_HEADER_WITHIN = 10  # rows: a title and a date may stand above the header


def cell(text: str) -> str:
    """One cell's text: a single line, with the column mark escaped."""
    return " ".join(tidy(Block(text)).split()).replace("|", "\\|")


def row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {text} |" if text else " |" for text in cells)


def rule(columns: int) -> str:
    """The line between the header and the rows."""
    return "|" + " --- |" * columns


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown rows of a whole table whose first row is its header; empty rows and columns are left out.

    A table of one column is a frame around text: its cells become lines.
    """
    cleaned = [[cell(text) for text in cells] for cells in rows]
    cleaned = [cells for cells in cleaned if any(cells)]
    width = max((len(cells) for cells in cleaned), default=0)
    used = [i for i in range(width) if any(i < len(cells) and cells[i] for cells in cleaned)]
    if len(used) <= 1:
        return "\n".join(cells[i].replace("\\|", "|") for cells in cleaned for i in used)
    return "\n".join(_lines([_pick(cells, used) for cells in cleaned]))


def blocks(rows: Iterable[tuple[int, Sequence[str]]], name: str = "", limit: int = PAGE_CHARS) -> Iterator[Section]:
    """A long table in blocks of at most 100 rows and ``limit`` characters, each beginning with the header.

    ``rows`` are (number, cells) in order; what is in ``name`` stands before "rows 2-101" in the labels. The header is
    the first row of several cells; what stands above it is text. One block is in memory at a time.
    """
    above: list[tuple[int, str]] = []
    header: list[str] | None = None
    header_at = 0
    body: list[tuple[int, list[str]]] = []
    size = 0
    for number, raw in rows:
        cells = [cell(text) for text in raw]
        if not any(cells):
            continue
        if header is None:
            if sum(map(bool, cells)) < 2 and len(above) < _HEADER_WITHIN:
                above.append((number, " ".join(filter(None, cells)).replace("\\|", "|")))
                continue
            header, header_at = cells, number
            continue
        # At most: `_section` leaves out columns that are empty in the whole block.
        length = sum(map(len, cells)) + 3 * max(len(cells), sum(map(bool, header))) + 2
        if body and (len(body) == BLOCK_ROWS or size + length > limit - _room(header, limit)):
            yield from _section(above, header, header_at, body, name, limit)
            above, body, size = [], [], 0
        body.append((number, cells))
        size += length
    if above or body or header:
        yield from _section(above, header or [], header_at, body, name, limit)


def _room(header: list[str], limit: int) -> int:
    return min(2 * sum(map(len, header)) + 20 * len(header), limit // 2)


def _section(
    above: list[tuple[int, str]],
    header: list[str],
    header_at: int,
    body: list[tuple[int, list[str]]],
    name: str,
    limit: int,
) -> Iterator[Section]:
    numbers = [n for n, _ in above] + [n for n, _ in body] or [header_at]
    label = f"rows {numbers[0]}-{numbers[-1]}" if numbers[-1] > numbers[0] else f"row {numbers[0]}"
    label = f"{name}, {label}" if name else label
    every = [header, *(cells for _, cells in body)]
    used = [i for i in range(max(map(len, every))) if any(i < len(cells) and cells[i] for cells in every)]
    lines = [text for _, text in above]
    if used:
        lines += _lines([_pick(cells, used) for cells in every])
    for part, text in enumerate(split("\n".join(lines), limit), 1):
        yield Section(label if part == 1 else f"{label} ({part})", text)


def _lines(rows: list[list[str]]) -> list[str]:
    return [row(rows[0]), rule(len(rows[0])), *map(row, rows[1:])]


def _pick(cells: Sequence[str], used: list[int]) -> list[str]:
    return [cells[i] if i < len(cells) else "" for i in used]
