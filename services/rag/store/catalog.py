"""The source of truth: ``catalog.sqlite`` (collections, documents, pages, chunks, jobs) and the original files beside it.

Chroma and the lexical index can be dropped and made again from what is here. Each noun is a part in a file of its own:
``files``, ``collections``, ``documents``, ``jobs``, ``texts``, ``trash``, ``versions``, ``generations``, ``notes``.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.rag.errors import StartupError
from services.rag.store.generations import Generations
from services.rag.store.versions import Versions


class Catalog(Versions, Generations):
    """All parts, over one database. Every public method is one transaction, durable when it returns. Thread-safe."""

    def __init__(self, data_dir: Path) -> None:
        """Open the catalog of ``data_dir``, making or migrating it.

        Raises:
            StartupError: the folder cannot be used, or a newer version wrote it.
        """
        try:
            super().__init__(data_dir)
            self.sweep_files()
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"RAG_DATA_DIR={data_dir} cannot be used: {error}. Name a folder this user can write to."
            ) from error

    def close(self) -> None:
        self._database.close()

    def release_reserve(self) -> None:
        """Make room on a full disk for a last word."""
        self._database.release_reserve()

    def keep_reserve(self) -> None:
        self._database.keep_reserve()

    def copy_to(self, target: Path) -> None:
        """A consistent copy of the whole catalog, while others write. Passwords of waiting jobs are not in it."""
        self._database.copy_to(target)
        copy = sqlite3.connect(target)
        try:
            copy.execute("PRAGMA secure_delete = ON")
            copy.execute("UPDATE jobs SET password = NULL")
            copy.commit()
        finally:
            copy.close()

    @contextmanager
    def importing(self) -> Iterator[sqlite3.Connection]:
        """One transaction in which rows of a copy are taken over; files must be in place by then."""
        with self._files_lock, self._database.transaction() as db:
            yield db
