"""Ingestion: one thread takes accepted jobs in order and brings each to its end state.

Every step can be repeated: text is replaced in one transaction, vectors are upserted under fixed ids, lexical rows are
replaced, and the document becomes visible in the last transaction. So after a kill at any instant the job is simply run
again, and what was embedded already is not embedded twice.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.rag.documents.chunking import chunk
from services.rag.documents.reading import Limits, PageText, ReadError, read_pages
from services.rag.errors import NotFound, RagError
from services.rag.store.catalog import Catalog, Chunk, Document, Job, Page
from services.rag.store.chroma import VectorStore
from services.rag.store.lexical import LexicalIndex

log = logging.getLogger("docduet.rag.jobs")

# Small enough that a question waits for at most one batch of the embedder, large enough to keep it busy.
EMBED_BATCH = 16


class DocumentEmbedder(Protocol):
    @property
    def fingerprint(self) -> str: ...
    def embed_documents(self, texts: list[str]) -> npt.NDArray[np.float32]: ...


class _Stopped(Exception):
    """The service stops, or the document was deleted meanwhile."""


class JobRunner:
    def __init__(
        self, catalog: Catalog, vectors: VectorStore, lexical: LexicalIndex, embedder: DocumentEmbedder, limits: Limits
    ) -> None:
        self._catalog = catalog
        self._vectors = vectors
        self._lexical = lexical
        self._embedder = embedder
        self._limits = limits
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self.on_change: Callable[[Job], None] = lambda job: None

    def start(self) -> None:
        """Finish what an earlier process left, then take jobs."""
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def wake(self) -> None:
        """There may be a new job."""
        self._wake.set()

    def delete(self, doc_id: str) -> None:
        """Make the document invisible at once, then take it out of the indexes."""
        self._purge(self._catalog.mark_deleting(doc_id))

    def _purge(self, document: Document) -> None:
        self._vectors.delete_document(document.collection, document.id)
        self._lexical.delete_document(document.id)
        self._catalog.remove(document)

    def _run(self) -> None:
        try:
            for document in self._catalog.deleting():
                self._purge(document)
            if stale := self._stale():
                log.warning("%d documents are indexed again: another embedding model, or an index was lost", len(stale))
                self._catalog.queue_again(stale)
        except Exception:
            log.exception("clean-up after the last run failed; it is tried again at the next start")
        while not self._stopping.is_set():
            self._wake.clear()
            job = self._catalog.next_job()
            if job is None:
                self._wake.wait()
                continue
            try:
                self._process(job)
            except _Stopped:
                self._forget_if_deleted(job)
            except Exception as error:
                if not isinstance(error, ReadError | RagError):
                    log.exception("job %s (%s) failed", job.id, job.filename)
                self._fail(job, str(error) or type(error).__name__)

    def _stale(self) -> list[Document]:
        """Indexed documents that the indexes do not hold whole, or that another embedder's vectors stand for."""
        rows = self._lexical.counts()
        return [
            document
            for document in self._catalog.documents()
            if document.status == "indexed"
            and (
                document.fingerprint != self._embedder.fingerprint
                or rows.get(document.id) != document.chunks
                or self._vectors.missing(document.collection, [c.id for c in self._catalog.chunks_of(document.id)])
            )
        ]

    def _forget_if_deleted(self, job: Job) -> None:
        """A batch that was under way while its document was deleted may have left vectors behind."""
        try:
            self._catalog.document(job.document_id)
        except NotFound:
            self._lexical.delete_document(job.document_id)
            for collection in self._vectors.collections():
                self._vectors.delete_document(collection, job.document_id)

    def _fail(self, job: Job, reason: str) -> None:
        try:
            self._update(job, state="failed", error=reason)
        except Exception:
            # The disk is full or gone: the job stays open and is tried when something wakes us, not in a busy loop.
            log.exception("job %s failed and its state cannot be written", job.id)
            self._stopping.wait(5)

    def _update(self, job: Job, **columns: object) -> None:
        self._catalog.update_job(job.id, **columns)
        self.on_change(self._catalog.job(job.id))

    def _check(self, job: Job) -> Document:
        if self._stopping.is_set():
            raise _Stopped
        try:
            return self._catalog.document(job.document_id)
        except NotFound:
            raise _Stopped from None

    def _process(self, job: Job) -> None:
        document = self._check(job)
        # A document that only needs new vectors, or a job that was killed while embedding, has its text already.
        chunks = self._catalog.chunks_of(document.id) if job.state == "embedding" or document.fingerprint else []
        if not chunks:
            chunks = self._read(job, document)
        self._embed(job, document, chunks)
        self._lexical.put_document(document.collection, document.id, [(c.id, c.text) for c in chunks])
        self._check(job)
        self._catalog.finish(job, self._embedder.fingerprint)
        self.on_change(self._catalog.job(job.id))

    def _read(self, job: Job, document: Document) -> list[Chunk]:
        self._update(job, state="reading", pages_read=0)
        pages: list[Page] = []
        failures: dict[int, str] = {}
        total = 0
        for item in read_pages(self._catalog.file_path(document), self._limits):
            total = item.total
            if isinstance(item, PageText):
                pages.append(Page(item.number, item.text))
            else:
                failures[item.number] = item.reason
            self._check(job)
            self._update(job, pages_total=total, pages_read=item.number)
        chunks: list[Chunk] = []
        for page in pages:
            for span in chunk(page.text):
                ordinal = len(chunks)
                text = page.text[span.start : span.end]
                chunks.append(
                    Chunk(f"{document.id}:{ordinal}", document.id, ordinal, page.number, span.start, span.end, text)
                )
        if not chunks:
            first = min(failures, default=None)
            if first is not None:
                self._update(job, page=first)
            reason = failures[first] if first is not None else "the file has no text"
            raise ReadError(f"none of its {total} pages can be indexed; page {first}: {reason}")
        self._catalog.put_text(document.id, pages, chunks, sorted(failures), total)
        return chunks

    def _embed(self, job: Job, document: Document, chunks: list[Chunk]) -> None:
        self._update(job, state="embedding", chunks_total=len(chunks))
        by_id = {c.id: c for c in chunks}
        missing = self._vectors.missing(document.collection, list(by_id))
        done = len(chunks) - len(missing)
        for at in range(0, len(missing), EMBED_BATCH):
            self._check(job)
            ids = missing[at : at + EMBED_BATCH]
            vectors = self._embedder.embed_documents([by_id[i].text for i in ids])
            self._vectors.upsert(document.collection, ids, vectors, document.id)
            done += len(ids)
            self._update(job, chunks_embedded=done)
