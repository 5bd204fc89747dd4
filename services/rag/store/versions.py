"""Versions: how a document comes in, and takes the place of the one of its name."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.rag.errors import NotFound
from services.rag.store.documents import DOCUMENTS, NEXT_SEQUENCE, document_of, metadata_json
from services.rag.store.records import OPEN_STATES, Collection, Document, Job, Metadata, document_id
from services.rag.store.texts import Texts
from services.rag.store.trash import Trash


class Versions(Trash, Texts):
    def __init__(self, data_dir: Path) -> None:
        self._swaps = 0
        self._swapping = threading.Lock()
        super().__init__(data_dir)

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

        The same content again gives the document that is there, under the name it now has, with its latest job; it is read
        again when it failed, was cancelled, or has failed pages that another ``reader`` (how files are read now) may do better.
        One that lies in the trash comes back. ``replace`` names the document that this one takes the place of once it is
        indexed; one of the same name is replaced in any case.
        """
        size = incoming.stat().st_size
        target = self.collection(collection)
        with self._files_lock:
            self._keep_file(incoming, filename, content_sha256)
            doc_id = document_id(target.id, content_sha256)
            try:
                with self._swap() as (db, swapped):
                    if replace is not None and replace != doc_id:
                        self._replaceable(db, replace, target)
                    row = db.execute(f"{DOCUMENTS} WHERE d.id = ?", (doc_id,)).fetchone()
                    if row is None:
                        db.execute(
                            "INSERT INTO documents (id, collection_id, filename, format, sha256, size, status, metadata,"  # noqa: S608
                            " sequence, replaces, created_at)"
                            f" VALUES (?, ?, ?, ?, ?, ?, 'accepted', ?, {NEXT_SEQUENCE}, ?, ?)",
                            (
                                *(doc_id, target.id, filename, format, content_sha256, size),
                                *(metadata_json(metadata or {}), replace, time.time()),
                            ),
                        )
                        job_id = self._queue(db, doc_id, password)
                    else:
                        job_id, replaced = self._accept_again(
                            db, document_of(row), filename, reader, metadata, password, replace
                        )
                        if replaced:
                            swapped()
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
    ) -> tuple[str, bool]:
        """The job that stands for content which the catalog has already, and whether it took another's place at once."""
        if metadata is not None:
            db.execute("UPDATE documents SET metadata = ? WHERE id = ?", (metadata_json(metadata), known.id))
        deleted = known.status == "deleted"
        if deleted:
            self._revive(db, known.id)
        # A file that was renamed: under its old name another one may come, and must not take this one's place.
        db.execute("UPDATE documents SET filename = ? WHERE id = ?", (filename, known.id))
        if replace is not None and replace != known.id:
            db.execute("UPDATE documents SET replaces = ? WHERE id = ?", (replace, known.id))
        # Of one name it is the newest version now, also where a later one had taken its place.
        db.execute(f"UPDATE documents SET sequence = {NEXT_SEQUENCE} WHERE id = ?", (known.id,))  # noqa: S608
        failed_pages = db.execute(
            "SELECT 1 FROM page_reports WHERE document_id = ? AND failed LIMIT 1", (known.id,)
        ).fetchone()
        outdated = known.reader != reader and (failed_pages is not None or known.status != "indexed")
        if known.status in ("failed", "cancelled") or (outdated and known.status in ("indexed", "deleted")):
            self._forget_text(db, known)
            return self._queue(db, known.id, password), False
        if deleted:
            return self._queue(db, known.id, password), False
        replaced = known.status == "indexed" and self._replace_older(db, known.id)
        (job_id,) = db.execute(
            "SELECT id FROM jobs WHERE document_id = ? ORDER BY created_at DESC, rowid DESC", (known.id,)
        ).fetchone()
        return job_id, replaced

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

    def finish(self, jobs: Sequence[Job]) -> None:
        """The documents become visible to searches, and those that they replace invisible: the one moment when they do."""
        with self._swap() as (db, swapped):
            if self._finish(db, jobs, time.time()):
                swapped()

    @contextlib.contextmanager
    def _swap(self) -> Iterator[tuple[sqlite3.Connection, Callable[[], None]]]:
        """A transaction, and what to call in it when a document takes another's place."""
        count = 0

        def swapped() -> None:
            nonlocal count
            # From before the commit until it has gone up nobody may ask for the count: a search could see the swap and
            # not the count.
            committing.enter_context(self._swapping)
            count = 1

        with contextlib.ExitStack() as committing:
            with self._database.transaction() as db:
                yield db, swapped
            self._swaps += count

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

    @property
    def swaps(self) -> int:
        """Goes up whenever a document takes another's place: a search that saw it change looks again."""
        with self._swapping:
            return self._swaps
