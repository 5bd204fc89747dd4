"""Reads a PDF page by page with pypdf. Runs inside the reading process (`worker.py`), never in the service."""

from collections.abc import Iterator
from pathlib import Path

from pypdf import PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

from services.rag.documents.reading import PageFailure, PageText, ReadError
from services.rag.documents.reflow import reflow

MAGIC = b"%PDF-"


def is_pdf(head: bytes) -> bool:
    """By content: the header may follow some junk, as PDF readers allow (ISO 32000-1, annex H)."""
    return MAGIC in head[:1024]


def page_count(path: Path) -> int:
    return len(_open(path).pages)


def read(path: Path) -> Iterator[PageText | PageFailure]:
    """Every page in order, with its text or the reason why it has none.

    Raises:
        ReadError: nothing at all can be read: not a PDF, encrypted, no pages.
    """
    reader = _open(path)
    total = len(reader.pages)
    if total == 0:
        raise ReadError("the PDF has no pages")
    for number in range(1, total + 1):
        try:
            text = reflow(reader.pages[number - 1].extract_text())
        except Exception as error:
            yield PageFailure(number, total, f"the page cannot be read ({type(error).__name__}: {error})"[:300])
            continue
        if any(c.isalnum() for c in text):
            yield PageText(number, total, text)
        else:
            yield PageFailure(number, total, "the page has no text (a scan or a picture); OCR is off")


def _open(path: Path) -> PdfReader:
    try:
        reader = PdfReader(path, strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ReadError("the PDF is protected with a password: remove the password and upload it again")
        len(reader.pages)
    except (FileNotDecryptedError, DependencyError) as error:
        raise ReadError(f"the PDF is encrypted and cannot be opened: {error}") from error
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReadError(f"the file is not a readable PDF: {error}"[:300]) from error
    return reader
