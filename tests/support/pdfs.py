"""PDFs that tests make: plain Latin text in a core font, columns, tables, pictures without text, encrypted and odd ones."""

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import AccessPermission
from PIL import Image, ImageDraw


def make_pdf(path: Path, pages: Sequence[str | None], *, password: str | None = None) -> Path:
    """A PDF with one paragraph a page; None makes a page with a drawing and no text, as a scan has."""
    pdf = FPDF()
    for text in pages:
        pdf.add_page()
        if text is None:
            pdf.rect(20, 20, 100, 60, style="F")
        else:
            pdf.set_font("Helvetica", size=11)
            pdf.multi_cell(0, 6, text)
    if password:
        pdf.set_encryption(owner_password="owner", user_password=password, permissions=AccessPermission.none())
    pdf.output(str(path))
    return path


def make_columns(
    path: Path, pages: Sequence[Sequence[str]], *, head: str = "", foot: str = "", title: str = ""
) -> Path:
    """Pages of columns, one paragraph a column, drawn line by line across the columns, as some printers do.

    ``head`` and ``foot`` stand on each page; "#" in them is the page number. Words are not hyphenated.
    """
    pdf = FPDF()
    for number, columns in enumerate(pages, 1):
        pdf.add_page()
        pdf.set_font("Helvetica", size=9)
        for text, y in ((head, 10.0), (foot, 285.0)):
            if text:
                pdf.text(20, y, text.replace("#", str(number)))
        top = 25.0
        if title:
            pdf.set_font("Helvetica", size=18)
            pdf.text(20, top, title)
            top += 12
        pdf.set_font("Helvetica", size=10)
        measure = (170 - 8 * (len(columns) - 1)) / len(columns)
        wrapped = [wrap(pdf, text, measure) for text in columns]
        for row in range(max(map(len, wrapped))):
            for column, lines in enumerate(wrapped):
                if row < len(lines):
                    pdf.text(20 + column * (measure + 8), top + 5 * row, lines[row])
    pdf.output(str(path))
    return path


def wrap(pdf: FPDF, text: str, measure: float) -> list[str]:
    """Lines of ``text`` that fit ``measure`` mm; a word that ends with a soft hyphen may be parted there."""
    lines, line = [], ""
    for word in text.split():
        if line and pdf.get_string_width(f"{line} {word.replace(SOFT, '')}") > measure:
            first, _, rest = word.partition(SOFT)
            if rest and pdf.get_string_width(f"{line} {first}-") <= measure:
                lines.append(f"{line} {first}-")
                line = rest
                continue
            lines.append(line)
            line = ""
        line = f"{line} {word.replace(SOFT, '')}".strip()
    return [*lines, line]


SOFT = "\u00ad"


