"""Ingestion: several readers turn accepted files into text, one writer (``indexing``) makes it searchable.

A job is a row of the catalog. Readers take waiting files, small ones first, and commit their pages and chunks in one
transaction; the writer does the rest. After a kill at any instant each job is taken up where its last commit left it.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from services.rag.documents.chunking import chunk
from services.rag.documents.indexing import IndexWriter
from services.rag.documents.pages import Options, PageText, ReadError
from services.rag.documents.reading import Cancelled, Limits, ReadingProcess, ReadingUnavailable
from services.rag.errors import RagError, StorageError
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import Chunk, Job, Page, PageReport, chunk_id

log = logging.getLogger("docduet.rag.jobs")

# How files are read; raised when a reader gives other text, so that pages which failed are tried again on upload.
READER = "2"
# A file that takes longer than this no longer counts as one that keeps others waiting: another is read beside it.
SLOW_SECONDS = 2.0
EXTRA_READERS = 2
# When files that take long hold all readers and another file waits, one that has given no text for so long is put back. It
# is read from its start when only such files wait, and then it is let finish. A page by OCR may well take 20 seconds.
STALLED_SECONDS, OCR_STALLED_SECONDS = 5.0, 30.0
# No file is put back that gave text for longer than this: that work would be lost.
KEPT_SECONDS = 60.0
PROGRESS_SECONDS = 0.25
RETRY_SECONDS = 5.0
# Without a measurement yet: chunks a printed page gives.
_CHUNKS_A_PAGE = 4


@dataclass
class _Running:
    process: ReadingProcess
    job: Job
    since: float
    heard: float  # when its last text came
    slow: bool = False
    leaving: bool = False  # it is being put back


class JobRunner:
    def __init__(self, catalog: Catalog, indexes: Indexes, limits: Limits, *, ocr: bool, readers: int) -> None:
        self._catalog = catalog
        self._limits = limits
        self._ocr = ocr
        self._readers = readers
        self.reader = f"{READER}{'+ocr' if ocr else ''}"
        self._turn = threading.Condition()
        self._stopping = threading.Event()
        self._running: dict[str, _Running] = {}
        self._put_back: set[str] = set()  # jobs whose file was stopped to let others through
        self._seconds_a_page: float | None = None
        self._unwritten: dict[str, str] = {}  # failures that a full or read-only disk kept from being written
        self.on_change: Callable[[str], None] = lambda job_id: None
        self.writer = IndexWriter(catalog, indexes, self._announce, self._fail)
        self._places = readers + EXTRA_READERS
        # One more than there are places: when all are taken, it sees that a file waits.
        self._threads = [
            threading.Thread(target=self._work, name=f"read-{n}", daemon=True) for n in range(self._places + 1)
        ]
        self._threads.append(threading.Thread(target=self._write_failures, name="failures", daemon=True))

    def start(self) -> None:
        """Finish what an earlier process left, then take jobs."""
        self.writer.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        with self._turn:
            running = list(self._running.values())
            self._turn.notify_all()
        for item in running:
            item.process.cancel()
        self.writer.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=10)

    def wake(self) -> None:
        """There may be a new job, or a document was deleted."""
        with self._turn:
            self._turn.notify_all()
        self.writer.wake()

    def let_go(self, document_ids: Iterable[str]) -> None:
        """These documents were deleted or their jobs cancelled: stop reading them."""
        wanted = set(document_ids)
        with self._turn:
            running = [item for item in self._running.values() if item.job.document_id in wanted]
        for item in running:
            item.process.cancel()
        self.wake()

    def current(self, job: Job) -> Job:
        """The job as it stands, also where its failure could not be written down."""
        reason = self._unwritten.get(job.id)
        return job if reason is None or job.done else replace(job, state="failed", error=reason)

    def estimate(self, job: Job) -> float | None:
        """Seconds until the job ends, from how fast things went lately; None when that cannot be told yet."""
        rate = self.writer.seconds_a_chunk
        if job.done or rate is None:
            return 0.0 if job.done else None
        if job.chunks_total is not None:
            return round(rate * (job.chunks_total - job.chunks_embedded), 1)
        if job.pages_total is None or self._seconds_a_page is None:
            return None
        unread = job.pages_total - job.pages_read
        return round(unread * self._seconds_a_page + job.pages_total * _CHUNKS_A_PAGE * rate, 1)

    def _announce(self, job_id: str) -> None:
        self.on_change(job_id)

    # -- failures ----------------------------------------------------------------------------------------------

    def _fail(self, job: Job, reason: str) -> None:
        """End a job as failed, on a full disk too: the reserve makes room, and if nothing helps it is kept in memory."""
        try:
            try:
                self._catalog.fail(job, reason)
            except StorageError:
                self._catalog.release_reserve()
                self._catalog.fail(job, reason)
        except Exception:
            log.exception("job %s failed (%s) and its state cannot be written; tried again", job.id, reason)
            self._unwritten[job.id] = reason
        self._announce(job.id)

    def _write_failures(self) -> None:
        """Write down what could not be, as soon as it can."""
        while not self._stopping.wait(RETRY_SECONDS):
            for job_id, reason in list(self._unwritten.items()):
                with contextlib.suppress(RagError):
                    self._catalog.fail(self._catalog.job(job_id), reason)
                    del self._unwritten[job_id]
            if not self._unwritten:
                self._catalog.keep_reserve()

    # -- reading -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.closing(ReadingProcess(self._limits)) as process:
            while (job := self._take(process)) is not None:
                try:
                    self._read(process, job)
                except Cancelled:
                    # Deleted, cancelled, or the service stops: the catalog says which. Or it was put back.
                    with contextlib.suppress(RagError):
                        if job.id in self._put_back:
                            self._catalog.update_job(job.id, state="accepted", pages_read=0)
                            self._announce(job.id)
                except ReadingUnavailable as error:
                    # Nothing is wrong with the file: the job stays open and is taken again.
                    log.error("%s cannot be read now: %s", job.filename, error)
                    self._stopping.wait(RETRY_SECONDS)
                except Exception as error:
                    if not isinstance(error, ReadError | RagError):
                        log.exception("job %s (%s) failed", job.id, job.filename)
                    self._fail(job, str(error) or type(error).__name__)
                finally:
                    with self._turn:
                        self._running.pop(job.id, None)
                        self._turn.notify_all()

    def _take(self, process: ReadingProcess) -> Job | None:
        """The next file, when it is this thread's turn; None at the end."""
        with self._turn:
            while not self._stopping.is_set():
                now = time.monotonic()
                for item in self._running.values():
                    if not item.slow and now - item.since >= SLOW_SECONDS:
                        item.slow = True
                        item.process.give_way()
                if sum(not item.slow for item in self._running.values()) < self._readers:
                    try:
                        job = self._next(now)
                    except Exception:
                        log.exception("the catalog cannot be read; tried again")
                        self._turn.wait(RETRY_SECONDS)
                        continue
                    if job is not None:
                        self._running[job.id] = _Running(process, job, now, now)
                        return job
                self._turn.wait(SLOW_SECONDS / 4 if self._running else None)
        return None

    def _next(self, now: float) -> Job | None:
        """A file that was not put back before one that was; None when there is none, or no place for it."""
        taken = [*self._running, *self._unwritten]
        full = len(self._running) == self._places
        if job := self._catalog.next_to_read([*taken, *self._put_back]):
            if not full:
                return job
            self._make_room(now)
            return None
        again = sum(job_id in self._put_back for job_id in self._running)
        if full or again >= self._places - 1:  # the last place is for a file that may be quick
            return None
        job = self._catalog.next_to_read(taken)
        if job is None:
            self._put_back &= self._running.keys()  # the others were deleted or cancelled
        return job

    def _make_room(self, now: float) -> None:
        """Put back the file that began last of those that give nothing."""
        wait = OCR_STALLED_SECONDS if self._ocr else STALLED_SECONDS
        stalled = [
            item
            for item in self._running.values()
            if item.job.id not in self._put_back and now - item.heard >= wait and item.heard - item.since < KEPT_SECONDS
        ]
        if stalled and not any(item.leaving for item in self._running.values()):
            item = max(stalled, key=lambda item: item.since)
            item.leaving = True
            self._put_back.add(item.job.id)
            item.process.cancel()

    def _read(self, process: ReadingProcess, job: Job) -> None:
        document = self._catalog.document(job.document_id)
        self._catalog.update_job(job.id, state="reading", pages_read=0)
        self._announce(job.id)
        pages: list[Page] = []
        reports: list[PageReport] = []
        total = 0
        started = told = time.monotonic()
        options = Options(password=job.password, ocr=self._ocr)
        for item in process.read(self._catalog.file_path(document), document.format, options):
            total = max(item.total, item.number)
            if isinstance(item, PageText):
                pages.append(Page(item.number, item.text, item.label, item.method))
                reports += [PageReport(item.number, False, note) for note in item.notes]
                self._running[job.id].heard = time.monotonic()
            else:
                reports.append(PageReport(item.number, True, item.reason))
            now = time.monotonic()
            self._seconds_a_page = (now - started) / (len(pages) + len(reports))
            if now - told > PROGRESS_SECONDS:
                told = now
                self._catalog.update_job(job.id, pages_total=total, pages_read=item.number)
                self._announce(job.id)
        chunks = list(_chunks(document.id, pages))
        if chunks:
            self._catalog.put_text(job, pages, chunks, reports, total, self.reader)
            self.writer.wake()
        else:
            first = next((r for r in reports if r.failed), None)
            reason = f"page {first.page}: {first.message}" if first else "the file has no text"
            if total > 1:
                reason = f"none of its {total} pages can be indexed; {reason}"
            self._catalog.put_failure(job, reason, first.page if first else None, reports, total)
        self._announce(job.id)


def _chunks(document_id: str, pages: Iterable[Page]) -> Iterable[Chunk]:
    ordinal = 0
    for page in pages:
        for span in chunk(page.text):
            text = page.text[span.start : span.end]
            yield Chunk(
                chunk_id(document_id, ordinal, text), document_id, ordinal, page.number, span.start, span.end, text
            )
            ordinal += 1
