"""The catalog's SQLite file: a connection a thread, durable transactions, migration, and a reserve for a full disk."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from services.rag.errors import StartupError, StorageError
from services.rag.store import schema

# Given back when the disk is full, so that there is room to write down that it is.
RESERVE_BYTES = 4 << 20


class Database:
    """WAL with ``synchronous=FULL``: a commit is durable when it returns. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            StartupError: it was written by a newer version.
            OSError, sqlite3.Error: it cannot be used.
        """
        self.path = path
        self._reserve = path.with_name(".reserve")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._migrate()
        self.keep_reserve()

    def _migrate(self) -> None:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version > schema.VERSION:
            raise StartupError(
                f"{self.path} was written by a newer docduet (format {version}, this one knows {schema.VERSION}): "
                "install that version, or name another RAG_DATA_DIR."
            )
        if version == schema.VERSION:
            return
        if version:
            self.copy_to(self.path.with_name(f"catalog.version-{version}.sqlite"))
        schema.migrate(self.db, version)

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            db.row_factory = sqlite3.Row
            # secure_delete: a password or a deleted page does not stay readable in the file.
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                db.execute(f"PRAGMA {pragma}")
            self._local.db = db
            with self._lock:
                self._connections.append(db)
        return db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit at the end, roll back on any exception.

        Raises:
            StorageError: the disk is full, read-only or broken.
        """
        db = self.db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError) and not isinstance(
                error, sqlite3.IntegrityError | sqlite3.ProgrammingError
            ):
                if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_READONLY:
                    self._forget(db)
                raise StorageError(f"the catalog in {self.path.parent} cannot be written: {error}") from error
            raise

    def _forget(self, db: sqlite3.Connection) -> None:
        """A connection that was opened while the disk was read-only stays so for ever: this thread opens another."""
        self._local.db = None
        with self._lock:
            if db in self._connections:
                self._connections.remove(db)
        db.close()

    def copy_to(self, target: Path) -> None:
        """A consistent copy, while others write."""
        partial = target.with_name(target.name + ".partial")
        partial.unlink(missing_ok=True)
        try:
            with contextlib.closing(sqlite3.connect(partial)) as copy:
                self.db.backup(copy)
            fsync(partial)
            partial.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # a full disk needs the room
            raise
        fsync(target.parent)

    def keep_reserve(self) -> None:
        """Have the reserve in place, where there is room for it."""
        with contextlib.suppress(OSError):
            if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_BYTES:
                return
            with self._reserve.open("wb") as file:
                file.write(bytes(RESERVE_BYTES))

    def release_reserve(self) -> None:
        """Give the reserve back to the disk."""
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            for db in self._connections:
                db.close()
            self._connections.clear()


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's names, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
