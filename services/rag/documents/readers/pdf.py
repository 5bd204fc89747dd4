"""Reads a PDF page by page. Runs inside the reading process, never in the service.

PDFium reads; pypdf is asked only where PDFium cannot open a file at all. Each page passes a gate: text that can be seen
and is writing is indexed; everything else goes to OCR, where that is allowed, or is a failure with its reason.
"""

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from services.rag.documents.ocr import absent
from services.rag.documents.pages import Options, Page, PageFailure, PageText, ReadError
from services.rag.documents.quality import mojibake
from services.rag.documents.readers import _running
from services.rag.documents.readers._layout import lay_out
from services.rag.documents.readers._words import PICTURE_SHARE, Drawn, read_page
from services.rag.documents.reflow import clean, join, reflow

# Pages looked at ahead of the first, so that its running head is known too. Few, because a page that hangs or crashes
# the parser is blamed on the page that is read: later pages are compared with those before them only.
AHEAD = 2
# A page tree may claim any number of pages; after so many that are not there, the rest is taken as not there either.
MISSING_IN_A_ROW = 50
# With fewer letters than this on a picture that fills the page, the page's text is in the picture.
FEW_LETTERS = 12
# With fewer than this, and pictures over this share of the page, it may be; where OCR is on, it looks.
SOME_LETTERS = 200
SOME_PICTURE = 0.3
OCR_DPI = 200
OCR_PIXELS = 12_000_000

_NEEDED = "the PDF needs a password: upload it again with the form field 'password'"
_WRONG = "the password does not open the PDF: upload it again with the right one in the form field 'password'"
_PROTECTED = "the PDF is protected in a way that a password does not open: upload an unprotected copy"


class _Seen(NamedTuple):
    """A page between reading and laying out: what it draws, or why it cannot be read."""

    number: int
    drawn: Drawn | None
    margins: list[_running.Margin]
    error: str
    missing: bool  # the page itself cannot be loaded


def read(path: Path, options: Options) -> Iterator[Page]:
    """Every page in order, with its text or the reason why it has none.

    Raises:
        ReadError: nothing at all can be read: not a PDF, a password is missing or wrong, no pages.
    """
    document = _open(path, options)
    if document is None:
        yield from _read_with_pypdf(path, options)
        return
    with closing(document):
        yield from _Reader(document, options).pages()


def _open(path: Path, options: Options) -> pdfium.PdfDocument | None:
    """None where PDFium cannot make sense of the file."""
    for password in (None, options.password):
        try:
            document = pdfium.PdfDocument(path, password=password)
            if len(document) == 0:
                document.close()
                return None
            return document
        except pdfium.PdfiumError as error:
            if error.err_code == pdfium_c.FPDF_ERR_SECURITY:
                raise ReadError(_PROTECTED) from error
            if error.err_code != pdfium_c.FPDF_ERR_PASSWORD:
                return None
        except (OSError, ValueError) as error:
            raise ReadError(f"the file cannot be opened: {error}"[:300]) from error
        if not options.password:
            raise ReadError(_NEEDED)
    raise ReadError(_WRONG)


