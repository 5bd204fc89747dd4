"""Texts: the pages of a document, the chunks cut from them, and what is to be said of pages."""

import sqlite3
import time
from collections.abc import Iterator, Sequence

from services.rag.errors import NotFound
from services.rag.store.documents import DOCUMENT_COLUMNS, DOCUMENTS, document_of
from services.rag.store.jobs import Jobs
from services.rag.store.records import OPEN_STATES, Chunk, Document, Job, Page, PageReport


class Texts(Jobs):
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

    def page_reports(self, doc_ids: Sequence[str] | None = None) -> dict[str, list[PageReport]]:
        """By document, in page order; of all documents when ``doc_ids`` is None."""
        out: dict[str, list[PageReport]] = {}
        query = "SELECT document_id, page, failed, message FROM page_reports"
        for where, args in _in_parts("document_id", doc_ids):
            for row in self._db.execute(f"{query} WHERE {where} ORDER BY document_id, page", args):
                out.setdefault(row[0], []).append(PageReport(row[1], bool(row[2]), row[3]))
        return out

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

    def sample_chunks(self, collection_id: str, size: int) -> list[tuple[str, str]]:
        """(id, text) of chunks of indexed documents, as if drawn at random: the same documents always give the same."""
        rows = self._db.execute(
            # An id ends with a hash of the text.
            "SELECT id, text FROM chunks WHERE rowid IN (SELECT k.rowid FROM documents d JOIN chunks k ON"
            " k.document_id = d.id WHERE d.collection_id = ? AND d.status = 'indexed'"
            " ORDER BY substr(k.id, -8), k.id LIMIT ?)",
            (collection_id, size),
        )
        return [(row[0], row[1]) for row in rows]

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
                    f"{DOCUMENTS.replace(' FROM', ', k.*, p.label FROM', 1)} JOIN chunks k ON k.document_id = d.id"
                    " JOIN pages p ON p.document_id = d.id AND p.number = k.page"
                    f" WHERE {where} AND d.status = 'indexed'",
                    args,
                )
                for row in rows:
                    columns = tuple(row)
                    chunk = Chunk(*columns[DOCUMENT_COLUMNS:-1])
                    found[chunk.id] = (chunk, document_of(columns[:DOCUMENT_COLUMNS]), columns[-1])
        finally:
            db.execute("COMMIT")
        return found

    def around(self, ids: Sequence[str], chunks: int = 2) -> dict[str, tuple[int, str]]:
        """By chunk the slice of its page from ``chunks`` before it to as many after it: its start and its text."""
        found: dict[str, tuple[int, str]] = {}
        for where, args in _in_parts("k.id", ids):
            rows = self._db.execute(
                "SELECT k.id, min(n.start), substr(p.text, min(n.start) + 1, max(n.end) - min(n.start)) FROM chunks k"  # noqa: S608
                " JOIN chunks n ON n.document_id = k.document_id AND n.page = k.page"
                " AND n.ordinal BETWEEN k.ordinal - ? AND k.ordinal + ?"
                f" JOIN pages p ON p.document_id = k.document_id AND p.number = k.page WHERE {where} GROUP BY k.id",
                [chunks, chunks, *args],
            )
            found.update((id_, (start, text)) for id_, start, text in rows)
        return found


def _in_parts(column: str, ids: Sequence[str] | None) -> Iterator[tuple[str, list[str]]]:
    """SQL conditions that hold ``ids`` in parts, because SQLite bounds the number of variables."""
    if ids is None:
        yield "1", []
        return
    for at in range(0, len(ids), 500):
        part = list(ids[at : at + 500])
        yield f"{column} IN ({','.join('?' * len(part))})", part
