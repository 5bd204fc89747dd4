"""Which character separates the columns of a CSV file, if it is one. Pure text.

csv.Sniffer guesses from the frequency of any character, and finds columns in prose; here a delimiter has to give the
same number of columns in nearly every row.
"""

import csv
import io
from collections import Counter

CANDIDATES = ",\t;|，"
SAMPLE_CHARS = 1 << 16
_SURE = 0.9  # of the rows, for a file that is not called .csv
_PROBABLE = 0.6


def find(text: str, *, sure: bool = True) -> str | None:
    """The delimiter of the rows in ``text`` (the beginning of a file), or None if these are not rows.

    ``sure`` asks for more evidence: what is called .csv needs less to be one.
    """
    best, best_score = None, 0.0
    for delimiter in CANDIDATES:
        rows = parse(text[:SAMPLE_CHARS], delimiter)
        if len(text) > SAMPLE_CHARS:
            rows = rows[:-1]  # the sample cut it
        widths = Counter(len(row) for row in rows if any(row))
        if not widths:
            continue
        # Ragged rows are common (a title above the table); one column is not a table.
        width, count = max(widths.items(), key=lambda item: (item[1] if item[0] > 1 else 0, item[0]))
        total = sum(widths.values())
        share = count / total
        if width < 2 or share < (_SURE if sure else _PROBABLE) or (sure and not _is_evident(rows, width, total)):
            continue
        if share * width > best_score:
            best, best_score = delimiter, share * width
    return best


def parse(text: str, delimiter: str) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:
        return []


def _is_evident(rows: list[list[str]], width: int, total: int) -> bool:
    """Prose of some lines with a comma each is not a table: cells are short, and there are several rows."""
    cells = [cell for row in rows for cell in row]
    length = sum(map(len, cells)) / len(cells)
    return total >= 3 and length < 60 if width >= 3 else total >= 5 and length < 30