class _Reader:
    def __init__(self, document: pdfium.PdfDocument, options: Options) -> None:
        self._document = document
        self._options = options
        self._total = len(document)
        self._heads = _running.RunningHeads()
        self._ahead: deque[_Seen] = deque()
        self._ocr: Any = None

    def pages(self) -> Iterator[Page]:
        missing = loaded = 0
        for number in range(self._options.first_page, self._total + 1):
            seen = self._next(number)
            missing = missing + 1 if seen.missing else 0
            loaded += not seen.missing
            if missing > MISSING_IN_A_ROW:
                what = f"the file claims {self._total} pages, but {missing} in a row are not there"
                if not loaded and self._options.first_page == 1:
                    raise ReadError(f"the PDF is broken: {what}")
                yield PageFailure(number, number, f"{what}; the rest is taken as not there")
                return
            yield self._page(seen)

    def _next(self, number: int) -> _Seen:
        if not self._ahead:
            self._ahead.append(self._see(number))
            if number == 1:
                for later in range(2, min(1 + AHEAD, self._total) + 1):
                    self._ahead.append(self._see(later))
        return self._ahead.popleft()

    def _see(self, number: int) -> _Seen:
        try:
            page = self._document[number - 1]
        except pdfium.PdfiumError as error:
            return _Seen(number, None, [], f"the page cannot be loaded ({error})", True)
        try:
            drawn = read_page(page)
            lines = _running.margins(drawn.words.get("R", ()))
        except MemoryError:
            raise
        except Exception as error:
            return _Seen(number, None, [], f"the page cannot be read ({type(error).__name__}: {error})"[:300], False)
        finally:
            page.close()
        self._heads.see(number, lines)
        return _Seen(number, drawn, lines, "", False)

    def _page(self, seen: _Seen) -> Page:
        number, drawn = seen.number, seen.drawn
        if drawn is None:
            return PageFailure(number, self._total, seen.error)
        try:
            text = self._text(seen, drawn)
        except MemoryError:
            raise
        except Exception as error:
            reason = f"the page cannot be laid out ({type(error).__name__}: {error})"[:300]
            return PageFailure(number, self._total, reason)
        letters = sum(c.isalnum() for c in text)
        # Wrong characters may be such that cleaning leaves nothing of them.
        whole = text if letters else "".join(word.text for words in drawn.words.values() for word in words)
        wrong = mojibake(whole, drawn.unmapped, drawn.unmapped_text)
        if wrong:
            return self._by_ocr(number, f"the text is mojibake: {wrong}", [])
        notes = _notes(drawn)
        pictured = drawn.picture >= PICTURE_SHARE and not drawn.layer
        if not letters:
            return self._by_ocr(number, f"the page has no text: {_why_empty(drawn)}", notes, blank=not drawn.objects)
        if pictured and letters < FEW_LETTERS:
            shown = " ".join(text.split())
            page = self._by_ocr(number, f"the page is a picture (a scan): only “{shown}” is text", notes)
            return _with_text(page, text)
        if drawn.picture >= SOME_PICTURE and not drawn.layer and letters < SOME_LETTERS:
            if self._options.ocr and isinstance(page := self._by_ocr(number, "", notes), PageText):
                if sum(c.isalnum() for c in page.text) > 1.2 * letters:
                    return _with_text(page, text)
            elif not self._options.ocr:
                notes.append(f"pictures cover {drawn.picture:.0%} of the page; text in them is not read ({absent()})")
        return PageText(number, self._total, text, notes=tuple(notes))

    def _text(self, seen: _Seen, drawn: Drawn) -> str:
        words = drawn.words.get("R", [])
        drop = self._heads.drop(seen.number, seen.margins)
        # A page that repeats the one before is still a page; with pictures on it, its head alone is not its text.
        kept = any(any(c.isalnum() for c in w.text) for i, w in enumerate(words) if i not in drop)
        if drop and (kept or drawn.picture >= SOME_PICTURE):
            words = [w for i, w in enumerate(words) if i not in drop]
        parts = [join(lay_out(words, drawn.horizontal, drawn.vertical))]
        # Vertical writing, and text on its side, are read after the upright text, or instead of it.
        parts += [join(lay_out(drawn.words[d], (), ())) for d in ("D", "U", "L") if drawn.words.get(d)]
        return clean("\n".join(part for part in parts if part.strip()))

    def _by_ocr(self, number: int, reason: str, notes: list[str], *, blank: bool = False) -> Page:
        """The page as OCR reads its picture, or a failure for ``reason``."""
        if blank:
            return PageFailure(number, self._total, reason)
        if not self._options.ocr:
            return PageFailure(number, self._total, f"{reason}; {absent()}")
        try:
            if self._ocr is None:
                from services.rag.documents import ocr

                if not ocr.available():
                    return PageFailure(number, self._total, f"{reason}; {absent()}")
                self._ocr = ocr.Ocr()
            result = self._ocr.read(_render(self._document, number))
        except MemoryError:
            raise
        except Exception as error:
            problem = f"OCR failed ({type(error).__name__}: {error})"[:200]
            return PageFailure(number, self._total, f"{reason}; {problem}")
        text = reflow(result.text)
        if not any(c.isalnum() for c in text):
            return PageFailure(number, self._total, f"{reason}; OCR found no text in its picture")
        if not result.readable or mojibake(text):
            doubt = f"OCR cannot read its picture (confidence {result.confidence:.2f})"
            return PageFailure(number, self._total, f"{reason}; {doubt}")
        return PageText(number, self._total, text, method="ocr", notes=tuple([reason, *notes] if reason else notes))


