"""Documents that tests make, of every format but PDF: by the libraries people use, or by hand where those cannot."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
# A PNG of one pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
)


def make_zip(path: Path, members: Mapping[str, bytes | str], *, compress: bool = True) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_docx(path: Path, body: str, parts: Mapping[str, str] | None = None) -> Path:
    """A DOCX whose body is the XML ``body`` (prefix w); ``parts`` are further ones of word/, by name ("styles")."""
    parts = parts or {}
    relations = "".join(
        f'<Relationship Id="r{i}" Type="{_R}/{name.rstrip("0123456789")}" Target="{name}.xml"/>'
        for i, name in enumerate(parts)
    )
    rels = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    return make_zip(
        path,
        {
            "[Content_Types].xml": f'<Types><Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
            "_rels/.rels": rels.format(f'<Relationship Id="r" Type="{_R}/officeDocument" Target="word/document.xml"/>'),
            "word/document.xml": f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>',
            "word/_rels/document.xml.rels": rels.format(relations),
            **{f"word/{name}.xml": content for name, content in parts.items()},
        },
    )


def paragraph(text: str, properties: str = "", run: str = "") -> str:
    return (
        f'<w:p><w:pPr>{properties}</w:pPr><w:r><w:rPr>{run}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'
    )


def make_xlsx(path: Path, sheets: Mapping[str, Sequence[Sequence[Any]]], **formats: str) -> Path:
    """A workbook by openpyxl. ``formats``: cell ("B2", of the first sheet) to number format."""
    from openpyxl import Workbook

    book = Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    for cell, code in formats.items():
        book.worksheets[0][cell].number_format = code
    book.save(path)
    return path


def make_epub(path: Path, chapters: Mapping[str, str], *, toc: Mapping[str, str] | None = None, **extra: str) -> Path:
    """An EPUB 2: ``chapters`` are file name to XHTML body in reading order, ``toc`` file name to title."""
    items = "".join(f'<item id="c{i}" href="{name}"/>' for i, name in enumerate(chapters))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    points = "".join(
        f"<navPoint><navLabel><text>{title}</text></navLabel><content src='{name}#start'/></navPoint>"
        for name, title in (toc or {}).items()
    )
    xhtml = (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{}</body></html>'
    )
    return make_zip(
        path,
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": CONTAINER,
            "OEBPS/book.opf": f'<package xmlns="http://www.idpf.org/2007/opf"><manifest>{items}'
            f'<item id="ncx" href="toc.ncx"/></manifest><spine toc="ncx">{spine}</spine></package>',
            "OEBPS/toc.ncx": '<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://www.daisy.org/z3986/2005/ncx-2005-1.dtd">'
            f'<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>{points}</navMap></ncx>',
            **{f"OEBPS/{name}": xhtml.format(body) for name, body in chapters.items()},
            **{name.replace("__", "/").replace("_xml", ".xml"): content for name, content in extra.items()},
        },
    )


def encrypt(path: Path, password: str) -> Path:
    """An Office file as Office encrypts it (agile), in place."""
    from msoffcrypto.format.ooxml import OOXMLFile

    out = io.BytesIO()
    with path.open("rb") as file:
        OOXMLFile(file).encrypt(password, out)
    path.write_bytes(out.getvalue())
    return path
