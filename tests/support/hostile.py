"""What becomes of each file of ``shared/data/pdf_bad``: ``python -m tests.support.hostile`` writes docs/hostile-files.md.

The table in the docs is what the readers do; a test reads the files again and compares.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from services.rag.documents import ocr
from services.rag.documents.pages import Options, PageFailure, PageText, ReadError
from services.rag.documents.readers import pdf

ROOT = Path(__file__).parents[2]
FOLDER = ROOT.parent / "shared" / "data" / "pdf_bad"
PAGE = ROOT / "docs" / "hostile-files.md"

# What a person who opens the file sees.
WHAT = {
    "arabic_rtl.pdf": "Latin and right-to-left Arabic, with replacement text (/ActualText)",
    "bad1586.pdf": "a broken object; one line",
    "cidfont_cmap_overflow.pdf": "twelve black boxes; the character map gives rare ideographs",
    "cjk_90ms_rksj.pdf": "Japanese in the encoding 90ms-RKSJ, font not embedded",
    "cjk_noembed_identity.pdf": "Japanese by glyph number, font not embedded",
    "cjk_non_unicode_cmap_791.pdf": "a Czech table row in a font without a map to Unicode",
    "cjk_simfang.pdf": "Chinese in a font known by its name only",
    "cjk_vertical.pdf": "vertical Japanese on page 1, then two pages with a rule and no text",
    "content_stream_errors.pdf": "four pages of one word, three with broken drawing instructions",
    "corrupted_zen.pdf": "a program listing; broken cross-references",
    "count_9999999999.pdf": "one page where the file claims 9,999,999,999",
    "cyclic_toc.pdf": "an outline that runs in a circle; a blank page",
    "enc_aes256_r6.pdf": "AES-256 (revision 6), needs a password",
    "enc_no_id.pdf": "encrypted without /ID, opens without a password; three scanned pages, two of them blank",
    "enc_password_needed.pdf": "needs a password",
    "enc_r2-user-password.pdf": "RC4 (revision 2), needs a password",
    "enc_r6-empty-password.pdf": "AES-256, opens with the empty password",
    "evil_xobjects_cycle.pdf": "drawings that draw themselves, smaller each time",
    "five_bytes.pdf": "five bytes",
    "helloworld_bad.pdf": "broken cross-references; one line",
    "invisible_text_layer.pdf": "a visible line and an invisible one on a blank place",
    "malformed_932.pdf": "a scan of a Chinese notice with three numbers as text",
    "no_contents.pdf": "a page without contents",
    "not_a_pdf_odt.pdf": "an OpenDocument text named .pdf",
    "null_in_kids.pdf": "a blank page with a null where a resource should be",
    "pages_tree_cycle.pdf": "a page tree that runs in a circle after page 1",
    "pdfbox_fuzzed.pdf": "random bytes in the page's contents; nothing can be drawn",
    "poppler742_fuzzed.pdf": "random bytes in the page tree",
    "qpdf_141a.pdf": "82 bytes: cross-references that claim to be huge",
    "qpdf_202_deep_nesting.pdf": "a LaTeX document with 300 kB of brackets inside brackets",
    "qpdf_pages_loop.pdf": "a page tree that contains itself",
    "redhat_1531897.pdf": "random bytes in the trailer",
    "scan_docling_ocr_test.pdf": "a scan of one sentence",
    "scan_image_only_1.pdf": "six pictures of a few pixels; a word outside of the page",
    "xref_missing.pdf": "no cross-references; one line",
    "zero_bytes.pdf": "nothing",
    "zero_pages.pdf": "a whole PDF of no pages",
}

_HEAD = """# Hostile files

What becomes of damaged, encrypted, scanned and wrongly encoded PDFs: one row a file. They come from the test suites of
pdf.js, pdfminer.six, pdfplumber, pikepdf, poppler, pypdf, qpdf and docling, and are not part of this project. A test
reads each of them again and compares with this table, which `python -m tests.support.hostile` writes.

A file is *indexed* when at least one of its pages has text; each page that has none is named with its reason. A file
of which nothing can be read has *failed*, with one reason.

| file | what it is | outcome | outcome with OCR |
| --- | --- | --- | --- |
"""


def outcome(path: Path, options: Options) -> str:
    """How the file ends, in a line: the words each page begins with, or why it has none."""
    try:
        return told(list(pdf.read(path, options)))
    except ReadError as error:
        return f"failed: {error}"


def told(pages: list[PageText | PageFailure]) -> str:
    state = "indexed" if any(isinstance(page, PageText) for page in pages) else "failed"
    return f"{state}: " + "; ".join(_runs(pages))


def _runs(pages: list[PageText | PageFailure]) -> Iterator[str]:
    """A line a page; pages that end the same way share one."""
    said = [(_said(page), page.number) for page in pages]
    at = 0
    while at < len(said):
        end = at
        while end + 1 < len(said) and said[end + 1][0] == said[at][0]:
            end += 1
        first, last = said[at][1], said[end][1]
        yield f"{f'page {first}' if first == last else f'pages {first} to {last}'} {said[at][0]}"
        at = end + 1


def _said(page: PageText | PageFailure) -> str:
    if isinstance(page, PageFailure):
        return f"failed ({page.reason})"
    text = " ".join(page.text.split())
    text = f"“{text[:37]}…”" if len(text) > 40 else f"“{text}”"
    notes = f" ({'; '.join(page.notes)})" if page.notes else ""
    return f"{'by OCR ' if page.method == 'ocr' else ''}{text}{notes}"


def row(path: Path) -> list[str]:
    plain = outcome(path, Options())
    read = outcome(path, Options(ocr=True))
    return [f"`{path.name}`", WHAT[path.name], plain, "the same" if read == plain else read]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    if not ocr.available():
        sys.exit("the table has a column with OCR: install it first (pip install 'docduet[ocr]')")
    PAGE.write_text(_HEAD + "".join(line(row(FOLDER / name)) for name in sorted(WHAT)), encoding="utf-8")
