"""Make the two sample PDFs in samples/ from their sources in samples/source/.

    python scripts/make_samples.py [--font-zh FONT] [--font-en FONT] [--out DIRECTORY]

The same fonts and the same library versions give the same bytes on every run. Each `# ` heading of a source starts a
page, and a chapter that does not fit on its page is an error: questions.json counts on the page numbers.
"""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fontTools import subset  # type: ignore[import-untyped]
from fontTools.pens.cu2quPen import Cu2QuPen  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from fontTools.ttLib import TTCollection, TTFont, newTable  # type: ignore[import-untyped]
from fpdf import FPDF

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("qingshi-storage-handbook.zh", "harrow-h2-manual.en")
# where Debian and Ubuntu put these fonts
FONTS = {
    "zh": (Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"), "fonts-noto-cjk"),
    "en": (Path("/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf"), "fonts-noto-core"),
}
CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

MARGIN = 22.0
TEXT_WIDTH = 210.0 - 2 * MARGIN
BOTTOM = 297.0 - 19.0
INK = (38, 42, 48)
GREY = (112, 118, 126)

WIDE = r"[⺀-鿿　-〿＀-￯“”‘’—…]"
CLOSING = "，。、；：？！）》」』”’…％"
OPENING = "（《「『“‘"


class SampleError(Exception):
    """Something the person who runs this script can put right."""


# ---------------------------------------------------------------- sources


@dataclass
class Block:
    kind: str  # h1, h2, p, step, note, table
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Source:
    name: str
    meta: dict[str, str]
    blocks: list[Block]
    characters: str

    @property
    def chinese(self) -> bool:
        return self.meta["lang"].startswith("zh")


def page_number(lang: str, number: int) -> str:
    return f"第 {number} 页" if lang.startswith("zh") else f"Page {number}"


def read_source(path: Path) -> Source:
    """Read `key: value` lines, then a small part of Markdown: headings, paragraphs, steps, notes and tables."""
    text = path.read_text(encoding="utf-8")
    head, _, body = text.partition("\n\n")
    meta = dict(line.split(": ", 1) for line in head.splitlines())
    blocks: list[Block] = []
    for line in body.splitlines():
        if line.startswith("# "):
            blocks.append(Block("h1", line[2:]))
        elif line.startswith("## "):
            blocks.append(Block("h2", line[3:]))
        elif line.startswith("> "):
            blocks.append(Block("note", line[2:]))
        elif line.startswith("| "):
            row = [cell.strip() for cell in line.strip("|").split("|")]
            if blocks[-1].kind != "table" or blocks[-1].text == "closed":
                blocks.append(Block("table"))
            if blocks[-1].rows and len(row) != len(blocks[-1].rows[0]):
                raise SampleError(f"{path.name}: this table row has {len(row)} cells: {line}")
            blocks[-1].rows.append(row)
        elif re.match(r"\d+\. ", line):
            blocks.append(Block("step", line))
        elif line:
            blocks.append(Block("p", line))
        elif blocks and blocks[-1].kind == "table":
            blocks[-1].text = "closed"
    characters = text + page_number(meta["lang"], 1234567890)
    return Source(path.stem, meta, blocks, characters)


# ---------------------------------------------------------------- fonts


def face_number(path: Path) -> int:
    """The simplified Chinese face of a font collection, its first face if none is named so."""
    if path.suffix.lower() not in {".ttc", ".otc"}:
        return 0
    with TTCollection(str(path), lazy=True) as collection:
        names = [str(face["name"].getDebugName(1)) for face in collection.fonts]
    return next((number for number, name in enumerate(names) if name.endswith(" SC") and "Mono" not in name), 0)


def prepare_font(path: Path, characters: str, out: Path) -> Path:
    """Write the part of a font that the text needs, with TrueType outlines.

    Fonts with PostScript outlines are converted: embedded as they are, they need a character map of their own in the
    PDF, which makes pypdf put a space after every character.
    """
    font = TTFont(str(path), fontNumber=face_number(path), recalcTimestamp=False)
    wanted = {ord(character) for character in characters if character >= " "}
    missing = sorted(wanted - set(font.getBestCmap()))
    if missing:
        raise SampleError(f"{path} has no glyph for: {' '.join(map(chr, missing))}")
    options = subset.Options(layout_features=[], hinting=False, notdef_outline=True, recalc_timestamp=False)
    options.drop_tables += ["vhea", "vmtx", "VORG", "BASE", "GSUB", "GPOS", "GDEF"]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    if "CFF " in font:
        to_truetype(font)
    font.save(str(out), reorderTables=True)
    return out


def to_truetype(font: TTFont) -> None:
    """Replace cubic outlines by quadratic ones, to a thousandth of the em."""
    order, glyphs = font.getGlyphOrder(), font.getGlyphSet()
    tolerance = font["head"].unitsPerEm / 1000
    outlines = {}
    for name in order:
        pen = TTGlyphPen(None)
        glyphs[name].draw(Cu2QuPen(pen, tolerance, reverse_direction=True))
        outlines[name] = pen.glyph()
    font["loca"] = newTable("loca")
    font["glyf"] = glyf = newTable("glyf")
    glyf.glyphOrder, glyf.glyphs = order, outlines
    del font["CFF "]
    for name, glyph in outlines.items():
        glyph.recalcBounds(glyf)
        advance, _ = font["hmtx"][name]
        font["hmtx"][name] = (advance, getattr(glyph, "xMin", 0))
    font["maxp"] = maxp = newTable("maxp")
    maxp.tableVersion = 0x00010000
    maxp.numGlyphs = len(order)
    for limit in ("Zones", "TwilightPoints", "Storage", "FunctionDefs", "InstructionDefs", "StackElements"):
        setattr(maxp, f"max{limit}", 0)
    maxp.maxZones = 1
    maxp.maxSizeOfInstructions = maxp.maxComponentElements = 0
    font["post"].formatType = 3.0
    font.sfntVersion = "\000\001\000\000"


def find_font(given: Path | None, language: str) -> Path:
    default, package = FONTS[language]
    path = given or default
    if not path.is_file():
        raise SampleError(
            f"no font at {path}\nInstall the Debian package {package}, or name another openly licensed font"
            f" with --font-{language} PATH."
        )
    return path


def bold_of(regular: Path) -> Path:
    """The bold font beside a regular one, or the regular one itself."""
    bold = regular.with_name(regular.name.replace("Regular", "Bold"))
    return bold if bold.is_file() else regular


# ---------------------------------------------------------------- layout


def pieces(text: str) -> list[str]:
    """Cut a text where a line may end: at spaces in English, after any character in Chinese.

    Punctuation stays with its neighbour, and a number with its unit.
    """
    found: list[str] = []
    for token in re.findall(rf"{WIDE}|(?:(?!{WIDE})\S)+|\s+", text):
        last = found[-1] if found else ""
        word = last.rstrip()
        keep = (
            token.isspace()
            or (last and (token in CLOSING or last[-1] in OPENING))
            or (last != word and word[-1:].isdigit() and not re.match(r"\d", token))
        )
        if found and keep:
            found[-1] += token
        else:
            found.append(token)
    return found


class Book(FPDF):
    """One sample document: A4, a running head, a page number, and only what the sources use."""

    def __init__(self, source: Source, regular: Path, bold: Path) -> None:
        super().__init__(format="A4")
        self.source = source
        red, green, blue = (int(part) for part in source.meta["accent"].split())
        self.accent = (red, green, blue)
        self.size = 11.0 if source.chinese else 10.5
        self.leading = 6.7 if source.chinese else 5.4
        self.chapter = self.previous = ""
        self.set_creation_date(CREATED)
        self.set_producer("docduet scripts/make_samples.py")
        self.set_title(source.meta["title"])
        self.set_subject(source.meta["subtitle"])
        self.set_author("docduet")
        self.set_lang(source.meta["lang"])
        self.set_margins(MARGIN, 26.0)
        self.set_auto_page_break(False)
        self.c_margin = 0.0
        self.add_font("body", "", regular)
        self.add_font("body", "B", bold)

    def header(self) -> None:
        self.set_xy(MARGIN, 12)
        self.ink("", 8, GREY)
        self.cell(w=TEXT_WIDTH / 2, h=5, text=self.source.meta["head"])
        self.cell(w=TEXT_WIDTH / 2, h=5, text=self.chapter, align="R")
        self.set_draw_color(*self.accent)
        self.set_line_width(0.3)
        self.line(MARGIN, 18, MARGIN + TEXT_WIDTH, 18)
        self.set_xy(MARGIN, 25)

    def footer(self) -> None:
        self.set_xy(MARGIN, -15)
        self.ink("", 8, GREY)
        self.cell(w=TEXT_WIDTH, h=5, text=page_number(self.source.meta["lang"], self.page_no()), align="C")

    def ink(self, style: str, size: float, colour: tuple[int, int, int]) -> None:
        self.set_font("body", style, size)
        self.set_text_color(*colour)

    def lines(self, text: str, width: float) -> list[str]:
        """Break a text into lines no wider than width, in the current font."""
        result = [""]
        for piece in pieces(text):
            if result[-1] and self.get_string_width((result[-1] + piece).rstrip()) > width:
                result.append("")
            result[-1] += piece
        return [line.rstrip() for line in result]

    def prose(self, text: str, leading: float, indent: float = 0.0, hanging: str = "", right: float = 0.0) -> None:
        width = TEXT_WIDTH - indent - right
        lines = self.lines(text, width)
        for number, line in enumerate(lines):
            self.set_x(MARGIN + indent)
            if number == 0 and hanging:
                mark = self.get_string_width(hanging + " ")
                self.set_x(MARGIN + indent - mark)
                self.cell(w=mark + width, h=leading, text=f"{hanging} {line}")
            else:
                self.justify(line, width, last=number == len(lines) - 1)
                self.cell(w=width, h=leading, text=line)
                self.set_char_spacing(0)
            self.ln(leading)

    def justify(self, line: str, width: float, *, last: bool) -> None:
        """Spread a full line of Chinese a little, so that the right edge is even."""
        slack = width - self.get_string_width(line)
        if self.source.chinese and not last and len(line) > 20 and slack < 8:
            self.set_char_spacing((slack - 0.1) * self.k / len(line))

    def table_block(self, rows: list[list[str]]) -> None:
        size, leading, pad = self.size - 0.9, self.leading - 0.55, 2.2
        self.ink("B", size, INK)
        natural = [
            max(self.get_string_width(cell) for cell in column) + 2 * pad + 1 for column in zip(*rows, strict=True)
        ]
        limit = TEXT_WIDTH * 0.45
        natural = [min(width, limit) if sum(natural) > TEXT_WIDTH else width for width in natural]
        widths = [width * TEXT_WIDTH / sum(natural) for width in natural]
        self.ln(1.2)
        for number, row in enumerate(rows):
            self.ink("B" if number == 0 else "", size, (255, 255, 255) if number == 0 else INK)
            cells = [self.lines(cell, width - 2 * pad) for cell, width in zip(row, widths, strict=True)]
            top, height = self.get_y(), max(map(len, cells)) * leading + 2.0
            if number == 0 or number % 2 == 0:
                self.set_fill_color(*(self.accent if number == 0 else (242, 245, 246)))
                self.rect(MARGIN, top, TEXT_WIDTH, height, style="F")
            left = MARGIN
            for cell_lines, width in zip(cells, widths, strict=True):
                for offset, line in enumerate(cell_lines):
                    self.set_xy(left + pad, top + 1.0 + offset * leading)
                    self.cell(w=width - 2 * pad, h=leading, text=line)
                left += width
            self.set_draw_color(206, 212, 216)
            self.set_line_width(0.2)
            self.line(MARGIN, top + height, MARGIN + TEXT_WIDTH, top + height)
            self.set_xy(MARGIN, top + height)
        self.ln(2.6)

    def title_block(self) -> None:
        self.set_fill_color(*self.accent)
        self.rect(MARGIN, 25, 2.2, 19, style="F")
        self.set_xy(MARGIN + 6, 25)
        self.ink("B", 21, self.accent)
        self.cell(w=TEXT_WIDTH - 6, h=11, text=self.source.meta["title"], new_x="LEFT", new_y="NEXT")
        self.ink("", 11, GREY)
        self.cell(w=TEXT_WIDTH - 6, h=7, text=self.source.meta["subtitle"])
        self.set_xy(MARGIN, 48)

    def block(self, block: Block) -> None:
        if self.previous == "step" and block.kind == "p":
            self.ln(1.2)
        self.previous = block.kind
        if block.kind == "h1":
            self.chapter = block.text
            self.add_page()
            if self.page_no() == 1:
                self.title_block()
            self.start_section(block.text)
            self.ink("B", 15, self.accent)
            self.cell(w=TEXT_WIDTH, h=9, text=block.text)
            self.ln(11)
        elif block.kind == "h2":
            self.ln(1.4)
            self.start_section(block.text, level=1)
            self.ink("B", self.size + 1.2, INK)
            self.cell(w=TEXT_WIDTH, h=6.5, text=block.text)
            self.ln(7.0)
        elif block.kind == "p":
            self.ink("", self.size, INK)
            self.prose(block.text, self.leading)
            self.ln(1.5)
        elif block.kind == "step":
            self.ink("", self.size, INK)
            number, _, text = block.text.partition(" ")
            self.prose(text, self.leading, indent=7.0, hanging=number)
            self.ln(0.6)
        elif block.kind == "note":
            self.ln(1.5)
            self.ink("", self.size - 1, GREY)
            top = self.get_y()
            self.prose(block.text, self.leading - 0.6, indent=4.0)
            self.set_fill_color(*self.accent)
            self.rect(MARGIN, top, 0.8, self.get_y() - top, style="F")
        else:
            self.table_block(block.rows)
        if self.get_y() > BOTTOM:
            raise SampleError(f"{self.source.name}: chapter {self.chapter!r} is longer than its page")


def make(name: str, font: Path, out: Path) -> Path:
    source = read_source(ROOT / "samples" / "source" / f"{name}.md")
    with tempfile.TemporaryDirectory() as folder:
        regular = prepare_font(font, source.characters, Path(folder, "regular.ttf"))
        bold = prepare_font(bold_of(font), source.characters, Path(folder, "bold.ttf"))
        book = Book(source, regular, bold)
        for block in source.blocks:
            book.block(block)
        target = out / f"{name}.pdf"
        book.output(str(target))
    print(f"{target.name}: {book.page_no()} pages, {target.stat().st_size / 1000:.0f} kB")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the sample PDFs from samples/source.")
    parser.add_argument("--font-zh", type=Path, metavar="PATH", help=f"default: {FONTS['zh'][0]}")
    parser.add_argument("--font-en", type=Path, metavar="PATH", help=f"default: {FONTS['en'][0]}")
    parser.add_argument("--out", type=Path, default=ROOT / "samples", metavar="DIRECTORY", help="default: samples")
    given = parser.parse_args()
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    try:
        fonts = {"zh": find_font(given.font_zh, "zh"), "en": find_font(given.font_en, "en")}
        given.out.mkdir(parents=True, exist_ok=True)
        for name in SOURCES:
            make(name, fonts[name.rpartition(".")[2]], given.out)
    except SampleError as error:
        print(f"make_samples: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
