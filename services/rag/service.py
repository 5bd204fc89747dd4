"""The service's parts and their life: opened in the background at start, closed at the end."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock

from services.rag.calibration import Calibrations
from services.rag.config import Settings
from services.rag.documents import ocr
from services.rag.documents.jobs import READER, JobRunner
from services.rag.documents.reading import Limits
from services.rag.embeddings import Embedder
from services.rag.errors import NotReady, StartupError
from services.rag.library import Library
from services.rag.metrics import Metrics
from services.rag.model_client import ModelClient
from services.rag.note_maker import NoteMaker
from services.rag.page_image import PageImages
from services.rag.reranker import load_reranker
from services.rag.retrieval import Retriever
from services.rag.sessions import Sessions
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes
from services.rag.store.records import Job

log = logging.getLogger("docduet.rag")

_STARTING = "the embedding model is still loading: try again in a few seconds"
_TRY_OCR = """
from services.rag.documents.ocr import Ocr, ReadError
try:
    Ocr()
except ReadError as error:
    raise SystemExit(str(error))
"""
_TRY_SECONDS = 120


class Service:
    def __init__(self, settings: Settings, load_embedder: Callable[[str], Embedder]) -> None:
        """Open the catalog. Everything slow waits for :meth:`open`.

        ``load_embedder`` takes a model id: RAG_EMBEDDING_MODEL, or that of the embedder which made the present index.

        Raises:
            StartupError: the data folder cannot be used, another process uses it, or RAG_OCR asks for what is not there.
        """
        self.settings = settings
        self._load_embedder = load_embedder
        if settings.ocr == "on" and (problem := _ocr_problem()):
            raise StartupError(f"RAG_OCR=on, but {problem}, or set RAG_OCR=auto")
        self.ocr = settings.ocr != "off" and ocr.available()
        self._lock = _lock(settings.data_dir)
        self.catalog = Catalog(settings.data_dir)
        self.catalog.notes_wanted = settings.notes == "on"
        self.calibrations = Calibrations(settings.data_dir)
        self.metrics = Metrics()
        self.model = ModelClient(settings)
        self.sessions = Sessions(
            minutes=settings.session_minutes, sessions=settings.sessions, turns=settings.session_turns
        )
        self._limits = Limits(
            page_seconds=settings.read_page_seconds,
            file_seconds=settings.read_seconds,
            memory_mb=settings.read_memory_mb,
        )
        self.library = Library(
            self.catalog,
            self._limits,
            max_upload_mb=settings.max_upload_mb,
            reader=f"{READER}{'+ocr' if self.ocr else ''}",
            jobs=lambda: self._jobs,
        )
        self.images = PageImages(self.catalog, self._limits)
        self._retriever: Retriever | None = None
        self._jobs: JobRunner | None = None
        self._notes: NoteMaker | None = None
        self._indexes: Indexes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Load the embedder and the reranker, open the indexes and start taking jobs.

        Raises:
            StartupError: with the setting to change.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        settings = self.settings
        embedder = self._load_embedder(settings.embedding_model)
        reranker = load_reranker(settings)
        chroma = Indexes.open_chroma(settings.data_dir, str(settings.chroma_url) if settings.chroma_url else None)
        indexes = Indexes(self.catalog, chroma, embedder, self._old_embedder(embedder))
        jobs = JobRunner(
            self.catalog, indexes, self._limits, ocr=self.ocr, readers=settings.readers or os.cpu_count() or 1
        )
        jobs.on_change = self._job_changed
        self._indexes = indexes
        self._retriever = Retriever(self.catalog, indexes, self.calibrations, reranker)
        self._jobs = jobs
        jobs.start()
        assert self._loop is not None
        self._notes = NoteMaker(self.catalog, self.model, self._loop, jobs.writer.noted, self._note_counted)
        self._notes.start()

    def _old_embedder(self, embedder: Embedder) -> Embedder | None:
        """The one that made the present index, where that was another: it answers questions until the new index is made."""
        row = self.catalog.index("active")
        if row is None or row.fingerprint == embedder.fingerprint or not row.model_id:
            return None
        try:
            old = self._load_embedder(row.model_id)
        except Exception as error:
            log.warning(
                "the old embedding model %s cannot be loaded (%s): words alone are searched", row.model_id, error
            )
            return None
        return old if old.fingerprint == row.fingerprint else None

    def close(self) -> None:
        if self._notes:
            self._notes.stop()
        if self._jobs:
            self._jobs.stop()
        self.library.close()
        self.images.close()
        if self._retriever:
            self._retriever.close()
        if self._indexes:
            self._indexes.close()
        self.catalog.close()
        self._lock.release()

    @property
    def opened(self) -> bool:
        return self._jobs is not None

    @property
    def retriever(self) -> Retriever:
        if self._retriever is None:
            raise NotReady(_STARTING, retry_after=2)
        return self._retriever

    @property
    def jobs(self) -> JobRunner:
        if self._jobs is None:
            raise NotReady(_STARTING, retry_after=2)
        return self._jobs

    def choose_notes(self, document_id: str, wanted: bool) -> None:
        """Whether this document has notes, whatever RAG_NOTES says."""
        self.catalog.choose_notes(document_id, wanted)
        if self._notes and self._jobs:
            self._jobs.writer.noted(document_id)
            self._notes.wake()

    @property
    def notes_error(self) -> str | None:
        """Why notes wait, if they do."""
        return self._notes.error if self._notes else None

    @property
    def indexes(self) -> Indexes:
        if self._indexes is None:
            raise NotReady(_STARTING, retry_after=2)
        return self._indexes

    def job(self, job_id: str) -> tuple[Job, float | None]:
        """The job as it stands, and the seconds it is estimated to take."""
        job = self.catalog.job(job_id)
        if self._jobs is None:
            return job, None
        job = self._jobs.current(job)
        return job, self._jobs.estimate(job)

    def check_stores(self) -> None:
        """Raise when Chroma does not answer."""
        if self._indexes:
            self._indexes.check()

    # -- job events ----------------------------------------------------------------------------------------------

    def _job_changed(self, job_id: str) -> None:
        if (job := self.catalog.job(job_id)).done:
            self.metrics.jobs.labels(state=job.state).inc()
            if self._notes:
                self._notes.wake()
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.announce)

    def _note_counted(self, result: str) -> None:
        self.metrics.notes.labels(result=result).inc()

    def announce(self) -> None:
        """A job changed; called in the event loop."""
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set when any job changes; take it before reading the state, then wait."""
        return self._changed


def _ocr_problem() -> str:
    """Why OCR does not work here, with what to do, or "". It is tried in a process of its own, which takes the memory with
    it: a package may be there and not start, as OpenCV does where the system lacks a library."""
    if not ocr.available():
        return f"OCR is not installed; {ocr.INSTALL}"
    try:
        tried = subprocess.run(  # noqa: S603 — our own interpreter and code
            [sys.executable, "-c", _TRY_OCR], capture_output=True, text=True, timeout=_TRY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"OCR did not start in {_TRY_SECONDS} s; {ocr.INSTALL}"
    if tried.returncode == 0:
        return ""
    said = tried.stderr.strip().splitlines() or [f"OCR ends with code {tried.returncode}; {ocr.INSTALL}"]
    return said[-1]


def _lock(data_dir: Path) -> filelock.BaseFileLock:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(data_dir / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StartupError(
            f"another docduet already uses RAG_DATA_DIR={data_dir}: stop it, or name another folder"
        ) from None
    except OSError as error:
        raise StartupError(
            f"RAG_DATA_DIR={data_dir} cannot be used: {error}. Name a folder this user can write to."
        ) from error
    return lock
