"""Generations of the indexes, and what the indexes still have to let go of."""

import time
from collections.abc import Sequence
from typing import Literal

from services.rag.store.part import Part
from services.rag.store.records import IndexRow

# The reason of a generation into which vectors are moved; for every other reason they are made anew.
COMPACT = "compact"


class Generations(Part):
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
            # What was asked for is there now; a generation of moved vectors is not what was meant.
            db.execute(
                "DELETE FROM indexes WHERE state = 'wanted'"
                " AND EXISTS (SELECT 1 FROM indexes WHERE state = 'active' AND reason != ?)",
                (COMPACT,),
            )

    def want_index(self, reason: str) -> None:
        """Note that a new generation is asked for, until one answers whose vectors were made anew."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM indexes WHERE state = 'wanted'")
            db.execute(
                "INSERT INTO indexes SELECT max(generation) + 1, '', '', 'wanted', ?, 0, ? FROM indexes",
                (reason, time.time()),
            )

    def wanted_index(self) -> str | None:
        """Why a new generation is asked for; None where none is."""
        row = self._db.execute("SELECT reason FROM indexes WHERE state = 'wanted'").fetchone()
        return None if row is None else str(row["reason"])

    def removals(self) -> list[tuple[str, str]]:
        """(document id, collection id) of what the indexes still have to let go of."""
        return [(row[0], row[1]) for row in self._db.execute("SELECT document_id, collection_id FROM removals")]

    def removed(self, doc_ids: Sequence[str], vectors: int) -> None:
        """The indexes have let go of these; ``vectors`` were deleted from the active one."""
        with self._database.transaction() as db:
            db.executemany("DELETE FROM removals WHERE document_id = ?", [(id_,) for id_ in doc_ids])
            db.execute("UPDATE indexes SET deleted = deleted + ? WHERE state = 'active'", (vectors,))
