"""Jobs: the queue, and the states in which a document is on its way into the indexes."""

import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from services.rag.errors import Conflict, NotFound
from services.rag.store.documents import Documents
from services.rag.store.records import OPEN_STATES, Document, Job

# A waiting file moves ahead of newer ones by this many bytes a second: small files first, and a large one waits its turn.
AGING_BYTES = 500_000


class Jobs(Documents):
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
