"""The trash: documents that no search shows any more, until they are restored or purged; alone or with their collection."""

import sqlite3
import time
from collections.abc import Iterable

from services.rag.errors import NotFound
from services.rag.store.documents import DOCUMENTS, NEXT_SEQUENCE, document_of
from services.rag.store.files import Files
from services.rag.store.jobs import Jobs
from services.rag.store.notes import Notes
from services.rag.store.records import OPEN_STATES, Document, Job


class Trash(Jobs, Files, Notes):
    def trash(self) -> list[Document]:
        """Deleted and replaced documents, the last deleted first."""
        return [
            document_of(row)
            for row in self._db.execute(f"{DOCUMENTS} WHERE d.status = 'deleted' ORDER BY d.deleted_at DESC")
        ]

    def delete(self, doc_id: str) -> Document:
        """From here on the document is in the trash and no search shows it; the indexes let go of it afterwards."""
        document = self.document(doc_id)
        with self._database.transaction() as db:
            self._discard(db, doc_id, document.collection_id, time.time())
        return document

    def delete_collection(self, name: str) -> list[Document]:
        """The collection is gone, its documents are in the trash; returns them."""
        found = self._changeable(name)
        now = time.time()
        with self._database.transaction() as db:
            documents = [
                document_of(row)
                for row in db.execute(f"{DOCUMENTS} WHERE d.collection_id = ? AND d.status != 'deleted'", (found.id,))
            ]
            for document in documents:
                self._discard(db, document.id, found.id, now)
            db.execute("UPDATE collections SET deleted_at = ? WHERE id = ?", (now, found.id))
        return documents

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
        row = self._db.execute(f"{DOCUMENTS} WHERE d.id = ? AND d.status = 'deleted'", (doc_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no document {doc_id!r} in the trash; GET /trash lists it", param="document_id")
        document = document_of(row)
        with self._database.transaction() as db:
            collection = db.execute("SELECT * FROM collections WHERE id = ?", (document.collection_id,)).fetchone()
            if collection["deleted_at"] is not None:
                self._free_name(db, collection["name"])
                db.execute("UPDATE collections SET deleted_at = NULL WHERE id = ?", (document.collection_id,))
            self._revive(db, doc_id)
            db.execute(f"UPDATE documents SET sequence = {NEXT_SEQUENCE} WHERE id = ?", (doc_id,))  # noqa: S608
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
        """Remove documents in the trash for good (all, or those named): text, notes, history and file. Returns how many."""
        wanted = [d.id for d in self.trash()] if doc_ids is None else list(doc_ids)
        purged = 0
        with self._files_lock:
            with self._database.transaction() as db:
                for doc_id in wanted:
                    found = db.execute("DELETE FROM documents WHERE id = ? AND status = 'deleted'", (doc_id,))
                    purged += found.rowcount
                    if found.rowcount:
                        db.execute("DELETE FROM jobs WHERE document_id = ?", (doc_id,))
                self._forget_notes(db)
                db.execute(
                    "DELETE FROM collections WHERE deleted_at IS NOT NULL"
                    " AND id NOT IN (SELECT collection_id FROM documents)"
                )
            self.sweep_files()
        return purged
