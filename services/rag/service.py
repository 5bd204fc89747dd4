"""The service's parts and their life: opened in the background at start, closed at the end."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import filelock

from services.rag.config import Settings
from services.rag.documents.jobs import JobRunner
from services.rag.documents.reading import Limits
from services.rag.embeddings import Embedder
from services.rag.errors import NotReady, StartupError
from services.rag.metrics import Metrics
from services.rag.model_client import ModelClient
from services.rag.retrieval import Retriever
from services.rag.store.catalog import Catalog, Job
from services.rag.store.chroma import VectorStore
from services.rag.store.lexical import LexicalIndex

log = logging.getLogger("docduet.rag")


class Service:
    def __init__(self, settings: Settings, load_embedder: Callable[[], Embedder]) -> None:
        """Open the catalog. Everything slow waits for :meth:`open`.

        Raises:
            StartupError: the data folder cannot be used, or another process uses it.
        """
        self.settings = settings
        self._load_embedder = load_embedder
        self._lock = _lock(settings.data_dir)
        self.catalog = Catalog(settings.data_dir)
        self.metrics = Metrics()
        self.model = ModelClient(settings)
        self._retriever: Retriever | None = None
        self._jobs: JobRunner | None = None
        self._vectors: VectorStore | None = None
        self._lexical: LexicalIndex | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def open(self) -> None:
        """Load the embedder, open the indexes and start taking jobs.

        Raises:
            StartupError: with the setting to change.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        embedder = self._load_embedder()
        data_dir, settings = self.settings.data_dir, self.settings
        url = str(settings.chroma_url) if settings.chroma_url else None
        vectors = VectorStore(data_dir / "chroma", embedder.fingerprint, url=url)
        lexical = LexicalIndex(data_dir / "lexical.sqlite")
        limits = Limits(seconds=settings.read_seconds, memory_mb=settings.read_memory_mb)
        jobs = JobRunner(self.catalog, vectors, lexical, embedder, limits)
        jobs.on_change = self._job_changed
        self._vectors, self._lexical = vectors, lexical
        self._retriever = Retriever(self.catalog, vectors, lexical, embedder)
        self._jobs = jobs
        jobs.start()

    def close(self) -> None:
        if self._jobs:
            self._jobs.stop()
        if self._retriever:
            self._retriever.close()
        if self._lexical:
            self._lexical.close()
        self.catalog.close()
        self._lock.release()

    @property
    def opened(self) -> bool:
        return self._jobs is not None

    @property
    def retriever(self) -> Retriever:
        if self._retriever is None:
            raise NotReady("the embedding model is still loading: try again in a few seconds", retry_after=2)
        return self._retriever

    @property
    def jobs(self) -> JobRunner:
        if self._jobs is None:
            raise NotReady("the embedding model is still loading: try again in a few seconds", retry_after=2)
        return self._jobs

    def wake_jobs(self) -> None:
        """A job was accepted. Before the service is open it simply waits in the catalog."""
        if self._jobs:
            self._jobs.wake()

    def check_stores(self) -> None:
        """Raise when Chroma does not answer."""
        if self._vectors:
            self._vectors.heartbeat()

    # -- job events ----------------------------------------------------------------------------------------------

    def _job_changed(self, job: Job) -> None:
        if job.done:
            self.metrics.jobs.labels(state=job.state).inc()
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._announce)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set when any job changes; take it before reading the state, then wait."""
        return self._changed


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
