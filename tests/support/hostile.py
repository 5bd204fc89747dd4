"""What becomes of each file of ``shared/data/pdf_bad``: ``python -m tests.support.hostile`` writes docs/hostile-files.md.

Each file is uploaded to the service's library and read and indexed as the service does it; only HTTP is left out. A test
uploads the files again and compares.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.rag.documents import ocr
from services.rag.documents.jobs import JobRunner
from services.rag.documents.pages import PageFailure, PageText
from services.rag.documents.reading import Limits
from services.rag.embeddings import HashEmbedder
from services.rag.errors import RagError
from services.rag.library import Library
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import Job

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
    "five_bytes.pdf": "five bytes of plain text",
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
of which nothing can be read has *failed*, with one reason. An upload that is no document is *refused* at once, with the
HTTP status in brackets.

What a file is, is told by its content: plain text named .pdf is read as plain text, and said to be so below. A file
named .pdf that holds PDF syntax (`1 0 obj <<`, `startxref`, `%%EOF`) and no PDF header is a broken PDF, and so is one with
another name that begins with an object. A .md, .txt, .html or .csv that writes about PDF syntax stays what it is.

| file | what it is | outcome | outcome with OCR |
| --- | --- | --- | --- |
"""


_TAIL = """
## A good file among them

`.venv/bin/pytest -s -k among tests/rag/test_jobs.py` uploads a report of 59 pages alone, then behind all of the files above, with
OCR off, and prints the seconds from its upload until it is indexed. Three runs, on two cores with five to ten times as much work as
they can do:

| readers | files that hang | alone | behind the others | ratio |
| --- | --- | --- | --- | --- |
| 1 | none | 12.9, 9.6, 8.7 s | 14.3, 13.9, 10.6 s | 1.11, 1.45, 1.21 |
| 2 | none | 10.9, 13.7, 6.6 s | 17.5, 11.7, 8.0 s | 1.61, 0.85, 1.21 |
| 2 | 6, uploaded first | 7.7, 8.9, 12.0 s | 26.3, 25.2, 25.1 s | 3.40, 2.82, 2.09 |

None of the files above hangs; those of the last row loop for ever at their first page. A file that takes longer than 2 s no longer
counts as one that keeps others waiting, and gives way to them at the processor. When such files hold every place (readers + 2) and
another file waits, one that gave no text for 5 s (30 s with OCR) is put back; it is read from its start when only such files wait, all
places but one are open to it, and this happens to a file once. So a file that comes later waits for seconds where it waited for
minutes, the time limits of the files that hang. The last row shows what this costs: a place for a few seconds for each of them.
"""


@dataclass
class End:
    """How an upload ended."""

    state: str  # indexed, failed, refused (with the HTTP status)
    format: str = "pdf"
    reason: str = ""
    pages: list[PageText | PageFailure] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Ingestion:
    """The service without its HTTP half."""

    catalog: Catalog
    jobs: JobRunner
    library: Library
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.jobs.on_change = self._tell

    def _tell(self, job_id: str) -> None:
        with self._changed:
            self._changed.notify_all()

    def send(self, path: Path) -> Job:
        """Upload a file. Raises a RagError for one that is refused."""
        with path.open("rb") as file:
            [taken] = self.library.add(file, path.name, collection="default")
        assert taken.job is not None
        return taken.job

    def wait(self, job: Job, seconds: float = 300) -> Job:
        with self._changed:
            assert self._changed.wait_for(lambda: self.catalog.job(job.id).done, seconds), self.catalog.job(job.id)
        return self.catalog.job(job.id)

    def end(self, path: Path) -> End:
        """Upload a file, and what becomes of it."""
        started = time.monotonic()
        try:
            sent = self.send(path)
        except RagError as error:
            return End(f"refused ({error.status})", reason=error.message, seconds=time.monotonic() - started)
        job = self.wait(sent)
        seconds = time.monotonic() - started
        document = self.catalog.document(job.document_id)
        notes: dict[int, list[str]] = {}
        failed: list[PageText | PageFailure] = []
        total = document.pages or 0
        for report in self.catalog.page_reports([document.id]).get(document.id, []):
            if report.failed:
                failed.append(PageFailure(report.page, total, report.message))
            else:
                notes.setdefault(report.page, []).append(report.message)
        texts = [
            PageText(
                page.number,
                total,
                page.text,
                page.label,
                "ocr" if page.method == "ocr" else "text",
                tuple(notes.get(page.number, ())),
            )
            for page in self.catalog.pages_of(document.id).values()
        ]
        pages = sorted([*texts, *failed], key=lambda page: page.number)
        return End(job.state, document.format, job.error or "", pages, seconds)


@contextmanager
def ingestion(folder: Path, *, ocr: bool = False, readers: int = 2) -> Iterator[Ingestion]:
    """The library, the readers and the indexes, over an empty folder."""
    catalog = Catalog(folder)
    indexes = Indexes(catalog, Indexes.open_chroma(folder, None), HashEmbedder(), None)
    limits = Limits()
    jobs = JobRunner(catalog, indexes, limits, ocr=ocr, readers=readers)
    library = Library(catalog, limits, max_upload_mb=10, reader=jobs.reader, jobs=lambda: jobs)
    opened = Ingestion(catalog, jobs, library)
    jobs.start()
    try:
        yield opened
    finally:
        jobs.stop()
        library.close()
        indexes.close()
        catalog.close()


def state(end: End) -> str:
    return end.state if end.format == "pdf" else f"{end.state} as {end.format}"


def told(end: End) -> str:
    """In a line: the words each page begins with, or why it has none."""
    return f"{state(end)}: " + ("; ".join(_runs(end.pages)) or end.reason)


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


def cells(name: str, plain: End, read: End) -> list[str]:
    return [f"`{name}`", WHAT[name], told(plain), "the same" if told(read) == told(plain) else told(read)]


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


if __name__ == "__main__":
    if not ocr.available():
        sys.exit("the table has a column with OCR: install it first (pip install 'docduet[ocr]')")
    with (
        tempfile.TemporaryDirectory() as folder,
        ingestion(Path(folder, "plain")) as plain,
        ingestion(Path(folder, "ocr"), ocr=True) as read,
    ):
        rows = [line(cells(name, plain.end(FOLDER / name), read.end(FOLDER / name))) for name in sorted(WHAT)]
    PAGE.write_text(_HEAD + "".join(rows) + _TAIL, encoding="utf-8")
