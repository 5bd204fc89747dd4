"""Documents: what is known of each, but for its text."""

import json
from collections.abc import Sequence
from typing import Any

from services.rag.errors import Conflict, NotFound
from services.rag.store.collections import Collections
from services.rag.store.records import Document, Metadata

DOCUMENTS = (
    "SELECT d.id, d.collection_id, c.name, d.filename, d.format, d.sha256, d.size, d.status, d.error, d.pages, d.chunks,"
    " d.reader, d.metadata, d.sequence, d.replaces, d.replaced_by, d.created_at, d.indexed_at, d.deleted_at"
    " FROM documents d JOIN collections c ON c.id = d.collection_id"
)
DOCUMENT_COLUMNS = 19
NEXT_SEQUENCE = "(SELECT coalesce(max(sequence), 0) + 1 FROM documents)"


class Documents(Collections):
    def document(self, doc_id: str) -> Document:
        row = self._db.execute(f"{DOCUMENTS} WHERE d.id = ? AND d.status != 'deleted'", (doc_id,)).fetchone()
        if row is None:
            raise NotFound(f"there is no document {doc_id!r}; GET /documents lists them", param="document_id")
        return document_of(row)

    def documents(self, collection: str | None = None, status: str | None = None) -> list[Document]:
        """All documents but those in the trash, oldest first."""
        where, args = ["d.status != 'deleted'"], []
        if collection is not None:
            where.append("d.collection_id = ?")
            args.append(self.collection(collection).id)
        if status is not None:
            where.append("d.status = ?")
            args.append(status)
        query = f"{DOCUMENTS} WHERE {' AND '.join(where)} ORDER BY d.created_at, d.sequence"
        return [document_of(row) for row in self._db.execute(query, args)]

    def document_ids(self, collection_id: str) -> list[tuple[str, str, Metadata]]:
        """(id, filename, metadata) of the indexed documents of a collection: what a filter looks at."""
        rows = self._db.execute(
            "SELECT id, filename, metadata FROM documents WHERE collection_id = ? AND status = 'indexed'",
            (collection_id,),
        )
        return [(row[0], row[1], json.loads(row[2])) for row in rows]

    def chunk_count(self, collection_id: str, doc_ids: Sequence[str] | None = None) -> int:
        """Chunks of the indexed documents of a collection, or of those of them that are named."""
        only = "" if doc_ids is None else " AND id IN (SELECT value FROM json_each(?))"
        (count,) = self._db.execute(
            f"SELECT coalesce(sum(chunks), 0) FROM documents WHERE collection_id = ? AND status = 'indexed'{only}",  # noqa: S608
            (collection_id, *([] if doc_ids is None else [json.dumps(list(doc_ids))])),
        ).fetchone()
        return int(count)

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
                db.execute("UPDATE documents SET metadata = ? WHERE id = ?", (metadata_json(metadata), doc_id))
        return self.document(doc_id)

    def counts(self) -> dict[str, int]:
        """Documents by status."""
        return dict(self._db.execute("SELECT status, COUNT(*) FROM documents GROUP BY status").fetchall())


def document_of(row: Any) -> Document:
    """The document in a row of :data:`DOCUMENTS`."""
    values = list(row)
    values[12] = json.loads(values[12])
    return Document(*values)


def metadata_json(metadata: Metadata) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False)
