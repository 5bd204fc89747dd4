"""The original files, in a folder by content hash, and the uploads on their way there."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.rag.errors import StorageError
from services.rag.store.database import fsync
from services.rag.store.part import Part
from services.rag.store.records import Document


class Files(Part):
    def __init__(self, data_dir: Path) -> None:
        self.files_dir = data_dir / "files"
        self.incoming_dir = data_dir / "incoming"
        # Between finding a file and committing its document nobody may sweep it away.
        self._files_lock = threading.RLock()
        self._keeping_files = 0
        for folder in (self.files_dir, self.incoming_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.incoming_dir.iterdir():
            _remove(leftover)  # an upload that was never accepted
        super().__init__(data_dir)

    def file_path(self, document: Document) -> Path:
        return self.files_dir / document.sha256

    def _keep_file(self, incoming: Path, filename: str, content_sha256: str) -> None:
        """A file that is there already is replaced too: the new one is known to be whole, and the old one may be damaged."""
        try:
            fsync(incoming)
            incoming.replace(self.files_dir / content_sha256)
            fsync(self.files_dir)
        except OSError as error:
            raise StorageError(f"{filename} cannot be stored in {self.files_dir}: {error}") from error

    def _drop_file(self, content_sha256: str) -> None:
        """Of an upload that was refused after all, unless a document has the same content."""
        with suppress(OSError, sqlite3.Error):  # what went wrong is told; the next start sweeps the file
            if not self._db.execute("SELECT 1 FROM documents WHERE sha256 = ?", (content_sha256,)).fetchone():
                (self.files_dir / content_sha256).unlink(missing_ok=True)

    def sweep_files(self) -> None:
        """Remove the files that no document has: purged ones, and uploads that a kill kept from being accepted."""
        with self._files_lock:
            if self._keeping_files:
                return
            known = {row[0] for row in self._db.execute("SELECT sha256 FROM documents")}
            for path in self.files_dir.iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)

    @contextmanager
    def keeping_files(self) -> Iterator[None]:
        """No file disappears meanwhile; what is purged is swept afterwards."""
        with self._files_lock:
            self._keeping_files += 1
        try:
            yield
        finally:
            with self._files_lock:
                self._keeping_files -= 1
                self.sweep_files()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
