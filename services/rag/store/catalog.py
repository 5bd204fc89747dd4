"""The source of truth: ``catalog.sqlite`` (collections, documents, pages, chunks, jobs) and the original files beside it.

Chroma and the lexical index can be dropped and made again from what is here. Every public method is one transaction, durable
when it returns. Thread-safe.
"""

import contextlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from services.rag.errors import Conflict, InvalidRequest, NotFound, StartupError, StorageError
from services.rag.store.database import Database, fsync
from services.rag.store.records import (
    OPEN_STATES,
    Chunk,
    Collection,
    Document,
    IndexRow,
    Job,
    JobState,
    Metadata,
    Page,
    PageReport,
    document_id,
)
from services.rag.store.schema import DEFAULT_COLLECTION_ID

# A waiting file moves ahead of newer ones by this many bytes a second: small files first, and a large one waits its turn.
AGING_BYTES = 500_000

_DOCUMENTS = (
    "SELECT d.id, d.collection_id, c.name, d.filename, d.format, d.sha256, d.size, d.status, d.error, d.pages, d.chunks,"
    " d.reader, d.metadata, d.sequence, d.replaces, d.replaced_by, d.created_at, d.indexed_at, d.deleted_at"
    " FROM documents d JOIN collections c ON c.id = d.collection_id"
)
_DOCUMENT_COLUMNS = 19
_NEXT_SEQUENCE = "(SELECT coalesce(max(sequence), 0) + 1 FROM documents)"


