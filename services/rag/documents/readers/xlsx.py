"""Excel workbooks (.xlsx): each sheet in blocks of rows with its header, cells as a person sees them.

The XML is read row by row, so a sheet that claims a million rows costs no more than what it holds.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lxml import etree

from services.rag.documents import rows
from services.rag.documents.number_formats import BUILTIN, plain, shown
from services.rag.documents.office import Package, attribute, child, local, opened, top_level
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.sections import Section, pages

COLUMNS = 16_384  # as many as Excel has
_REFERENCE = re.compile(r"([A-Z]{1,3})(\d{1,7})")


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a block of rows. A formula is its saved value.

    Raises:
        ReadError: it is damaged or encrypted, or all sheets are empty.
    """
    with opened(path, options) as package:
        main = next(iter(package.related("", "officeDocument")), "xl/workbook.xml")
        yield from pages(_sheets(package, main), options)


def _sheets(package: Package, main: str) -> Iterator[Section]:
    workbook = package.xml(main)
    if local(workbook) != "workbook":
        raise ReadError(f"inside, the file is not a workbook ({local(workbook)!r}): give it the right ending")
    relations = package.relations(main)
    strings = _strings(package, main)
    codes = _codes(package, main)
    epoch_1904 = attribute(child(workbook, "workbookPr"), "date1904") in ("1", "true")
    for sheet in workbook.iter("{*}sheet"):
        relation = relations.get(sheet.get(_id_name(sheet)) or "")
        if relation is None or relation.type != "worksheet" or relation.target not in package:
            continue  # a chart on a sheet of its own
        notes = ("the sheet is hidden",) if attribute(sheet, "state") in ("hidden", "veryHidden") else ()
        reader = _Sheet(strings, codes, epoch_1904)
        with package.open(relation.target) as part:
            found = reader.rows(top_level(part, "sheetData", relation.target))
            for section in rows.blocks(found, " ".join((sheet.get("name") or "").split())):
                unsaved = ("formulas without a saved value are left out",) if reader.unsaved else ()
                reader.unsaved = False
                yield replace(section, notes=notes + unsaved)


class _Sheet:
    def __init__(self, strings: list[str], codes: list[str], epoch_1904: bool) -> None:
        self._strings = strings
        self._codes = codes
        self._epoch_1904 = epoch_1904
        self.unsaved = False

    def rows(self, elements: Iterator[etree._Element]) -> Iterator[tuple[int, list[str]]]:
        number = 0
        for element in elements:
            if local(element) != "row":
                continue
            given = element.get("r") or ""
            number = int(given) if given.isdigit() and len(given) < 8 else number + 1
            if not len(element):
                continue
            cells: list[str] = []
            for item in element.iterchildren("{*}c"):
                column = _column(item.get("r") or "", len(cells))
                text = self._text(item)
                if text and column < COLUMNS:
                    cells.extend([""] * (column + 1 - len(cells)))
                    cells[column] = text
                elif column >= len(cells) and not item.get("r"):
                    cells.append("")
            if cells:
                yield number, cells

    def _text(self, item: etree._Element) -> str:
        kind = item.get("t") or "n"
        if kind == "inlineStr":
            return _rich(child(item, "is"))
        value = child(item, "v")
        text = value.text or "" if value is not None else ""
        if not text:
            self.unsaved = self.unsaved or (child(item, "f") is not None and value is None)
            return ""
        if kind == "s":
            return self._strings[int(text)] if text.isdigit() and int(text) < len(self._strings) else ""
        if kind == "b":
            return "TRUE" if text == "1" else "FALSE"
        if kind != "n":
            return text.removesuffix("T00:00:00") if kind == "d" else text
        try:
            number = float(text)
        except ValueError:
            return text
        style = item.get("s") or ""
        code = self._codes[int(style)] if style.isdigit() and int(style) < len(self._codes) else ""
        return shown(number, code, epoch_1904=self._epoch_1904) if code else plain(number)


def _strings(package: Package, main: str) -> list[str]:
    out = []
    for name in package.related(main, "sharedStrings")[:1]:
        with package.open(name) as part:
            out = [_rich(item) for item in top_level(part, "sst", name)]
    return out


def _rich(item: etree._Element | None) -> str:
    """The text of a string with formatted parts, without the phonetic guide above it."""
    if item is None:
        return ""
    runs = [item, *item.iterchildren("{*}r")]
    return "".join(t.text or "" for run in runs for t in run.iterchildren("{*}t"))


def _codes(package: Package, main: str) -> list[str]:
    """The number format of each cell style; "" for General."""
    for name in package.related(main, "styles")[:1]:
        root = package.xml(name)
        own = {f.get("numFmtId"): f.get("formatCode") or "" for f in root.iter("{*}numFmt")}
        formats = child(root, "cellXfs")
        ids = [xf.get("numFmtId") or "0" for xf in formats.iterchildren("{*}xf")] if formats is not None else []
        codes = [own.get(i) or (BUILTIN.get(int(i), "") if i.isdigit() else "") for i in ids]
        return ["" if code.lower() in ("general", "@") else code for code in codes]
    return []


def _column(reference: str, following: int) -> int:
    """0-based; cells may leave their reference out, and then follow each other."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return following
    column = 0
    for letter in match[1]:
        column = column * 26 + ord(letter) - 64
    return column - 1


def _id_name(sheet: etree._Element) -> str:
    """The sheet's relation is an attribute in a namespace; its other id is not."""
    return next((str(key) for key in sheet.keys() if str(key).endswith("}id")), "")  # noqa: SIM118 (an element, not a dict)
