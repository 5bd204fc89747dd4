"""Word documents (.docx): sections by headings, from the XML of its parts.

The document is read as a person sees it with all changes accepted: numbers of headings and lists, tables, text boxes,
footnotes; neither deleted nor hidden text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lxml import etree

from services.rag.documents.numbering import Numbering
from services.rag.documents.office import Package, attribute, child, local, opened, top_level
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.rows import table
from services.rag.documents.sections import Block, pages, sections

HIDDEN = "hidden text is left out"
_DROPPED = {"del", "moveFrom", "delText", "instrText", "rPr", "pPr", "Fallback", "rt", "footnoteRef", "endnoteRef"}
_CHARACTERS = {"tab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "ptab": " "}


def read(path: Path, options: Options) -> Iterator[PageText | PageFailure]:
    """One page a section.

    Raises:
        ReadError: it is damaged or encrypted, or has no text.
    """
    with opened(path, options) as package:
        main = next(iter(package.related("", "officeDocument")), "word/document.xml")
        document = _Document(package, main)
        try:
            yield from pages(sections(document.blocks()), options)
        except ReadError as error:
            if document.pictures and "no text" in str(error):
                raise ReadError("the document holds only pictures: save it as PDF and upload that") from error
            raise


@dataclass
class _Style:
    name: str = ""
    based_on: str = ""
    level: int | None = None  # outline level, 1-based; 0 is body text
    numbering: tuple[str | None, int | None] | None = None  # list, level
    hidden: bool | None = None


@dataclass
class _Paragraph:
    """What is collected while a paragraph is walked."""

    text: list[str] = field(default_factory=list)
    after: list[Block] = field(default_factory=list)  # footnotes and text boxes stand after it
    hidden: bool = False
    pictures: int = 0


class _Document:
    def __init__(self, package: Package, main: str) -> None:
        self._package = package
        self._main = main
        self._styles = {}
        self._default_style = ""
        for name in package.related(main, "styles")[:1]:
            for style in package.xml(name).iterchildren("{*}style"):
                key = attribute(style, "styleId") or ""
                self._styles[key] = _style(style)
                if attribute(style, "default") in ("1", "true") and attribute(style, "type") == "paragraph":
                    self._default_style = key
        numbering = package.related(main, "numbering")[:1]
        self._numbering = Numbering(package.xml(numbering[0]) if numbering else None)
        self._notes = {kind: self._read_notes(kind) for kind in ("footnote", "endnote")}
        self._note_count = 0
        self.pictures = 0

    def _read_notes(self, kind: str) -> dict[str, etree._Element]:
        out = {}
        for name in self._package.related(self._main, f"{kind}s"):
            for note in self._package.xml(name).iterchildren(f"{{*}}{kind}"):
                if attribute(note, "type") in (None, "normal"):  # the others are the lines above them
                    out[attribute(note, "id") or ""] = note
        return out

    def blocks(self) -> Iterator[Block]:
        with self._package.open(self._main) as part:
            for element in top_level(part, "body", self._main):
                yield from self._block(element)
        yield from self._margins()

    def _margins(self) -> Iterator[Block]:
        """Headers and footers, each line once: a letterhead may say what the text does not."""
        lines: dict[str, None] = {}
        for kind in ("header", "footer"):
            for name in self._package.related(self._main, kind):
                for block in self._children(self._package.xml(name)):
                    if sum(c.isalpha() for c in block.text) > 3:  # more than "Page 3"'s number
                        lines[block.text] = None
        if lines:
            yield Block("Headers and footers", level=1)
            yield from map(Block, lines)

    def _children(self, element: etree._Element) -> Iterator[Block]:
        for item in element.iterchildren():
            yield from self._block(item)

    def _block(self, element: etree._Element) -> Iterator[Block]:
        match local(element):
            case "p":
                yield from self._paragraph(element)
            case "tbl":
                yield from self._table(element)
            case "AlternateContent":
                for choice in element.iterchildren("{*}Choice"):
                    yield from self._children(choice)
                    break
            case "sdt" | "sdtContent" | "ins" | "moveTo" | "customXml" | "txbxContent":
                yield from self._children(element)

    def _paragraph(self, element: etree._Element) -> Iterator[Block]:
        properties = child(element, "pPr")
        style_id = attribute(child(properties, "pStyle"), "val") or self._default_style
        paragraph = _Paragraph()
        self._run(element, paragraph, bool(self._inherited(style_id, "hidden")))
        text = "".join(paragraph.text).strip()
        self.pictures += paragraph.pictures
        notes = (HIDDEN,) * paragraph.hidden + ("pictures are not read",) * bool(paragraph.pictures)
        if text:
            level = _outline(properties)
            if level is None:
                level = self._inherited(style_id, "level") or 0
            number = self._number(properties, style_id)
            yield Block(f"{number} {text}" if number else text, level=level, notes=notes)
        elif notes:
            yield Block("", notes=notes)
        yield from paragraph.after

    def _number(self, properties: etree._Element | None, style_id: str) -> str:
        own = _numbering(properties)
        inherited = self._inherited(style_id, "numbering") or (None, None)
        num = own[0] if own and own[0] is not None else inherited[0]
        level = own[1] if own and own[1] is not None else inherited[1]
        if own and own[0] is not None and level is None:
            level = 0
        return self._numbering.next(num, level, style_id) if num not in (None, "0") else ""

    def _inherited(self, style_id: str, what: str) -> Any:
        for _ in range(20):  # styles are based on styles; a hostile file makes a ring of them
            style = self._styles.get(style_id)
            if style is None:
                return None
            if (value := getattr(style, what)) is not None:
                return value
            style_id = style.based_on
        return None

    def _run(self, element: etree._Element, paragraph: _Paragraph, hidden: bool) -> None:
        """Collect the text below ``element``; libxml2 refuses XML nested deeper than 256."""
        for item in element.iterchildren():
            name = local(item)
            if name in _DROPPED or not name:
                continue
            if name in ("t", "sym") or name in _CHARACTERS:
                text = item.text or "" if name == "t" else _CHARACTERS.get(name, "")
                if hidden:
                    paragraph.hidden = paragraph.hidden or bool(text.strip())
                else:
                    paragraph.text.append(text)
            elif name in ("footnoteReference", "endnoteReference"):
                self._note(name.removesuffix("Reference"), attribute(item, "id") or "", paragraph)
            elif name == "txbxContent":
                paragraph.after.extend(self._children(item))
            elif name == "AlternateContent":
                # The same drawing for new and for old programs: one is enough.
                choice = child(item, "Choice")
                self._run(choice if choice is not None else item, paragraph, hidden)
            elif name == "oMath":
                paragraph.text.append("".join(t.text or "" for t in item.iter("{*}t")))
            elif name == "r":
                self._run(item, paragraph, self._is_hidden(item, hidden))
            else:
                paragraph.pictures += name in ("blip", "imagedata")
                self._run(item, paragraph, hidden)

    def _is_hidden(self, run: etree._Element, inherited: bool) -> bool:
        properties = child(run, "rPr")
        if (own := _toggle(properties, "vanish")) is not None:
            return own
        style = attribute(child(properties, "rStyle"), "val")
        return inherited or bool(style and self._inherited(style, "hidden"))

    def _note(self, kind: str, key: str, paragraph: _Paragraph) -> None:
        note = self._notes[kind].pop(key, None)  # a note that refers to itself is read once
        if note is None:
            return
        self._note_count += 1
        mark = f"[^{self._note_count}]"
        paragraph.text.append(mark)
        text = " ".join(block.text for block in self._children(note) if block.text)
        paragraph.after.append(Block(f"{mark}: {text}"))

    def _table(self, element: etree._Element) -> Iterator[Block]:
        rows: list[list[str]] = []
        notes: dict[str, None] = {}
        cells = [cell for row in _rows(element) for cell in _cells(row)]
        if len(cells) == 1:  # a frame around text
            yield from self._children(cells[0])
            return
        for row in _rows(element):
            properties = child(row, "trPr")
            if child(properties, "del") is not None:
                continue
            if _toggle(properties, "hidden"):
                notes[HIDDEN] = None
                continue
            texts = [""] * _integer(child(properties, "gridBefore"))
            for cell in _cells(row):
                shape = child(cell, "tcPr")
                merged = child(shape, "vMerge")
                blocks = list(self._children(cell))
                notes.update(dict.fromkeys(note for block in blocks for note in block.notes))
                # A merged cell's text stands in its first row and column only.
                above = merged is not None and attribute(merged, "val") != "restart"
                texts.append("" if above else " ".join(block.text for block in blocks if block.text))
                texts.extend([""] * (_integer(child(shape, "gridSpan"), 1) - 1))
            rows.append(texts)
        yield Block(table(rows), "table", notes=tuple(notes))


def _rows(element: etree._Element) -> Iterator[etree._Element]:
    for item in element.iterchildren():
        if local(item) == "tr":
            yield item
        elif local(item) in ("sdt", "sdtContent", "ins", "customXml"):
            yield from _rows(item)


def _cells(row: etree._Element) -> Iterator[etree._Element]:
    for item in row.iterchildren():
        if local(item) == "tc":
            yield item
        elif local(item) in ("sdt", "sdtContent", "customXml"):
            yield from _cells(item)


def _style(element: etree._Element) -> _Style:
    name = (attribute(child(element, "name"), "val") or "").lower()
    properties = child(element, "pPr")
    level = _outline(properties)
    if level is None and name.startswith("heading ") and name[8:].isdigit():
        level = int(name[8:])
    elif level is None and name == "title":
        level = 1
    return _Style(
        name,
        attribute(child(element, "basedOn"), "val") or "",
        level,
        _numbering(properties),
        _toggle(child(element, "rPr"), "vanish"),
    )


def _outline(properties: etree._Element | None) -> int | None:
    value = attribute(child(properties, "outlineLvl"), "val")
    if value is None or not value.isdigit():
        return None
    return int(value) + 1 if int(value) < 9 else 0


def _numbering(properties: etree._Element | None) -> tuple[str | None, int | None] | None:
    element = child(properties, "numPr")
    if element is None:
        return None
    level = attribute(child(element, "ilvl"), "val")
    return attribute(child(element, "numId"), "val"), int(level) if level and level.isdigit() else None


def _toggle(properties: etree._Element | None, name: str) -> bool | None:
    element = child(properties, name)
    return None if element is None else attribute(element, "val") not in ("0", "false", "off")


def _integer(element: etree._Element | None, default: int = 0) -> int:
    """A small count; a hostile span of millions of columns is the default."""
    value = attribute(element, "val") or ""
    return int(value) if value.isdigit() and len(value) <= 2 else default