def _with_text(page: Page, text: str) -> Page:
    """A page read by OCR, with the text it has of its own where OCR missed some of it."""
    if isinstance(page, PageText) and any(word not in page.text for word in text.split()):
        return dataclasses.replace(page, text=f"{page.text}\n{text}")
    return page


def _notes(drawn: Drawn) -> list[str]:
    notes = []
    if drawn.hidden:
        notes.append(f"{drawn.hidden} characters of invisible text were left out")
    if drawn.layer:
        notes.append("the text is the text layer of a scan")
    if drawn.unmapped:
        notes.append(f"{drawn.unmapped} characters are in fonts that do not say which characters they are")
    if drawn.cut:
        notes.append("the page has more characters than are read; the rest was left out")
    return notes


def _why_empty(drawn: Drawn) -> str:
    hidden = f"its {drawn.hidden} characters are invisible" if drawn.hidden else ""
    if drawn.picture > 0.01:
        seen = "it is a scan or a picture"
    elif drawn.objects:
        seen = "it has drawings only"
    else:
        seen = "" if hidden else "it is empty, nothing is drawn on it"
    return " and ".join(part for part in (hidden, seen) if part)


def _render(document: pdfium.PdfDocument, number: int) -> Any:
    """The page's picture as a person sees it: RGB, uint8 (height, width, 3), of a bounded size whatever the page box says."""
    page = document[number - 1]
    try:
        width, height = (max(v, 0.01) for v in page.get_size())
        scale = min(OCR_DPI / 72, math.sqrt(OCR_PIXELS / (width * height)), 16_000 / max(width, height))
        # Some scanners write pages of a few points; the picture on it has its pixels all the same.
        if max(width, height) < 72:
            scale = min(1600 / max(width, height), math.sqrt(OCR_PIXELS / (width * height)))
        bitmap = page.render(scale=scale, rev_byteorder=True)
        try:
            return bitmap.to_numpy()[:, :, :3].copy()
        finally:
            bitmap.close()
    finally:
        page.close()


def _read_with_pypdf(path: Path, options: Options) -> Iterator[Page]:
    """For files that PDFium cannot open: plain text in the order of drawing, without layout."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of each oddity; the outcome is what counts
    try:
        reader = PdfReader(path, strict=False)
        if reader.is_encrypted and not (reader.decrypt("") or reader.decrypt(options.password or "")):
            raise ReadError(_WRONG if options.password else _NEEDED)
        total = len(reader.pages)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # a broken file makes pypdf raise about anything
        what = f"the file is not a readable PDF ({str(error)[:150]})"
        raise ReadError(f"{what}: if a viewer opens it, save it from there as a new PDF and upload that") from error
    if total == 0:
        raise ReadError("the PDF has no pages")
    for number in range(options.first_page, total + 1):
        try:
            text = reflow(reader.pages[number - 1].extract_text())
        except MemoryError:
            raise
        except Exception as error:
            yield PageFailure(number, total, f"the page cannot be read ({type(error).__name__}: {error})"[:300])
            continue
        if not any(c.isalnum() for c in text):
            yield PageFailure(number, total, "the page has no text, and the file is too broken to draw it")
        elif wrong := mojibake(text):
            yield PageFailure(number, total, f"the text is mojibake: {wrong}")
        else:
            yield PageText(number, total, text, notes=("the file is broken: its text is in the order of drawing",))