def make_table(path: Path, rows: Sequence[Sequence[str]], *, ruled: bool, above: str = "", below: str = "") -> Path:
    """A table between two paragraphs; with ruling lines, long cells are broken into lines."""
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("Helvetica", size=10)
    pdf.multi_cell(0, 5, above, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(4)
    with pdf.table(borders_layout="ALL" if ruled else "NONE", first_row_as_headings=False) as table:
        for row in rows:
            table.row(row)
    pdf.ln(4)
    pdf.multi_cell(0, 5, below)
    pdf.output(str(path))
    return path


def make_hidden(path: Path, visible: str, hidden: str, how: str) -> Path:
    """A page with a visible paragraph and one that nobody sees: "mode 3", "white", "tiny", "outside", "on its ground"."""
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("Helvetica", size=11)
    if visible:
        pdf.multi_cell(0, 6, visible)
    if how == "mode 3":
        with pdf.local_context(text_mode="INVISIBLE"):
            pdf.text(20, 150, hidden)
    elif how == "white":
        pdf.set_text_color(255, 255, 255)
        pdf.text(20, 150, hidden)
    elif how == "tiny":
        pdf.set_font_size(0.5)
        pdf.text(20, 150, hidden)
    elif how == "outside":
        pdf.text(20, 400, hidden)
    elif how == "on its ground":
        pdf.set_fill_color(30, 60, 120)
        pdf.rect(10, 140, 180, 20, style="F")
        pdf.set_text_color(30, 60, 120)
        pdf.text(20, 150, hidden)
    elif how == "white on dark":  # seen by everyone: a heading on a bar
        pdf.set_fill_color(30, 60, 120)
        pdf.rect(10, 140, 180, 20, style="F")
        pdf.set_text_color(255, 255, 255)
        pdf.text(20, 150, hidden)
    else:
        raise ValueError(how)
    pdf.output(str(path))
    return path


def make_scan(path: Path, shown: Sequence[str], layer: Sequence[tuple[int, str]] = ()) -> Path:
    """A page-filling picture with the lines ``shown``; ``layer``: invisible text over it, (line number, text)."""
    picture = Image.new("L", (1240, 1754), 255)
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(shown):
        draw.text((118, 100 + 60 * line), text, fill=0, font_size=36)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    pdf = FPDF()
    pdf.add_page()
    pdf.image(buffer, 0, 0, pdf.w, pdf.h)
    pdf.set_font("Helvetica", size=17)
    for line, text in layer:
        with pdf.local_context(text_mode="INVISIBLE"):
            pdf.text(20, (135 + 60 * line) * pdf.h / 1754, text)
    pdf.output(str(path))
    return path


def make_raw(
    path: Path, content: str, *, font: str = "", extra: Sequence[str] = (), page: str = "", count: int = 1
) -> Path:
    """A PDF written by hand: one page with ``content``; ``extra`` are objects 6 and on; ``count`` is what /Count claims."""
    stream = zlib.compress(content.encode("latin-1"))
    bodies: list[bytes] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [3 0 R] /Count {count} >>".encode(),
        (
            "<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> "
            + (page or "/MediaBox [0 0 595 842]")
            + " >>"
        ).encode(),
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(stream), stream),
        (font or "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>").encode(),
        *(body.encode("latin-1") for body in extra),
    ]
    out = io.BytesIO(b"%PDF-1.7\n")
    out.seek(0, io.SEEK_END)
    places = []
    for number, body in enumerate(bodies, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, table))
    path.write_bytes(out.getvalue())
    return path


def lines_content(lines: Sequence[str], *, size: int = 11) -> str:
    """A content stream that shows the lines from the top left."""
    shown = (line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in lines)
    return f"BT /F {size} Tf 14 TL 50 780 Td " + " ".join(f"({line}) Tj T*" for line in shown) + " ET"


def make_wrong_map(path: Path, lines: Sequence[str], to: dict[str, str]) -> Path:
    """Text whose font says that its characters are others: ``to`` gives what for what, as a broken /ToUnicode does."""
    pairs = "\n".join(f"<{ord(a):02X}> <{ord(b):04X}>" for a, b in to.items())
    cmap = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
        f"1 begincodespacerange <00> <FF> endcodespacerange\n{len(to)} beginbfchar\n{pairs}\nendbfchar\nendcmap end end"
    )
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>"
    extra = [f"<< /Length {len(cmap)} >>\nstream\n{cmap}\nendstream"]
    return make_raw(path, lines_content(lines), font=font, extra=extra)


def make_unmapped(path: Path, glyphs: Sequence[int]) -> Path:
    """Text of a composite font that has glyph numbers and no way to Unicode."""
    shown = "".join(f"{g:04X}" for g in glyphs)
    font = "<< /Type /Font /Subtype /Type0 /BaseFont /Nobody /Encoding /Identity-H /DescendantFonts [6 0 R] >>"
    extra = [
        "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Nobody /CIDSystemInfo "
        "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /FontDescriptor 7 0 R /DW 600 >>",
        "<< /Type /FontDescriptor /FontName /Nobody /Flags 4 /FontBBox [0 -200 1000 900] /ItalicAngle 0 /Ascent 900 "
        "/Descent -200 /CapHeight 700 /StemV 80 >>",
    ]
    return make_raw(path, f"BT /F 12 Tf 50 780 Td <{shown}> Tj ET", font=font, extra=extra)
