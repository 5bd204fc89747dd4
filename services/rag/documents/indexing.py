"""The one writer of the indexes: embeds chunks, makes documents visible, lets go of deleted ones, rebuilds and repairs.

Every step can be repeated: vectors are upserted under ids bound to their text, lexical rows are replaced, and a document
becomes visible in the last transaction. So after a kill at any instant the step is simply taken again.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.rag.errors import NotFound, RagError
from services.rag.store.catalog import Catalog
from services.rag.store.generations import COMPACT
from services.rag.store.index import Index, Indexes
from services.rag.store.records import Chunk, Document, Job
from services.rag.store.verify import compare

log = logging.getLogger("docduet.rag.indexing")

# Chunks that are embedded and written together: enough for length-sorted batches and few commits, little enough that a
# small file which arrives meanwhile does not wait long.
BATCH_CHUNKS = 64
# Texts of waiting documents held in memory; the others wait in the catalog.
HELD_CHUNKS = 20_000
# A waiting document moves ahead of newer ones by this many chunks a second: small ones first, but nobody waits for ever. A
# tenth of what is embedded in a second: with as many as that the order would be that of arrival.
AGING_CHUNKS = 2
# A deleted vector stays in Chroma's graph as dead weight: past both of these the graph is made anew, from its own vectors.
COMPACT_DELETED, COMPACT_SHARE = 1000, 0.3
RETRY_SECONDS = 5.0


@dataclass
class _Pending:
    """A document with its text, on its way into the active index."""

    document: Document
    chunks: list[Chunk]
    missing: list[Chunk]
    job: Job | None  # None: a repair of a document that is visible already
    since: float = field(default_factory=time.monotonic)

    def rank(self, now: float) -> float:
        return len(self.missing) - AGING_CHUNKS * (now - self.since) + (10**6 if self.job is None else 0)


@dataclass(frozen=True)
class Rebuild:
    """A new generation on its way."""

    reason: str
    chunks_total: int
    chunks_done: int
    error: str | None


class IndexWriter:
    def __init__(
        self, catalog: Catalog, indexes: Indexes, changed: Callable[[str], None], failed: Callable[[Job, str], None]
    ) -> None:
        """``changed`` is called with a job's id when it changed, ``failed`` to end a job as failed."""
        self._catalog = catalog
        self._indexes = indexes
        self._changed = changed
        self._failed = failed
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._pending: dict[str, _Pending] = {}
        self._repairs: list[_Pending] = []
        self._built: set[str] = set()  # documents that the generation being built has whole
        self._plan: list[Document] = []  # those that it lacks
        self._built_chunks = 0
        self._rebuild_total = 0
        self._rebuild_error: str | None = None
        self._noted: set[str] = set()  # documents whose notes the indexes may lack, or have too many of
        self._checked = False
        self._seconds_a_chunk: float | None = None
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def wake(self) -> None:
        """A document has its text, or one was deleted."""
        self._wake.set()

    def noted(self, document_id: str) -> None:
        """The document has other notes than before."""
        self._noted.add(document_id)
        self._wake.set()

    @property
    def seconds_a_chunk(self) -> float | None:
        """Lately; None before the first batch."""
        return self._seconds_a_chunk

    def rebuild(self, reason: str) -> None:
        """Make a new generation from the catalog beside the one that answers, then swap. The wish outlives a kill."""
        self._catalog.want_index(reason)
        self._wake.set()

    @property
    def rebuilding(self) -> Rebuild | None:
        building = self._indexes.building
        if building is None:
            if not self._checked:
                return Rebuild("the index is compared with the catalog", 0, 0, self._rebuild_error)
            if repairs := self._repairs:
                lacking = sum(len(p.missing) for p in repairs)
                return Rebuild("what the index lacked is made again", lacking, 0, self._rebuild_error)
            wanted = self._catalog.wanted_index()
            return None if wanted is None else Rebuild(wanted, self._rebuild_total, 0, self._rebuild_error)
        return Rebuild(building.row.reason, self._rebuild_total, self._built_chunks, self._rebuild_error)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if not self._checked:
                    self._begin()
                    self._checked = True
                self._remove()
                self._sync()
                if not (self._embed() or self._put_notes() or self._rebuild()):
                    self._wake.wait()
            except Exception as error:
                # The catalog cannot be written, or Chroma is away: nothing is lost, and it is tried again.
                self._rebuild_error = str(error)
                log.error("indexing waits: %s", error, exc_info=not isinstance(error, RagError))
                self._wake.wait(RETRY_SECONDS)
                with contextlib.suppress(Exception):  # it is told at the next try
                    self._indexes.recover()

    def _begin(self) -> None:
        """Finish what an earlier process left."""
        if self._indexes.active.row.fingerprint != self._indexes.embedder.fingerprint:
            log.warning("another embedding model: the documents are indexed again; the old index answers meanwhile")
            self._indexes.build("another embedding model")
        try:
            if self._indexes.active.vectors.outdated:
                log.warning("an earlier version made the vectors: they are made again; the old ones answer meanwhile")
                self._indexes.build("headings are embedded")
            self._probe()
            self._remove()
            self._repair()
        except RagError:
            raise  # the catalog cannot be read or written
        except Exception as error:
            self._indexes.check()  # a Chroma server that is away comes back
            log.error("the index cannot be read (%s): it is made again; words alone are searched meanwhile", error)
            self._indexes.active.embedder = None
            self._indexes.build("the old one could not be read")

    def _probe(self) -> None:
        for collection in self._catalog.collections():
            self._indexes.active.vectors.probe(collection.id)

    def _repair(self) -> None:
        """Put back what the active index lacks (it was lost, or a power cut took its tail), take out what it should not have."""
        index = self._indexes.active
        for collection_id in {c.id for c in self._catalog.collections()} | set(index.lexical.collections()):
            state = compare(self._catalog, index, collection_id)
            for ids in state.orphan_vectors.values():
                index.vectors.delete(collection_id, ids)
            for document_id in state.orphan_words:
                if document_id not in state.missing_words:
                    index.lexical.delete_document(document_id)
            for ids in state.orphan_notes.values():
                index.vectors.delete(collection_id, ids)
                index.lexical.detach(ids)
            self._noted.update(state.missing_notes)
            lacking = set(state.missing_vectors) | set(state.missing_words) | set(state.orphan_words)
            known = {d.id: d for d in self._catalog.documents() if d.id in lacking}
            for document_id, document in known.items():
                chunks = self._catalog.chunks_of(document_id)
                if document_id in state.missing_words or document_id in state.orphan_words:
                    index.put_words([(document, chunks)])
                    self._noted.add(document_id)
                wanted = set(state.missing_vectors.get(document_id, ())) if index.embedder is not None else set()
                if wanted:
                    self._repairs.append(_Pending(document, chunks, [c for c in chunks if c.id in wanted], None))
            if lacking:
                log.warning("the index lacked parts of %d documents: they are made again", len(lacking))

    def _remove(self) -> None:
        removals = self._catalog.removals()
        if not removals:
            return
        vectors = 0
        gone = {document_id for document_id, _ in removals}
        for index in self._indexes.all:
            for document_id, collection_id in removals:
                count = index.remove(document_id, collection_id)
                vectors += count if index is self._indexes.active else 0
        self._built -= gone
        self._plan = [d for d in self._plan if d.id not in gone]
        self._repairs = [p for p in self._repairs if p.document.id not in gone]
        self._pending = {id_: p for id_, p in self._pending.items() if p.document.id not in gone}
        self._catalog.removed(sorted(gone), vectors)

    def _sync(self) -> None:
        """Take up the jobs whose document has its text; drop those that ended."""
        jobs = {job.id: job for job in self._catalog.to_embed(AGING_CHUNKS)}
        # Deleted or cancelled and taken up again since `_remove` looked: its rows go first, or they would go afterwards.
        leaving = {document_id for document_id, _ in self._catalog.removals()}
        jobs = {id_: job for id_, job in jobs.items() if job.document_id not in leaving}
        self._pending = {id_: p for id_, p in self._pending.items() if id_ in jobs}
        held = sum(len(p.chunks) for p in self._pending.values())
        for id_, job in jobs.items():
            if id_ not in self._pending:
                if held > HELD_CHUNKS:
                    break
                held += job.chunks_total or 0
                document = self._catalog.document(job.document_id)
                chunks = self._catalog.chunks_of(document.id)
                self._pending[id_] = _Pending(
                    document, chunks, self._missing(self._indexes.active, document, chunks), job
                )

    @staticmethod
    def _missing(index: Index, document: Document, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Those without a vector; none when nobody can make one for this index."""
        if index.embedder is None:
            return []
        wanted = set(index.vectors.missing(document.collection_id, [c.id for c in chunks]))
        return [c for c in chunks if c.id in wanted]

    # -- documents ---------------------------------------------------------------------------------------------

    def _embed(self) -> bool:
        """One batch, of one or several documents. Returns whether there was anything to do."""
        now = time.monotonic()
        order = sorted([*self._pending.values(), *self._repairs], key=lambda p: p.rank(now))
        if not order:
            return False
        batch: list[tuple[_Pending, list[Chunk]]] = []
        room = BATCH_CHUNKS
        for pending in order:
            part = pending.missing[:room]
            batch.append((pending, part))
            room -= len(part)
            if room <= 0:
                break
        try:
            self._write(batch)
        except Exception:
            self._indexes.recover()  # a Chroma server that is away comes back: the jobs stay open, and it is tried again
            for pending, part in batch:  # find the one it is about, if it is about one
                try:
                    self._write([(pending, part)])
                except Exception as error:
                    self._give_up(pending, error)
        return True

    def _write(self, batch: Sequence[tuple[_Pending, list[Chunk]]]) -> None:
        index = self._indexes.active
        chunks = [(pending.document, chunk) for pending, part in batch for chunk in part]
        if chunks and index.embedder is not None:
            started = time.monotonic()
            index.put_vectors(chunks, index.embedder.embed_documents(index.embedded(chunks)))
            self._measure((time.monotonic() - started) / len(chunks))
        for pending, part in batch:
            pending.missing = pending.missing[len(part) :]
        whole = [pending for pending, _ in batch if not pending.missing]
        index.put_words([(p.document, p.chunks) for p in whole if p.job is not None])
        progress = {
            p.job.id: {"chunks_embedded": len(p.chunks) - len(p.missing)} for p, _ in batch if p.job and p.missing
        }
        if progress:
            self._catalog.update_jobs(progress)
        finished = [p.job for p in whole if p.job is not None]
        if finished:
            self._catalog.finish(finished)
            self._noted.update(job.document_id for job in finished)  # of a document that comes back, they are there
        for pending, _ in batch:
            if pending.job is not None:
                self._changed(pending.job.id)
        for pending in whole:
            self._forget(pending)

    def _give_up(self, pending: _Pending, error: Exception) -> None:
        if not isinstance(error, RagError):
            log.error("indexing %s failed", pending.document.filename, exc_info=error)
        self._forget(pending)
        if pending.job is not None:
            reason = str(error).strip() or type(error).__name__
            self._failed(pending.job, f"it cannot be indexed: {reason[:500]}")

    def _forget(self, pending: _Pending) -> None:
        if pending.job is not None:
            self._pending.pop(pending.job.id, None)
        else:
            self._repairs = [p for p in self._repairs if p is not pending]

    def _measure(self, seconds: float) -> None:
        self._seconds_a_chunk = (
            seconds if self._seconds_a_chunk is None else 0.8 * self._seconds_a_chunk + 0.2 * seconds
        )

    def _put_notes(self) -> bool:
        """A batch of one document's notes, into all generations. Returns whether there was anything to do."""
        if not self._noted:
            return False
        document_id = self._noted.pop()
        try:
            document = self._catalog.document(document_id)
            chunks, notes = self._catalog.chunks_of(document_id), self._catalog.notes_of(document_id)
            whole = True
            for index in self._indexes.all:
                whole &= index.put_note_vectors(document, chunks, notes, BATCH_CHUNKS)
                index.put_note_words(document, notes)
        except NotFound:
            return True  # deleted meanwhile, and its notes with it
        except Exception:
            self._noted.add(document_id)
            self._indexes.check()  # a Chroma server that is away comes back
            self._noted.discard(document_id)
            log.exception("the notes of %s cannot be indexed: it is searched without them", document_id)
            return True
        if not whole:
            self._noted.add(document_id)
        return True

    # -- generations -------------------------------------------------------------------------------------------

    def _rebuild(self) -> bool:
        """One batch of the generation that is being built. Returns whether there was anything to do."""
        index, wanted = self._indexes.building, self._catalog.wanted_index()
        if index is None or (wanted is not None and index.row.reason == COMPACT):
            reason = wanted or (COMPACT if self._heavy() else None)
            if reason is None:
                return False
            self._built.clear()  # of the generation before, if it ended in an error
            self._plan, self._built_chunks = [], 0
            index = self._indexes.build(reason)
        if not self._plan:
            documents = self._catalog.documents(status="indexed")
            self._rebuild_total = sum(d.chunks or 0 for d in documents)
            self._plan = [d for d in documents if d.id not in self._built]
        if self._plan:
            self._build_document(index, self._plan[-1])
        else:
            self._indexes.swap()
            log.info("the new index answers (%s)", index.row.reason)
            self._built.clear()
            self._built_chunks = 0
        self._rebuild_error = None
        return True

    def _build_document(self, index: Index, document: Document) -> None:
        chunks = self._catalog.chunks_of(document.id)
        missing = self._missing(index, document, chunks)
        part = missing[:BATCH_CHUNKS]
        if part:
            self._copy_or_embed(index, document, part)
        if len(part) == len(missing):
            notes = self._catalog.notes_of(document.id)
            if not index.put_note_vectors(document, chunks, notes, BATCH_CHUNKS):
                return
            index.put_words([(document, chunks)])
            index.put_note_words(document, notes)
            self._plan.pop()
            self._built.add(document.id)
            self._built_chunks += len(chunks)

    def _copy_or_embed(self, index: Index, document: Document, chunks: list[Chunk]) -> None:
        """Compaction moves vectors; every other rebuild makes them anew, because the old ones may be what is wrong."""
        active = self._indexes.active
        same = active.row.fingerprint == index.row.fingerprint and not active.vectors.outdated
        if index.row.reason == COMPACT and same:
            import numpy as np

            known = active.vectors.vectors(document.collection_id, [c.id for c in chunks])
            held = [c for c in chunks if c.id in known]
            if held:
                index.put_vectors([(document, c) for c in held], np.stack([known[c.id] for c in held]))
            chunks = [c for c in chunks if c.id not in known]
        if chunks and index.embedder is not None:
            rest = [(document, c) for c in chunks]
            index.put_vectors(rest, index.embedder.embed_documents(index.embedded(rest)))

    def _heavy(self) -> bool:
        row = self._catalog.index("active")
        if row is None or row.deleted < COMPACT_DELETED or self._indexes.active.embedder is None:
            return False
        live = sum(d.chunks or 0 for d in self._catalog.documents(status="indexed"))
        return row.deleted > COMPACT_SHARE * (live + row.deleted)
