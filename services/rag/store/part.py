"""A part of the catalog: the queries of one noun."""

import sqlite3
from pathlib import Path

from services.rag.store.database import Database


class Part:
    """What the parts share: one database. ``Catalog`` is all of them together.

    A part is a class over this one, or over the parts whose methods it calls. What has to happen in another's transaction takes
    it as ``db``. A new part needs its tables in ``schema.py``, and a place among the bases of ``Catalog``.
    """

    def __init__(self, data_dir: Path) -> None:
        """Open the database in ``data_dir``. A part with state of its own sets it, then calls this one with ``super()``."""
        self.data_dir = data_dir
        self._database = Database(data_dir / "catalog.sqlite")

    @property
    def _db(self) -> sqlite3.Connection:
        return self._database.db
