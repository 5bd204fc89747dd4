"""Collections: a name that can change, over an id that documents and indexes are filed under."""

import sqlite3
import time
import uuid

from services.rag.errors import Conflict, InvalidRequest, NotFound
from services.rag.store.part import Part
from services.rag.store.records import Collection
from services.rag.store.schema import DEFAULT_COLLECTION_ID


class Collections(Part):
    """Deleting one is a matter of the trash."""

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
