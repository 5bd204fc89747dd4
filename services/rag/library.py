"""What can be done with documents, collections and their trash: the catalog's changes with what has to follow them.

The HTTP routes are a thin layer over this.
"""

import hashlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.rag.documents.archive import ArchiveLimits, Member
from services.rag.documents.jobs import JobRunner
from services.rag.documents.pages import ReadError
from services.rag.documents.reading import Limits, ReadingProcess, ReadingUnavailable
from services.rag.errors import InvalidRequest, NotFound, NotReady, RagError, StorageError, UnsupportedFile
from services.rag.store.catalog import Catalog
from services.rag.store.records import Document, Job, Metadata
from services.rag.uploads import Upload, checked_name, received

log = logging.getLogger("docduet.rag.library")

_MIB = 1 << 20
# A ZIP may hold this many times the upload limit when unpacked, in at most this many files.
ARCHIVE_GROWTH = 10
ARCHIVE_MEMBERS = 10_000


@dataclass(frozen=True)
class Accepted:
    """A file that was taken (``job``), or why it was not (``error``; members of a ZIP only)."""

    filename: str
    document: Document | None = None
    job: Job | None = None
    error: str | None = None


class Library:
    def __init__(
        self, catalog: Catalog, limits: Limits, *, max_upload_mb: int, reader: str, jobs: Callable[[], JobRunner | None]
    ) -> None:
        """``reader`` names how files are read now; ``jobs`` gives the runner, None before the service is open."""
        self._catalog = catalog
        self._limits = limits
        self._max_mb = max_upload_mb
        self._reader = reader
        self._jobs = jobs
        # What a file is, is told in the reading process too: its first bytes are as hostile as the rest.
        self._process = ReadingProcess(limits)

    def close(self) -> None:
        self._process.close()

    # -- uploads -----------------------------------------------------------------------------------------------

    def add(
        self,
        file: BinaryIO,
        filename: str | None,
        *,
        collection: str,
        metadata: Metadata | None = None,
        password: str | None = None,
        replace: str | None = None,
    ) -> list[Accepted]:
        """Take an upload: one document, or the members of a ZIP (each taken or refused by itself).

        Raises:
            InvalidRequest, NotFound, TooLarge, UnsupportedFile: nothing was written.
            StorageError: it cannot be stored.
        """
        name = checked_name(filename)
        self._catalog.collection(collection)  # before a byte is copied
        if password is not None and not 0 < len(password) <= 1000:
            raise InvalidRequest("the password must have 1 to 1000 characters", param="password")
        with received(file, name, self._catalog.incoming_dir, self._max_mb) as upload:
            format = self._detect(upload.path, name)
            if format == "zip":
                if replace is not None:
                    raise InvalidRequest("a ZIP holds several documents and replaces none", param="replace")
                taken = self._add_members(upload, collection, metadata, password)
            else:
                taken = [self._accept(upload, format, collection, metadata, password, replace)]
        self._wake()
        return taken

    def _accept(
        self,
        upload: Upload,
        format: str,
        collection: str,
        metadata: Metadata | None,
        password: str | None,
        replace: str | None = None,
    ) -> Accepted:
        document, job = self._catalog.accept(
            upload.path,
            collection=collection,
            filename=upload.filename,
            content_sha256=upload.sha256,
            format=format,
            reader=self._reader,
            metadata=metadata,
            password=password,
            replace=replace,
        )
        return Accepted(upload.filename, document, job)

    def _detect(self, path: Path, name: str) -> str:
        try:
            return self._process.detect(path, name)
        except ReadError as error:
            raise UnsupportedFile(f"{name}: {error}", param="file") from error
        except ReadingUnavailable as error:
            raise NotReady(f"{name} cannot be looked at now: {error}; try again", retry_after=5) from error

    def _add_members(
        self, upload: Upload, collection: str, metadata: Metadata | None, password: str | None
    ) -> list[Accepted]:
        folder = self._catalog.incoming_dir / uuid.uuid4().hex
        limits = ArchiveLimits(
            members=ARCHIVE_MEMBERS, member_bytes=self._max_mb * _MIB, total_bytes=ARCHIVE_GROWTH * self._max_mb * _MIB
        )
        taken: list[Accepted] = []
        try:
            folder.mkdir()
            with ReadingProcess(self._limits) as process:
                for member in process.expand(upload.path, folder, limits):
                    name = f"{upload.filename}/{member.name}"
                    if isinstance(member, Member):
                        taken.append(self._add_member(member.path, name, collection, metadata, password))
                    else:
                        taken.append(Accepted(name, error=member.reason))
        except ReadError as error:
            # What was taken stays taken: the same upload again finds it there.
            raise UnsupportedFile(f"{upload.filename}: {error}", param="file") from error
        except ReadingUnavailable as error:
            raise NotReady(f"{upload.filename} cannot be unpacked now: {error}; try again", retry_after=5) from error
        except OSError as error:
            raise StorageError(f"{upload.filename} cannot be unpacked in {folder}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if not any(item.job for item in taken):
            reasons = "; ".join(f"{item.filename}: {item.error}" for item in taken[:3])
            raise UnsupportedFile(f"{upload.filename} holds no document that can be read. {reasons}", param="file")
        return taken

    def _add_member(
        self, path: Path, name: str, collection: str, metadata: Metadata | None, password: str | None
    ) -> Accepted:
        try:
            checked_name(name)
            if not path.stat().st_size:
                raise InvalidRequest("it is empty (0 bytes)")
            format = self._detect(path, name)
            if format == "zip":
                raise UnsupportedFile("an archive within an archive is not opened: upload it by itself")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return self._accept(Upload(path, name, digest), format, collection, metadata, password)
        except (StorageError, NotReady):
            raise
        except RagError as error:
            return Accepted(name, error=error.message)
        finally:
            path.unlink(missing_ok=True)

    # -- changes -----------------------------------------------------------------------------------------------

    def delete(self, document_id: str) -> None:
        """Into the trash: from this moment nothing of it can be found or read."""
        self._catalog.delete(document_id)
        self._let_go([document_id])

    def restore(self, document_id: str) -> tuple[Document, Job]:
        """Out of the trash."""
        restored = self._catalog.restore(document_id)
        self._wake()
        return restored

    def purge(self, document_id: str | None = None) -> int:
        """Remove what is in the trash for good, or one document of it; returns how many.

        Raises:
            NotFound: the document is not in the trash.
        """
        purged = self._catalog.purge(None if document_id is None else [document_id])
        if document_id is not None and not purged:
            raise NotFound(
                f"there is no document {document_id!r} in the trash; GET /trash lists it", param="document_id"
            )
        self._wake()
        return purged

    def delete_collection(self, name: str) -> None:
        self._let_go(document.id for document in self._catalog.delete_collection(name))

    def cancel(self, job_id: str) -> Job:
        job = self._catalog.cancel(job_id)
        self._let_go([job.document_id])
        return job

    def retry(self, job_id: str, password: str | None) -> tuple[Document, Job]:
        queued = self._catalog.retry(job_id, password)
        self._wake()
        return queued

    def _wake(self) -> None:
        """There is work. Before the service is open it simply waits in the catalog."""
        if jobs := self._jobs():
            jobs.wake()

    def _let_go(self, document_ids: Iterable[str]) -> None:
        if jobs := self._jobs():
            jobs.let_go(document_ids)