class Catalog:
    def __init__(self, data_dir: Path) -> None:
        """Open the catalog of ``data_dir``, making or migrating it.

        Raises:
            StartupError: the folder cannot be used, or a newer version wrote it.
        """
        self.data_dir = data_dir
        self.files_dir = data_dir / "files"
        self.incoming_dir = data_dir / "incoming"
        # Between finding a file and committing its document nobody may sweep it away.
        self._files_lock = threading.RLock()
        self._keeping_files = 0
        self._swaps = 0
        self._swapping = threading.Lock()
        try:
            for folder in (self.files_dir, self.incoming_dir):
                folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.incoming_dir.iterdir():
                _remove(leftover)  # an upload that was never accepted
            self._database = Database(data_dir / "catalog.sqlite")
            self.sweep_files()
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"RAG_DATA_DIR={data_dir} cannot be used: {error}. Name a folder this user can write to."
            ) from error

    @property
    def _db(self) -> sqlite3.Connection:
        return self._database.db

    def close(self) -> None:
        self._database.close()

    def release_reserve(self) -> None:
        """Make room on a full disk for a last word."""
        self._database.release_reserve()

    def keep_reserve(self) -> None:
        self._database.keep_reserve()

    # -- collections -------------------------------------------------------------------------------------------

    def collections(self) -> list[Collection]:
        """By name, with the number of their documents."""
        rows = self._db.execute(
            "SELECT c.id, c.name, c.created_at, count(d.id) FROM collections c"
            " LEFT JOIN documents d ON d.collection_id = c.id AND d.status != 'deleted'"
            " WHERE c.deleted_at IS NULL GROUP BY c.id ORDER BY c.name"
        )
        return [Collection(*row) for row in rows]

    def collection(self, name: str) -> Collection:
        row = self._db.execute(
            "SELECT id, name, created_at, (SELECT count(*) FROM documents d WHERE d.collection_id = c.id AND"
            " d.status != 'deleted') FROM collections c WHERE name = ? AND deleted_at IS NULL",
            (name,),
        ).fetchone()
        if row is None:
            raise NotFound(
                f"there is no collection {name!r}; GET /collections lists them, POST /collections makes one",
                param="collection",
            )
        return Collection(*row)

    def create_collection(self, name: str) -> Collection:
        with self._database.transaction() as db:
            self._free_name(db, name)
            db.execute("INSERT INTO collections VALUES (?, ?, ?, NULL)", (uuid.uuid4().hex, name, time.time()))
        return self.collection(name)

    def rename_collection(self, name: str, new: str) -> Collection:
        found = self._changeable(name)
        with self._database.transaction() as db:
            if new != name:
                self._free_name(db, new)
                db.execute("UPDATE collections SET name = ? WHERE id = ?", (new, found.id))
        return self.collection(new)

    def delete_collection(self, name: str) -> list[Document]:
        """The collection is gone, its documents are in the trash; returns them."""
        found = self._changeable(name)
        now = time.time()
        with self._database.transaction() as db:
            documents = [
                _document(row)
                for row in db.execute(f"{_DOCUMENTS} WHERE d.collection_id = ? AND d.status != 'deleted'", (found.id,))
            ]
            for document in documents:
                self._discard(db, document.id, found.id, now)
            db.execute("UPDATE collections SET deleted_at = ? WHERE id = ?", (now, found.id))
        return documents

    def _changeable(self, name: str) -> Collection:
        found = self.collection(name)
        if found.id == DEFAULT_COLLECTION_ID:
            raise InvalidRequest(
                f"the collection {name!r} is always there and cannot be renamed or deleted; delete its documents",
                param="collection",
            )
        return found

    @staticmethod
    def _free_name(db: sqlite3.Connection, name: str) -> None:
        if db.execute("SELECT 1 FROM collections WHERE name = ? AND deleted_at IS NULL", (name,)).fetchone():
            raise Conflict(f"there is a collection {name!r} already", param="name")

    # -- documents ---------------------------------------------------------------------------------------------

    def file_path(self, document: Document) -> Path:
        return self.files_dir / document.sha256

    def accept(
        self,
        incoming: Path,
        *,
        collection: str,
        filename: str,
        content_sha256: str,
        format: str,
        reader: str,
        metadata: Metadata | None = None,
        password: str | None = None,
        replace: str | None = None,
    ) -> tuple[Document, Job]:
        """Take the file at ``incoming`` (in ``incoming_dir``) as a document and queue its job, durably.

        The same content again gives the document that is there, with its latest job; it is read again when it failed, was
        cancelled, or has failed pages that another ``reader`` (how files are read now) may do better. One that lies in the
        trash comes back. ``replace`` names the document that this one takes the place of once it is indexed; one of the same
        name is replaced in any case.
        """
        size = incoming.stat().st_size
        target = self.collection(collection)
        with self._files_lock:
            self._keep_file(incoming, filename, content_sha256)
            doc_id = document_id(target.id, content_sha256)
            try:
                with self._database.transaction() as db:
                    if replace is not None and replace != doc_id:
                        self._replaceable(db, replace, target)
                    row = db.execute(f"{_DOCUMENTS} WHERE d.id = ?", (doc_id,)).fetchone()
                    if row is None:
                        db.execute(
                            "INSERT INTO documents (id, collection_id, filename, format, sha256, size, status, metadata,"  # noqa: S608
                            " sequence, replaces, created_at)"
                            f" VALUES (?, ?, ?, ?, ?, ?, 'accepted', ?, {_NEXT_SEQUENCE}, ?, ?)",
                            (
                                *(doc_id, target.id, filename, format, content_sha256, size),
                                *(_json(metadata or {}), replace, time.time()),
                            ),
                        )
                        job_id = self._queue(db, doc_id, password)
                    else:
                        job_id = self._accept_again(db, _document(row), filename, reader, metadata, password, replace)
            except BaseException:
                self._drop_file(content_sha256)
                raise
        return self.document(doc_id), self.job(job_id)

    def _accept_again(
        self,
        db: sqlite3.Connection,
        known: Document,
        filename: str,
        reader: str,
        metadata: Metadata | None,
        password: str | None,
        replace: str | None,
    ) -> str:
        """The job that stands for content which the catalog has already."""
        if metadata is not None:
            db.execute("UPDATE documents SET metadata = ? WHERE id = ?", (_json(metadata), known.id))
        deleted = known.status == "deleted"
        if deleted:
            self._revive(db, known.id)
            db.execute("UPDATE documents SET filename = ? WHERE id = ?", (filename, known.id))
        if replace is not None and replace != known.id:
            db.execute("UPDATE documents SET replaces = ? WHERE id = ?", (replace, known.id))
        # Of one name it is the newest version now, also where a later one had taken its place.
        db.execute(f"UPDATE documents SET sequence = {_NEXT_SEQUENCE} WHERE id = ?", (known.id,))  # noqa: S608
        failed_pages = db.execute(
            "SELECT 1 FROM page_reports WHERE document_id = ? AND failed LIMIT 1", (known.id,)
        ).fetchone()
        outdated = known.reader != reader and (failed_pages is not None or known.status != "indexed")
        if known.status in ("failed", "cancelled") or (outdated and known.status in ("indexed", "deleted")):
            db.execute("UPDATE documents SET filename = ? WHERE id = ?", (filename, known.id))
            self._forget_text(db, known)
            return self._queue(db, known.id, password)
        if deleted:
            return self._queue(db, known.id, password)
        if known.status == "indexed" and self._replace_older(db, known.id):
            self._swaps += 1
        return str(
            db.execute(
                "SELECT id FROM jobs WHERE document_id = ? ORDER BY created_at DESC, rowid DESC", (known.id,)
            ).fetchone()[0]
        )

    def _keep_file(self, incoming: Path, filename: str, content_sha256: str) -> None:
        target = self.files_dir / content_sha256
        try:
            if target.exists():
                incoming.unlink()
            else:
                fsync(incoming)
                incoming.replace(target)
                fsync(self.files_dir)
        except OSError as error:
            raise StorageError(f"{filename} cannot be stored in {self.files_dir}: {error}") from error

    def _drop_file(self, content_sha256: str) -> None:
        """Of an upload that was refused after all, unless a document has the same content."""
        with suppress(OSError, sqlite3.Error):  # what went wrong is told; the next start sweeps the file
            if not self._db.execute("SELECT 1 FROM documents WHERE sha256 = ?", (content_sha256,)).fetchone():
                (self.files_dir / content_sha256).unlink(missing_ok=True)

    @staticmethod
    def _replaceable(db: sqlite3.Connection, doc_id: str, collection: Collection) -> None:
        row = db.execute(
            "SELECT 1 FROM documents WHERE id = ? AND collection_id = ? AND status != 'deleted'",
            (doc_id, collection.id),
        ).fetchone()
        if row is None:
            raise NotFound(
                f"there is no document {doc_id!r} in the collection {collection.name!r} to replace", param="replace"
            )

    def document(self, doc_id: str) -> Document:
        row = self._db.execute(f"{_DOCUMENTS} WHERE d.id = ? AND d.status != 'deleted'", (doc_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no document {doc_id!r}; GET /documents lists them", param="document_id")
        return _document(row)

    def documents(self, collection: str | None = None, status: str | None = None) -> list[Document]:
        """All documents but those in the trash, oldest first."""
        where, args = ["d.status != 'deleted'"], []
        if collection is not None:
            where.append("d.collection_id = ?")
            args.append(self.collection(collection).id)
        if status is not None:
            where.append("d.status = ?")
            args.append(status)
        query = f"{_DOCUMENTS} WHERE {' AND '.join(where)} ORDER BY d.created_at, d.sequence"
        return [_document(row) for row in self._db.execute(query, args)]

    def document_ids(self, collection_id: str) -> list[tuple[str, str, Metadata]]:
        """(id, filename, metadata) of the indexed documents of a collection: what a filter looks at."""
        rows = self._db.execute(
            "SELECT id, filename, metadata FROM documents WHERE collection_id = ? AND status = 'indexed'",
            (collection_id,),
        )
        return [(row[0], row[1], json.loads(row[2])) for row in rows]

    def update_document(
        self, doc_id: str, *, filename: str | None = None, metadata: Metadata | None = None
    ) -> Document:
        """Another name or other metadata."""
        document = self.document(doc_id)
        with self._database.transaction() as db:
            if filename is not None and filename != document.filename:
                if db.execute(
                    "SELECT 1 FROM documents WHERE collection_id = ? AND filename = ? AND status != 'deleted'",
                    (document.collection_id, filename),
                ).fetchone():
                    raise Conflict(
                        f"the collection {document.collection!r} has a document {filename!r} already", param="filename"
                    )
                db.execute("UPDATE documents SET filename = ? WHERE id = ?", (filename, doc_id))
            if metadata is not None:
                db.execute("UPDATE documents SET metadata = ? WHERE id = ?", (_json(metadata), doc_id))
        return self.document(doc_id)

    def page_reports(self, doc_ids: Sequence[str] | None = None) -> dict[str, list[PageReport]]:
        """By document, in page order; of all documents when ``doc_ids`` is None."""
        out: dict[str, list[PageReport]] = {}
        query = "SELECT document_id, page, failed, message FROM page_reports"
        for where, args in _in_parts("document_id", doc_ids):
            for row in self._db.execute(f"{query} WHERE {where} ORDER BY document_id, page", args):
                out.setdefault(row[0], []).append(PageReport(row[1], bool(row[2]), row[3]))
        return out

    # -- the trash ---------------------------------------------------------------------------------------------

    def trash(self) -> list[Document]:
        """Deleted and replaced documents, the last deleted first."""
        return [
            _document(row)
            for row in self._db.execute(f"{_DOCUMENTS} WHERE d.status = 'deleted' ORDER BY d.deleted_at DESC")
        ]

    def delete(self, doc_id: str) -> Document:
        """From here on the document is in the trash and no search shows it; the indexes let go of it afterwards."""
        document = self.document(doc_id)
        with self._database.transaction() as db:
            self._discard(db, doc_id, document.collection_id, time.time())
        return document

    def _discard(
        self, db: sqlite3.Connection, doc_id: str, collection_id: str, now: float, replaced_by: str | None = None
    ) -> None:
        db.execute(
            "UPDATE documents SET status = 'deleted', deleted_at = ?, replaced_by = ? WHERE id = ?",
            (now, replaced_by, doc_id),
        )
        reason = "a newer version took its place" if replaced_by else "the document was deleted"
        db.execute(
            "UPDATE jobs SET state = 'cancelled', error = ?, password = NULL, updated_at = ?"  # noqa: S608
            f" WHERE document_id = ? AND state IN {OPEN_STATES}",
            (reason, now, doc_id),
        )
        db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (doc_id, collection_id))

    def restore(self, doc_id: str) -> tuple[Document, Job]:
        """Take a document out of the trash; its text is there, its vectors are made again."""
        row = self._db.execute(f"{_DOCUMENTS} WHERE d.id = ? AND d.status = 'deleted'", (doc_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no document {doc_id!r} in the trash; GET /trash lists it", param="document_id")
        document = _document(row)
        with self._database.transaction() as db:
            collection = db.execute("SELECT * FROM collections WHERE id = ?", (document.collection_id,)).fetchone()
            if collection["deleted_at"] is not None:
                self._free_name(db, collection["name"])
                db.execute("UPDATE collections SET deleted_at = NULL WHERE id = ?", (document.collection_id,))
            self._revive(db, doc_id)
            db.execute(f"UPDATE documents SET sequence = {_NEXT_SEQUENCE} WHERE id = ?", (doc_id,))  # noqa: S608
            job_id = self._queue(db, doc_id, None)
        return self.document(doc_id), self.job(job_id)

    @staticmethod
    def _revive(db: sqlite3.Connection, doc_id: str) -> None:
        db.execute(
            "UPDATE documents SET status = 'accepted', error = NULL, deleted_at = NULL, replaced_by = NULL,"
            " replaces = NULL WHERE id = ?",
            (doc_id,),
        )

    def purge(self, doc_ids: Iterable[str] | None = None) -> int:
        """Remove documents in the trash for good (all, or those named): text, history and file. Returns how many."""
        wanted = [d.id for d in self.trash()] if doc_ids is None else list(doc_ids)
        purged = 0
        with self._files_lock:
            with self._database.transaction() as db:
                for doc_id in wanted:
                    found = db.execute("DELETE FROM documents WHERE id = ? AND status = 'deleted'", (doc_id,))
                    purged += found.rowcount
                    if found.rowcount:
                        db.execute("DELETE FROM jobs WHERE document_id = ?", (doc_id,))
                db.execute(
                    "DELETE FROM collections WHERE deleted_at IS NOT NULL"
                    " AND id NOT IN (SELECT collection_id FROM documents)"
                )
            self.sweep_files()
        return purged

    def sweep_files(self) -> None:
        """Remove the files that no document has: purged ones, and uploads that a kill kept from being accepted."""
        with self._files_lock:
            if self._keeping_files:
                return
            known = {row[0] for row in self._db.execute("SELECT sha256 FROM documents")}
            for path in self.files_dir.iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)

    @contextmanager
    def keeping_files(self) -> Iterator[None]:
        """No file disappears meanwhile; what is purged is swept afterwards."""
        with self._files_lock:
            self._keeping_files += 1
        try:
            yield
        finally:
            with self._files_lock:
                self._keeping_files -= 1
                self.sweep_files()

    # -- pages and chunks --------------------------------------------------------------------------------------

    def put_text(
        self,
        job: Job,
        pages: Sequence[Page],
        chunks: Sequence[Chunk],
        reports: Sequence[PageReport],
        total: int,
        reader: str,
    ) -> bool:
        """Replace the document's text by what was read, and let the job go on to embedding.

        Returns whether it did: not when the job was cancelled meanwhile.
        """
        doc_id, now = job.document_id, time.time()
        with self._database.transaction() as db:
            moved = db.execute(
                "UPDATE jobs SET state = 'embedding', password = NULL, pages_total = ?, pages_read = ?, chunks_total = ?,"  # noqa: S608
                f" updated_at = ? WHERE id = ? AND state IN {OPEN_STATES}",
                (total, total, len(chunks), now, job.id),
            )
            if not moved.rowcount:
                return False
            for table in ("pages", "page_reports", "chunks"):
                db.execute(f"DELETE FROM {table} WHERE document_id = ?", (doc_id,))  # noqa: S608
            db.executemany(
                "INSERT INTO pages (document_id, number, text, label, method) VALUES (?, ?, ?, ?, ?)",
                [(doc_id, p.number, p.text, p.label, p.method) for p in pages],
            )
            db.executemany(
                "INSERT INTO chunks (id, document_id, ordinal, page, start, end, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(c.id, doc_id, c.ordinal, c.page, c.start, c.end, c.text) for c in chunks],
            )
            self._put_reports(db, doc_id, reports)
            db.execute(
                "UPDATE documents SET status = 'embedding', pages = ?, chunks = ?, reader = ? WHERE id = ?",
                (total, len(chunks), reader, doc_id),
            )
        return True

    def put_failure(self, job: Job, reason: str, page: int | None, reports: Sequence[PageReport], total: int) -> None:
        """End the job as failed, with what is to be said of each page."""
        with self._database.transaction() as db:
            self._end_job(db, job.id, "failed", reason, page)
            db.execute("DELETE FROM page_reports WHERE document_id = ?", (job.document_id,))
            self._put_reports(db, job.document_id, reports)
            if total:
                db.execute("UPDATE documents SET pages = ? WHERE id = ?", (total, job.document_id))

    @staticmethod
    def _put_reports(db: sqlite3.Connection, doc_id: str, reports: Sequence[PageReport]) -> None:
        db.executemany(
            "INSERT INTO page_reports VALUES (?, ?, ?, ?)", [(doc_id, r.page, r.failed, r.message) for r in reports]
        )

    @staticmethod
    def _forget_text(db: sqlite3.Connection, document: Document) -> None:
        for table in ("pages", "page_reports", "chunks"):
            db.execute(f"DELETE FROM {table} WHERE document_id = ?", (document.id,))  # noqa: S608
        db.execute("UPDATE documents SET reader = NULL, pages = NULL, chunks = NULL WHERE id = ?", (document.id,))
        db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (document.id, document.collection_id))

    def page(self, doc_id: str, number: int) -> Page:
        row = self._db.execute(
            "SELECT number, text, label, method FROM pages WHERE document_id = ? AND number = ?", (doc_id, number)
        ).fetchone()
        if row is None:
            raise NotFound(f"document {doc_id!r} has no text on page {number}", param="page")
        return Page(*row)

    def pages_of(self, doc_id: str) -> dict[int, Page]:
        """By number."""
        rows = self._db.execute("SELECT number, text, label, method FROM pages WHERE document_id = ?", (doc_id,))
        return {row[0]: Page(*row) for row in rows}

    def chunks_of(self, doc_id: str) -> list[Chunk]:
        rows = self._db.execute("SELECT * FROM chunks WHERE document_id = ? ORDER BY ordinal", (doc_id,))
        return [Chunk(*row) for row in rows]

    def chunk_ids(self, collection_id: str) -> dict[str, list[str]]:
        """Chunk ids by indexed document: what the indexes should hold."""
        out: dict[str, list[str]] = {}
        rows = self._db.execute(
            "SELECT d.id, c.id FROM documents d JOIN chunks c ON c.document_id = d.id"
            " WHERE d.collection_id = ? AND d.status = 'indexed'",
            (collection_id,),
        )
        for doc_id, id_ in rows:
            out.setdefault(doc_id, []).append(id_)
        return out

    def visible_chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document, str]]:
        """Those of ``ids`` whose document is indexed, with their page's label: what a search may show.

        One moment's state, also for many ids.
        """
        found: dict[str, tuple[Chunk, Document, str]] = {}
        db = self._db
        db.execute("BEGIN")
        try:
            for where, args in _in_parts("k.id", ids):
                rows = db.execute(
                    f"{_DOCUMENTS.replace(' FROM', ', k.*, p.label FROM', 1)} JOIN chunks k ON k.document_id = d.id"
                    " JOIN pages p ON p.document_id = d.id AND p.number = k.page"
                    f" WHERE {where} AND d.status = 'indexed'",
                    args,
                )
                for row in rows:
                    columns = tuple(row)
                    chunk = Chunk(*columns[_DOCUMENT_COLUMNS:-1])
                    found[chunk.id] = (chunk, _document(columns[:_DOCUMENT_COLUMNS]), columns[-1])
        finally:
            db.execute("COMMIT")
        return found

    @property
    def swaps(self) -> int:
        """Goes up whenever a document takes another's place: a search that saw it change looks again."""
        with self._swapping:
            return self._swaps

    # -- jobs --------------------------------------------------------------------------------------------------

    def _queue(self, db: sqlite3.Connection, doc_id: str, password: str | None) -> str:
        """A new job for the document: to be read, or only embedded where its text is there."""
        job_id, now = uuid.uuid4().hex, time.time()
        row = db.execute("SELECT filename, size, reader, chunks FROM documents WHERE id = ?", (doc_id,)).fetchone()
        state = "embedding" if row["reader"] is not None and row["chunks"] else "accepted"
        db.execute(
            "INSERT INTO jobs (id, document_id, filename, size, state, chunks_total, password, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (job_id, doc_id, row["filename"], row["size"], state, row["chunks"], password, now, now),
        )
        db.execute("UPDATE documents SET status = ?, error = NULL WHERE id = ?", (state, doc_id))
        return job_id

    def job(self, job_id: str) -> Job:
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no job {job_id!r}", param="job_id")
        return Job(*row)

    def jobs(self, states: Sequence[str] | None = None, limit: int = 1000) -> list[Job]:
        """The latest jobs, oldest first; only those in ``states``, where given."""
        marks = ",".join("?" * len(states)) if states else ""
        where = f"WHERE state IN ({marks})" if states else ""
        rows = self._db.execute(
            f"SELECT * FROM (SELECT *, rowid AS r FROM jobs {where} ORDER BY created_at DESC, rowid DESC LIMIT ?)"  # noqa: S608
            " ORDER BY created_at, r",
            (*(states or ()), limit),
        )
        return [Job(*tuple(row)[:-1]) for row in rows]

    def open_jobs(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        rows = self._db.execute(f"SELECT * FROM jobs WHERE state IN {OPEN_STATES} ORDER BY created_at, rowid")  # noqa: S608
        return [Job(*row) for row in rows]

    def next_to_read(self, except_for: Iterable[str] = ()) -> Job | None:
        """The job to read next: small files first, but nobody waits for ever."""
        skip = set(except_for)
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE state IN ('accepted', 'reading') ORDER BY size + created_at * ?, rowid LIMIT ?",
            (AGING_BYTES, len(skip) + 1),
        )
        return next((Job(*row) for row in rows if row["id"] not in skip), None)

    def to_embed(self, aging: float) -> list[Job]:
        """Jobs whose document has its text, small ones first; a second of waiting counts for ``aging`` chunks."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE state = 'embedding' ORDER BY coalesce(chunks_total, 0) + created_at * ?, rowid",
            (aging,),
        )
        return [Job(*row) for row in rows]

    def update_job(self, job_id: str, **columns: Any) -> None:
        """Progress; the document's status follows the job's state."""
        self.update_jobs({job_id: columns})

    def update_jobs(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """:meth:`update_job` for several, in one commit."""
        with self._database.transaction() as db:
            for job_id, columns in changes.items():
                names = ", ".join(f"{name} = ?" for name in columns)
                db.execute(
                    f"UPDATE jobs SET {names}, updated_at = ? WHERE id = ? AND state IN {OPEN_STATES}",  # noqa: S608
                    (*columns.values(), time.time(), job_id),
                )
                if "state" in columns:
                    db.execute(
                        "UPDATE documents SET status = (SELECT state FROM jobs WHERE id = ?), error = ?"
                        " WHERE id = (SELECT document_id FROM jobs WHERE id = ?) AND status != 'deleted'",
                        (job_id, columns.get("error"), job_id),
                    )

    def fail(self, job: Job, reason: str, page: int | None = None) -> None:
        """End the job as failed."""
        with self._database.transaction() as db:
            self._end_job(db, job.id, "failed", reason, page)

    def cancel(self, job_id: str) -> Job:
        """End an open job as cancelled; one that has ended stays as it is."""
        job = self.job(job_id)
        with self._database.transaction() as db:
            self._end_job(db, job_id, "cancelled", "cancelled by request", None)
            row = db.execute("SELECT collection_id FROM documents WHERE id = ?", (job.document_id,)).fetchone()
            if row is not None and not job.done:
                db.execute("INSERT OR REPLACE INTO removals VALUES (?, ?)", (job.document_id, row[0]))
        return self.job(job_id)

    def retry(self, job_id: str, password: str | None = None) -> tuple[Document, Job]:
        """A new job for the document of one that failed or was cancelled."""
        job = self.job(job_id)
        document = self.document(job.document_id)
        with self._database.transaction() as db:
            if document.status not in ("failed", "cancelled"):
                raise Conflict(
                    f"{document.filename} is {document.status}: only a failed or cancelled job is tried again",
                    param="job_id",
                )
            new = self._queue(db, document.id, password)
        return self.document(document.id), self.job(new)

    @staticmethod
    def _end_job(
        db: sqlite3.Connection,
        job_id: str,
        state: Literal["failed", "cancelled"],
        error: str,
        page: int | None,
    ) -> None:
        ended = db.execute(
            "UPDATE jobs SET state = ?, error = ?, page = ?, password = NULL, updated_at = ?"  # noqa: S608
            f" WHERE id = ? AND state IN {OPEN_STATES}",
            (state, error, page, time.time(), job_id),
        )
        if ended.rowcount:
            db.execute(
                "UPDATE documents SET status = ?, error = ? WHERE id = (SELECT document_id FROM jobs WHERE id = ?)"
                " AND status != 'deleted'",
                (state, error, job_id),
            )

    def finish(self, jobs: Sequence[Job]) -> None:
        """The documents become visible to searches, and those that they replace invisible: the one moment when they do."""
        now = time.time()
        with contextlib.ExitStack() as committing:
            with self._database.transaction() as db:
                swapped = self._finish(db, jobs, now)
                # Until it has gone up nobody may ask for the count: a search could see the swap and not the count.
                if swapped:
                    committing.enter_context(self._swapping)
            self._swaps += swapped

    def _finish(self, db: sqlite3.Connection, jobs: Sequence[Job], now: float) -> bool:
        swapped = False
        for job in jobs:
            ended = db.execute(
                "UPDATE jobs SET state = 'indexed', error = NULL, chunks_embedded = coalesce(chunks_total, 0),"  # noqa: S608
                f" updated_at = ? WHERE id = ? AND state IN {OPEN_STATES}",
                (now, job.id),
            )
            if ended.rowcount:
                db.execute(
                    "UPDATE documents SET status = 'indexed', error = NULL, indexed_at = ?"
                    " WHERE id = ? AND status != 'deleted'",
                    (now, job.document_id),
                )
                swapped |= self._replace_older(db, job.document_id)
        return swapped

    def _replace_older(self, db: sqlite3.Connection, doc_id: str) -> bool:
        """Of one name only the newest indexed version stays; the others go to the trash. Returns whether any went."""
        me = db.execute("SELECT * FROM documents WHERE id = ?", (doc_id,)).fetchone()
        newer = db.execute(
            "SELECT id FROM documents WHERE collection_id = ? AND filename = ? AND sequence > ? AND status = 'indexed'"
            " ORDER BY sequence DESC",
            (me["collection_id"], me["filename"], me["sequence"]),
        ).fetchone()
        now = time.time()
        if newer is not None:
            self._discard(db, doc_id, me["collection_id"], now, replaced_by=newer["id"])
            return True
        older = db.execute(
            "SELECT id FROM documents WHERE collection_id = ? AND (id = ? OR (filename = ? AND sequence < ?"
            " AND status IN ('indexed', 'failed', 'cancelled'))) AND status != 'deleted' AND id != ?",
            (me["collection_id"], me["replaces"], me["filename"], me["sequence"], doc_id),
        ).fetchall()
        for row in older:
            self._discard(db, row["id"], me["collection_id"], now, replaced_by=doc_id)
        return bool(older)

    def counts(self) -> dict[str, int]:
        """Documents by status."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM documents GROUP BY status").fetchall())

    # -- the indexes -------------------------------------------------------------------------------------------

    def index(self, state: Literal["active", "building"]) -> IndexRow | None:
        row = self._db.execute("SELECT * FROM indexes WHERE state = ?", (state,)).fetchone()
        if row is None:
            return None
        return IndexRow(
            *(row["generation"], row["fingerprint"], row["model_id"], row["state"], row["reason"], row["deleted"]),
            row["created_at"],
        )

    def add_index(self, state: Literal["active", "building"], fingerprint: str, model_id: str, reason: str) -> IndexRow:
        """A new, empty generation in the place of the one that had this state."""
        with self._database.transaction() as db:
            (last,) = db.execute("SELECT coalesce(max(generation), 0) FROM indexes").fetchone()
            db.execute("DELETE FROM indexes WHERE state = ?", (state,))
            db.execute(
                "INSERT INTO indexes VALUES (?, ?, ?, ?, ?, 0, ?)",
                (last + 1, fingerprint, model_id, state, reason, time.time()),
            )
        row = self.index(state)
        assert row is not None
        return row

    def drop_index(self, state: Literal["building"]) -> None:
        with self._database.transaction() as db:
            db.execute("DELETE FROM indexes WHERE state = ?", (state,))

    def activate(self, generation: int) -> None:
        """The generation that was being built answers from now on."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM indexes WHERE state = 'active'")
            db.execute("UPDATE indexes SET state = 'active' WHERE generation = ?", (generation,))

    def removals(self) -> list[tuple[str, str]]:
        """(document id, collection id) of what the indexes still have to let go of."""
        return [(row[0], row[1]) for row in self._db.execute("SELECT document_id, collection_id FROM removals")]

    def removed(self, doc_ids: Sequence[str], vectors: int) -> None:
        """The indexes have let go of these; ``vectors`` were deleted from the active one."""
        with self._database.transaction() as db:
            db.executemany("DELETE FROM removals WHERE document_id = ?", [(id_,) for id_ in doc_ids])
            db.execute("UPDATE indexes SET deleted = deleted + ? WHERE state = 'active'", (vectors,))

    # -- copies ------------------------------------------------------------------------------------------------

    def copy_to(self, target: Path) -> None:
        """A consistent copy of the whole catalog, while others write. Passwords of waiting jobs are not in it."""
        self._database.copy_to(target)
        copy = sqlite3.connect(target)
        try:
            copy.execute("PRAGMA secure_delete = ON")
            copy.execute("UPDATE jobs SET password = NULL")
            copy.commit()
        finally:
            copy.close()

    @contextmanager
    def importing(self) -> Iterator[sqlite3.Connection]:
        """One transaction in which rows of a copy are taken over; files must be in place by then."""
        with self._files_lock, self._database.transaction() as db:
            yield db


def _json(metadata: Metadata) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False)


def _in_parts(column: str, ids: Sequence[str] | None) -> Iterator[tuple[str, list[str]]]:
    """SQL conditions that hold ``ids`` in parts, because SQLite bounds the number of variables."""
    if ids is None:
        yield "1", []
        return
    for at in range(0, len(ids), 500):
        part = list(ids[at : at + 500])
        yield f"{column} IN ({','.join('?' * len(part))})", part


def _document(row: Any) -> Document:
    values = list(row)
    values[12] = json.loads(values[12])
    return Document(*values)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


__all__ = ["OPEN_STATES", "Catalog", "JobState"]
