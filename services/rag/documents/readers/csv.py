"""CSV and TSV in any encoding and with any usual delimiter: blocks of rows, each with the header."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from services.rag.documents import delimiters, rows
from services.rag.documents.encoding import open_text
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.sections import pages

FIELD_CHARS = 1 << 24  # more is a quotation mark that is never closed


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a block of rows; rows are counted as a spreadsheet does.

    Raises:
        ReadError: it is not text, or a quotation mark is never closed.
    """
    with open_text(path) as file:
        delimiter = delimiters.find(file.read(delimiters.SAMPLE_CHARS + 1), sure=False) or ","
        file.seek(0)
        csv.field_size_limit(FIELD_CHARS)
        yield from pages(rows.blocks(_rows(file, delimiter)), options)


def _rows(file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    lines = (line.replace("\0", "") for line in file)
    try:
        for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), 1):
            yield number, cells
    except csv.Error as error:
        raise ReadError(
            f"row {number + 1} cannot be read: is a quotation mark in it never closed? ({error})"
        ) from error
