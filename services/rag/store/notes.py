"""Notes: what the model wrote about chunks, kept by their text, so that the same content is never paid for twice."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from sqlite3 import Connection

from services.rag.store.part import Part
from services.rag.store.records import Chunk

_WANTED = "coalesce((SELECT wanted FROM note_choices WHERE document_id = d.id), ?)"


@dataclass(frozen=True)
class NoteCount:
    """Of a document that wants notes: its chunks, those that the model was asked about, and those with a note of use."""

    total: int
    done: int
    kept: int


class Notes(Part):
    # Whether documents without a choice of their own have notes. Those of others are neither made nor searched.
    notes_wanted = False

    def choose_notes(self, doc_id: str, wanted: bool) -> None:
        """The document's own choice, before the setting's."""
        with self._database.transaction() as db:
            db.execute("INSERT OR REPLACE INTO note_choices SELECT id, ? FROM documents WHERE id = ?", (wanted, doc_id))

    def without_note(self, limit: int) -> list[Chunk]:
        """Chunks of indexed documents that want notes and that nobody asked the model about yet, first indexed first."""
        rows = self._db.execute(
            "SELECT k.* FROM documents d JOIN chunks k ON k.document_id = d.id"  # noqa: S608
            f" WHERE d.status = 'indexed' AND {_WANTED}"
            " AND NOT EXISTS (SELECT 1 FROM chunk_notes n WHERE n.chunk_id = k.id)"
            " ORDER BY d.indexed_at, d.id, k.ordinal LIMIT ?",
            (self.notes_wanted, limit),
        )
        return [Chunk(*row) for row in rows]

    def reuse_notes(self, chunks: Iterable[Chunk], model: str, version: int) -> set[str]:
        """Give chunks the notes that this model wrote about the same text; returns the ids of those chunks."""
        with self._database.transaction() as db:
            return {c.id for c in chunks if self._link(db, c, model, version)}

    def put_note(self, chunk: Chunk, model: str, version: int, note: str | None) -> None:
        """``note`` is None where the model gave none of use: it is not asked again. A chunk that is gone has none."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO notes (text_sha256, model, version, note, created_at)"
                " SELECT ?, ?, ?, ?, ? FROM chunks WHERE id = ?",
                (text_sha256(chunk.text), model, version, note, time.time(), chunk.id),
            )
            self._link(db, chunk, model, version)

    @staticmethod
    def _link(db: Connection, chunk: Chunk, model: str, version: int) -> bool:
        linked = db.execute(
            "INSERT OR REPLACE INTO chunk_notes SELECT k.id, n.id FROM chunks k, notes n"
            " WHERE k.id = ? AND n.text_sha256 = ? AND n.model = ? AND n.version = ?",
            (chunk.id, text_sha256(chunk.text), model, version),
        )
        return bool(linked.rowcount)

    def notes_of(self, doc_id: str) -> dict[str, str]:
        """The notes of an indexed document that are searched, by chunk id."""
        rows = self._db.execute(
            "SELECT k.id, n.note FROM documents d JOIN chunks k ON k.document_id = d.id"  # noqa: S608
            " JOIN chunk_notes c ON c.chunk_id = k.id JOIN notes n ON n.id = c.note_id"
            f" WHERE d.id = ? AND d.status = 'indexed' AND n.note IS NOT NULL AND {_WANTED}",
            (doc_id, self.notes_wanted),
        )
        return dict(rows.fetchall())

    def noted_chunks(self, collection_id: str) -> dict[str, list[str]]:
        """Ids of chunks whose note is searched, by document: what the indexes should hold."""
        out: dict[str, list[str]] = {}
        rows = self._db.execute(
            "SELECT d.id, k.id FROM chunk_notes c JOIN notes n ON n.id = c.note_id JOIN chunks k ON k.id = c.chunk_id"  # noqa: S608
            " JOIN documents d ON d.id = k.document_id"
            f" WHERE d.collection_id = ? AND d.status = 'indexed' AND n.note IS NOT NULL AND {_WANTED}",
            (collection_id, self.notes_wanted),
        )
        for doc_id, chunk_id in rows:
            out.setdefault(doc_id, []).append(chunk_id)
        return out

    def note_counts(self, doc_ids: Sequence[str] | None = None) -> Mapping[str, NoteCount]:
        """By document, of those that want notes and have chunks; of all when ``doc_ids`` is None."""
        only = "" if doc_ids is None else " AND d.id IN (SELECT value FROM json_each(?))"
        rows = self._db.execute(
            "SELECT d.id, count(*), count(c.chunk_id), count(n.note) FROM documents d"  # noqa: S608
            " JOIN chunks k ON k.document_id = d.id LEFT JOIN chunk_notes c ON c.chunk_id = k.id"
            f" LEFT JOIN notes n ON n.id = c.note_id WHERE d.status != 'deleted' AND {_WANTED}{only} GROUP BY d.id",
            (self.notes_wanted, *([] if doc_ids is None else [json.dumps(list(doc_ids))])),
        )
        return {row[0]: NoteCount(*row[1:]) for row in rows}

    @staticmethod
    def _forget_notes(db: Connection) -> None:
        """Drop the notes that no chunk has any more: with the last document that held a text goes what was said of it."""
        db.execute("DELETE FROM notes WHERE id NOT IN (SELECT note_id FROM chunk_notes)")


def text_sha256(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
