"""Pictures of pages, drawn by reading processes of their own: a hostile file is drawn under the limits it is read under."""

import queue
import threading
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from services.rag.documents.pages import ReadError
from services.rag.documents.reading import Cancelled, Limits, ReadingProcess, ReadingUnavailable
from services.rag.documents.rendering import CONTEXT, MAX_QUOTE, PICTURED, Picture, View
from services.rag.errors import InvalidRequest, NotFound, NotReady, UnsupportedFile
from services.rag.store.catalog import Catalog
from services.rag.store.records import Document

PROCESSES = 2
# More than this many wait for one of them: whoever comes next is told to come back.
MOST_WAITING = 8
WAIT_SECONDS = 20.0
# A picture that takes longer is of a page that was made to.
DRAW_SECONDS = 20.0


class PageImages:
    """Draws pages. A process starts with the first picture that needs it."""

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self._catalog = catalog
        seconds = min(limits.page_seconds, DRAW_SECONDS)
        limits = replace(limits, page_seconds=seconds, file_seconds=seconds)
        self._processes = [ReadingProcess(limits) for _ in range(PROCESSES)]
        self._idle: queue.Queue[ReadingProcess] = queue.Queue()
        for process in self._processes:
            self._idle.put(process)
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def close(self) -> None:
        for process in self._processes:
            process.close()

    def view(self, document_id: str, page: int, start: int | None, end: int | None, width: int) -> tuple[View, str]:
        """What is to be drawn, checked, and a tag that changes whenever the picture would.

        Raises:
            NotFound: there is no such document or page.
            InvalidRequest: ``start`` and ``end`` are no span of the page's text.
            UnsupportedFile: documents of this format have no pictures.
        """
        document = self._catalog.document(document_id)
        if document.format not in PICTURED:
            raise UnsupportedFile(
                f"{document.filename} is {document.format}, which has no picture of a page; {_text_of(document, page)}"
            )
        number, text = page, ""
        try:
            text = self._catalog.page(document.id, page).text
        except NotFound:
            if page < 1 or start is not None or document.pages is None or page > document.pages:
                raise
        view = View(number, width)
        if start is not None or end is not None:
            first, last = start or 0, len(text) if end is None else end
            if not 0 <= first < last <= len(text):
                raise InvalidRequest(
                    f"start={first} and end={last} are no span of the page's {len(text)} characters; "
                    "0 <= start < end <= its length",
                    param="start" if first < 0 or first >= len(text) else "end",
                )
            if last - first > MAX_QUOTE:
                raise InvalidRequest(
                    f"the span has {last - first} characters, at most {MAX_QUOTE} are marked", param="end"
                )
            before, after = text[max(first - CONTEXT, 0) : first], text[last : last + CONTEXT]
            view = View(number, width, text[first:last], before, after)
        tag = sha256(f"{document.sha256}\0{view}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return view, f'"{tag}"'

    def draw(self, document_id: str, view: View) -> Picture:
        """The picture. Blocks until it is there.

        Raises:
            UnsupportedFile: the page cannot be drawn; the message says why.
            NotReady: too many pictures are being drawn, or no process can be started.
        """
        document = self._catalog.document(document_id)
        path: Path = self._catalog.file_path(document)
        if not self._waiting.acquire(blocking=False):
            raise NotReady("too many pictures are being drawn: try again in a few seconds", retry_after=5)
        try:
            process = self._idle.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise NotReady("the pictures before this one take long: try again", retry_after=10) from None
        finally:
            self._waiting.release()
        try:
            return process.render(path, document.format, view)
        except ReadError as error:
            why = "it needs a password, which is not kept" if "password" in str(error) else str(error)
            raise UnsupportedFile(
                f"{document.filename}: page {view.page} cannot be drawn: {why}; {_text_of(document, view.page)}"
            ) from error
        except (ReadingUnavailable, Cancelled) as error:
            raise NotReady(f"no picture can be drawn now: {error}; try again", retry_after=5) from error
        finally:
            self._idle.put(process)


def _text_of(document: Document, page: int) -> str:
    return f"its text is at /documents/{document.id}/pages/{page}"
