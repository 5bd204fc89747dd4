"""The source of truth: ``catalog.sqlite`` (documents, pages, chunks, jobs) and the original files beside it.

Chroma and the lexical index can be dropped and made again from what is here. Every public method is one transaction;
WAL with ``synchronous=FULL`` makes a commit durable when it returns. Thread-safe: one connection a thread.
"""

import contextlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from services.rag.errors import NotFound, StartupError, StorageError

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, collection TEXT NOT NULL, filename TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    status TEXT NOT NULL, error TEXT, pages INTEGER, chunks INTEGER, failed_pages TEXT NOT NULL DEFAULT '',
    fingerprint TEXT, created_at REAL NOT NULL, indexed_at REAL,
    UNIQUE (collection, sha256)
);
CREATE TABLE pages (
    document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    number INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (document_id, number)
) WITHOUT ROWID;
CREATE TABLE chunks (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, page INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, text TEXT NOT NULL,
    UNIQUE (document_id, ordinal)
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, document_id TEXT NOT NULL, filename TEXT NOT NULL, state TEXT NOT NULL,
    error TEXT, page INTEGER, pages_total INTEGER, pages_read INTEGER NOT NULL DEFAULT 0,
    chunks_total INTEGER, chunks_embedded INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
);
CREATE INDEX jobs_by_document ON jobs (document_id);
CREATE INDEX jobs_by_state ON jobs (state, created_at);
"""

JobState = Literal["accepted", "reading", "embedding", "indexed", "failed", "cancelled"]
OPEN_STATES: tuple[JobState, ...] = ("accepted", "reading", "embedding")


@dataclass(frozen=True)
class Document:
    id: str
    collection: str
    filename: str
    sha256: str
    size: int
    status: str  # accepted | reading | embedding | indexed | failed | deleting
    error: str | None
    pages: int | None
    chunks: int | None
    failed_pages: tuple[int, ...]
    fingerprint: str | None
    created_at: float
    indexed_at: float | None


@dataclass(frozen=True)
class Job:
    id: str
    document_id: str
    filename: str
    state: JobState
    error: str | None
    page: int | None  # the page an error is about, 1-based
    pages_total: int | None
    pages_read: int
    chunks_total: int | None
    chunks_embedded: int
    created_at: float
    updated_at: float

    @property
    def done(self) -> bool:
        return self.state not in OPEN_STATES


@dataclass(frozen=True)
class Page:
    number: int  # 1-based
    text: str


@dataclass(frozen=True)
class Chunk:
    """``text`` is exactly ``page.text[start:end]`` (offsets in code points)."""

    id: str
    document_id: str
    ordinal: int
    page: int
    start: int
    end: int
    text: str


def document_id(collection: str, content_sha256: str) -> str:
    """The same content in the same collection is the same document."""
    return sha256(f"{collection}\0{content_sha256}".encode()).hexdigest()[:24]


class Catalog:
    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.files_dir = data_dir / "files"
        self.incoming_dir = data_dir / "incoming"
        self.path = data_dir / "catalog.sqlite"
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        try:
            for folder in (self.files_dir, self.incoming_dir):
                folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.incoming_dir.iterdir():
                leftover.unlink(missing_ok=True)  # an upload that was never accepted
            self._migrate()
            self._drop_unaccepted_files()
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"RAG_DATA_DIR={data_dir} cannot be used: {error}. Name a folder this user can write to."
            ) from error

    def _migrate(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StartupError(
                f"{self.path} was written by a newer docduet (format {version}, this one knows {SCHEMA_VERSION}): "
                "install that version, or name another RAG_DATA_DIR."
            )
        if version == 0:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")

    def _drop_unaccepted_files(self) -> None:
        """A kill between storing a file and committing its document leaves a file that nobody was promised."""
        known = {row[0] for row in self._db.execute("SELECT sha256 FROM documents")}
        for path in self.files_dir.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    @property
    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            db.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                db.execute(f"PRAGMA {pragma}")
            self._local.db = db
            with self._connections_lock:
                self._connections.append(db)
        return db

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise StorageError(f"the catalog in {self.data_dir} cannot be written: {error}") from error
            raise

    def close(self) -> None:
        with self._connections_lock:
            for db in self._connections:
                db.close()
            self._connections.clear()

    # -- documents ---------------------------------------------------------------------------------------------

    def file_path(self, document: Document) -> Path:
        return self.files_dir / document.sha256

    def accept(self, incoming: Path, *, collection: str, filename: str, content_sha256: str) -> tuple[Document, Job]:
        """Take the file at ``incoming`` (in ``incoming_dir``) as a document and queue its job, durably.

        The same content again gives the document that is there, with its latest job; a failed one is tried again.
        """
        size = incoming.stat().st_size
        target = self.files_dir / content_sha256
        try:
            if target.exists():
                incoming.unlink()
            else:
                with incoming.open("rb") as file:
                    os.fsync(file.fileno())
                incoming.replace(target)
                _fsync_dir(self.files_dir)
        except OSError as error:
            raise StorageError(f"{filename} cannot be stored in {self.files_dir}: {error}") from error
        doc_id, now = document_id(collection, content_sha256), time.time()
        with self._transaction() as db:
            row = db.execute("SELECT * FROM documents WHERE id = ?", (doc_id,)).fetchone()
            if row is not None and row["status"] == "deleting":
                # The delete has not finished its clean-up: let the new upload win, the ids are the same.
                db.execute("DELETE FROM documents WHERE id = ?", (doc_id,))
                row = None
            if row is not None and row["status"] != "failed":
                job = db.execute(
                    "SELECT * FROM jobs WHERE document_id = ? ORDER BY created_at DESC, rowid DESC", (doc_id,)
                ).fetchone()
                return _document(row), _job(job)
            if row is None:
                db.execute(
                    "INSERT INTO documents (id, collection, filename, sha256, size, status, created_at)"
                    " VALUES (?, ?, ?, ?, ?, 'accepted', ?)",
                    (doc_id, collection, filename, content_sha256, size, now),
                )
            else:
                db.execute("UPDATE documents SET status = 'accepted', error = NULL WHERE id = ?", (doc_id,))
            job_id = uuid.uuid4().hex
            db.execute(
                "INSERT INTO jobs (id, document_id, filename, state, created_at, updated_at)"
                " VALUES (?, ?, ?, 'accepted', ?, ?)",
                (job_id, doc_id, filename, now, now),
            )
        return self.document(doc_id), self.job(job_id)

    def document(self, doc_id: str) -> Document:
        row = self._db.execute("SELECT * FROM documents WHERE id = ? AND status != 'deleting'", (doc_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no document {doc_id!r}; GET /documents lists them", param="document_id")
        return _document(row)

    def documents(self, collection: str | None = None) -> list[Document]:
        """All documents, oldest first."""
        where, args = ("AND collection = ?", (collection,)) if collection is not None else ("", ())
        query = f"SELECT * FROM documents WHERE status != 'deleting' {where} ORDER BY created_at, rowid"  # noqa: S608
        return [_document(row) for row in self._db.execute(query, args)]

    def collections(self) -> list[str]:
        rows = self._db.execute("SELECT DISTINCT collection FROM documents WHERE status != 'deleting' ORDER BY 1")
        return [row[0] for row in rows]

    def mark_deleting(self, doc_id: str) -> Document:
        """From here on the document is invisible; :meth:`remove` ends it once the indexes have let go of it."""
        document = self.document(doc_id)
        with self._transaction() as db:
            db.execute("UPDATE documents SET status = 'deleting' WHERE id = ?", (doc_id,))
            db.execute(
                "UPDATE jobs SET state = 'cancelled', error = 'the document was deleted', updated_at = ?"  # noqa: S608
                f" WHERE document_id = ? AND state IN {OPEN_STATES}",
                (time.time(), doc_id),
            )
        return document

    def deleting(self) -> list[Document]:
        return [_document(row) for row in self._db.execute("SELECT * FROM documents WHERE status = 'deleting'")]

    def remove(self, document: Document) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM documents WHERE id = ? AND status = 'deleting'", (document.id,))
            used = db.execute("SELECT 1 FROM documents WHERE sha256 = ?", (document.sha256,)).fetchone()
            if used is None:
                self.file_path(document).unlink(missing_ok=True)

    # -- pages and chunks --------------------------------------------------------------------------------------

    def put_text(
        self, doc_id: str, pages: Sequence[Page], chunks: Sequence[Chunk], failed_pages: Sequence[int], total: int
    ) -> None:
        """Replace the document's text by what was read."""
        with self._transaction() as db:
            db.execute("DELETE FROM pages WHERE document_id = ?", (doc_id,))
            db.execute("DELETE FROM chunks WHERE document_id = ?", (doc_id,))
            db.executemany("INSERT INTO pages VALUES (?, ?, ?)", [(doc_id, p.number, p.text) for p in pages])
            db.executemany(
                "INSERT INTO chunks (id, document_id, ordinal, page, start, end, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(c.id, doc_id, c.ordinal, c.page, c.start, c.end, c.text) for c in chunks],
            )
            db.execute(
                "UPDATE documents SET pages = ?, chunks = ?, failed_pages = ? WHERE id = ?",
                (total, len(chunks), ",".join(map(str, failed_pages)), doc_id),
            )

    def page(self, doc_id: str, number: int) -> Page:
        row = self._db.execute(
            "SELECT text FROM pages WHERE document_id = ? AND number = ?", (doc_id, number)
        ).fetchone()
        if row is None:
            raise NotFound(f"document {doc_id!r} has no text on page {number}", param="page")
        return Page(number, row["text"])

    def chunks_of(self, doc_id: str) -> list[Chunk]:
        rows = self._db.execute("SELECT * FROM chunks WHERE document_id = ? ORDER BY ordinal", (doc_id,))
        return [_chunk(row) for row in rows]

    def visible_chunks(self, ids: Sequence[str]) -> dict[str, tuple[Chunk, Document]]:
        """Those of ``ids`` whose document is indexed: what a search may show."""
        found: dict[str, tuple[Chunk, Document]] = {}
        for at in range(0, len(ids), 500):  # SQLite bounds the number of variables
            part = ids[at : at + 500]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(
                f"SELECT c.*, d.* FROM chunks c JOIN documents d ON d.id = c.document_id"  # noqa: S608
                f" WHERE c.id IN ({marks}) AND d.status = 'indexed'",
                part,
            )
            for row in rows:
                columns = tuple(row)
                chunk = Chunk(*columns[:7])
                found[chunk.id] = (chunk, _document_columns(columns[7:]))
        return found

    # -- jobs --------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        row = self._db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no job {job_id!r}", param="job_id")
        return _job(row)

    def open_jobs(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        rows = self._db.execute(f"SELECT * FROM jobs WHERE state IN {OPEN_STATES} ORDER BY created_at, rowid")  # noqa: S608
        return [_job(row) for row in rows]

    def next_job(self) -> Job | None:
        row = self._db.execute(
            f"SELECT * FROM jobs WHERE state IN {OPEN_STATES} ORDER BY created_at, rowid LIMIT 1"  # noqa: S608
        ).fetchone()
        return None if row is None else _job(row)

    def update_job(self, job_id: str, **columns: Any) -> None:
        """Progress and state; the document's status follows the job's state."""
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._transaction() as db:
            db.execute(
                f"UPDATE jobs SET {names}, updated_at = ? WHERE id = ? AND state IN {OPEN_STATES}",  # noqa: S608
                (*columns.values(), time.time(), job_id),
            )
            if "state" in columns:
                db.execute(
                    "UPDATE documents SET status = (SELECT state FROM jobs WHERE id = ?), error = ?"
                    " WHERE id = (SELECT document_id FROM jobs WHERE id = ?) AND status != 'deleting'",
                    (job_id, columns.get("error"), job_id),
                )

    def finish(self, job: Job, fingerprint: str) -> None:
        """The document becomes visible to searches: the one moment when it does."""
        now = time.time()
        with self._transaction() as db:
            db.execute(
                "UPDATE documents SET status = 'indexed', error = NULL, fingerprint = ?, indexed_at = ?"
                " WHERE id = ? AND status != 'deleting'",
                (fingerprint, now, job.document_id),
            )
            db.execute(
                f"UPDATE jobs SET state = 'indexed', updated_at = ? WHERE id = ? AND state IN {OPEN_STATES}",  # noqa: S608
                (now, job.id),
            )

    def queue_again(self, documents: Sequence[Document]) -> None:
        """Queue a job for each of these indexed documents; their text is kept, only the indexes are made again."""
        now = time.time()
        with self._transaction() as db:
            for document in documents:
                db.execute("UPDATE documents SET status = 'accepted' WHERE id = ?", (document.id,))
                db.execute(
                    "INSERT INTO jobs (id, document_id, filename, state, created_at, updated_at)"
                    " VALUES (?, ?, ?, 'accepted', ?, ?)",
                    (uuid.uuid4().hex, document.id, document.filename, now, now),
                )

    def counts(self) -> dict[str, int]:
        """Documents by status."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM documents GROUP BY status").fetchall())


def _fsync_dir(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _document(row: sqlite3.Row) -> Document:
    return _document_columns(tuple(row))


def _document_columns(columns: tuple[Any, ...]) -> Document:
    values = list(columns)
    values[9] = tuple(int(n) for n in values[9].split(",") if n)
    # stored order: id … error, pages, chunks, failed_pages, fingerprint, created_at, indexed_at
    return Document(*values)


def _chunk(row: sqlite3.Row) -> Chunk:
    return Chunk(*tuple(row))


def _job(row: sqlite3.Row) -> Job:
    return Job(*tuple(row))
