"""One consistent archive of everything, made and taken while the service runs.

A tar file: ``manifest.json``, ``catalog.sqlite`` (one moment's copy, migrated on the way in where it is older) and ``files/``,
each file under its SHA-256. The indexes are not in it: they are made again. Taking one adds what it holds to what is there,
in one transaction; nothing that is there changes.
"""

import contextlib
import hashlib
import json
import re
import shutil
import sqlite3
import tarfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.rag.errors import InvalidRequest, StorageError
from services.rag.store import schema
from services.rag.store.catalog import Catalog
from services.rag.store.database import Database, fsync
from services.rag.store.records import chunk_id, document_id

FORMAT = 1
_BLOCK = 1 << 20
_FILE = re.compile(r"files/([0-9a-f]{64})")


@dataclass(frozen=True)
class Restored:
    """``documents`` were added, ``skipped`` were there already; ``jobs`` make their vectors."""

    documents: int
    skipped: int
    jobs: list[str]


def backup(catalog: Catalog) -> Iterator[bytes]:
    """The archive, in pieces. Uploads, deletes and purges may go on meanwhile.

    Raises:
        StorageError: there is no room for the catalog's copy, or a file is missing.
    """
    copy = catalog.incoming_dir / f"backup-{uuid.uuid4().hex}.sqlite"
    with catalog.keeping_files():
        try:
            catalog.copy_to(copy)
            with contextlib.closing(sqlite3.connect(copy)) as db:
                files = [row[0] for row in db.execute("SELECT DISTINCT sha256 FROM documents ORDER BY 1")]
                documents = db.execute("SELECT count(*) FROM documents").fetchone()[0]
            missing = [name for name in files if not (catalog.files_dir / name).is_file()]
            if missing:
                raise StorageError(
                    f"{len(missing)} files of the catalog are missing ({missing[0]} …): `docduet verify` names them; "
                    "delete their documents or put the files back, then make the backup"
                )
            manifest = {
                "format": FORMAT,
                "catalog_version": schema.VERSION,
                "created_at": time.time(),
                "documents": documents,
                "files": len(files),
                "catalog_sha256": _sha256(copy),
            }
            yield from _entry("manifest.json", json.dumps(manifest, indent=1).encode())
            yield from _file_entry("catalog.sqlite", copy)
            for name in files:
                yield from _file_entry(f"files/{name}", catalog.files_dir / name)
            yield bytes(2 * tarfile.BLOCKSIZE)  # the end of a tar file; without it the archive is cut off
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"the backup cannot be made: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, int(time.time())
    return info.tobuf(tarfile.PAX_FORMAT)


def _entry(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _file_entry(name: str, path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield _header(name, size)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
    yield bytes(-size % tarfile.BLOCKSIZE)


def restore(catalog: Catalog, archive: BinaryIO) -> Restored:
    """Add what ``archive`` (read once, from its beginning) holds.

    Raises:
        InvalidRequest: it is not a whole, undamaged backup; nothing was changed.
        StorageError: there is no room; nothing was changed.
    """
    folder = catalog.incoming_dir / f"restore-{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        try:
            _unpack(archive, folder)
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise InvalidRequest(f"the archive is not a backup of docduet, or is damaged: {error}") from error
        with contextlib.closing(_opened(folder / "catalog.sqlite")) as source:
            try:
                return _take(catalog, source, folder)
            except BaseException as error:
                catalog.sweep_files()  # those that were moved into place already
                if isinstance(error, sqlite3.IntegrityError | LookupError):
                    raise InvalidRequest(f"the archive's catalog contradicts itself: {error}") from error
                raise
    except (OSError, StorageError) as error:
        raise StorageError(f"the backup cannot be unpacked in {catalog.incoming_dir}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: BinaryIO, folder: Path) -> None:
    seen: set[str] = set()
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for member in tar:
            match = _FILE.fullmatch(member.name)
            if not member.isfile() or not (match or member.name in ("manifest.json", "catalog.sqlite")):
                raise InvalidRequest(f"the archive holds {member.name[:100]!r}: it is not a backup of docduet")
            source = tar.extractfile(member)
            assert source is not None
            digest = hashlib.sha256()
            with (folder / (match[1] if match else member.name)).open("wb") as target:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    target.write(block)
            if match and digest.hexdigest() != match[1]:
                raise InvalidRequest(f"the archive's file {match[1]} is damaged: its SHA-256 is {digest.hexdigest()}")
            seen.add(member.name)
    if not {"manifest.json", "catalog.sqlite"} <= seen:
        raise InvalidRequest("the archive is not a backup of docduet: it has no manifest or no catalog")
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        format, files = int(manifest["format"]), int(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"the archive's manifest cannot be read: {error}") from error
    if format != FORMAT:
        raise InvalidRequest(f"the archive has format {format}, this version takes {FORMAT}: install a newer docduet")
    if files != len(seen) - 2:
        raise InvalidRequest(f"the archive is cut off: it has {len(seen) - 2} of {files} files")
    if manifest.get("catalog_sha256") != _sha256(folder / "catalog.sqlite"):
        raise InvalidRequest("the archive's catalog is damaged: its SHA-256 is not the one that the manifest names")


def _opened(path: Path) -> sqlite3.Connection:
    """The archive's catalog, brought to this version's tables."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            (result,) = db.execute("PRAGMA integrity_check(1)").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
        if result != "ok":
            raise InvalidRequest(f"the archive's catalog is damaged: {result}")
        if not 1 <= version <= schema.VERSION:
            raise InvalidRequest(
                f"the archive's catalog has format {version}, this version knows {schema.VERSION}: install a newer docduet"
            )
        if version < schema.VERSION:
            Database(path).close()
        db = sqlite3.connect(path)
        db.row_factory = sqlite3.Row
        return db
    except sqlite3.Error as error:
        raise InvalidRequest(f"the archive's catalog cannot be read: {error}") from error


def _take(catalog: Catalog, source: sqlite3.Connection, folder: Path) -> Restored:
    """Files first, then all rows in one transaction: a kill in between leaves files that the next start sweeps."""
    added, skipped, jobs = 0, 0, []
    with catalog.importing() as target:
        rows = source.execute("SELECT id, name, deleted_at FROM collections").fetchall()
        collections = {row["id"]: _collection(target, row) for row in rows}
        # Older than all that is there, in their own order: of one name, what is there stays.
        (first,) = target.execute("SELECT coalesce(min(sequence), 1) FROM documents").fetchone()
        documents = source.execute("SELECT * FROM documents ORDER BY sequence").fetchall()
        for sequence, row in enumerate(documents, start=first - len(documents)):
            collection = collections[row["collection_id"]]
            doc_id = document_id(collection, row["sha256"])
            if target.execute("SELECT 1 FROM documents WHERE id = ?", (doc_id,)).fetchone():
                skipped += 1
                continue
            _keep(catalog, folder, row["sha256"])
            job = _document(target, source, row, doc_id, collection, sequence)
            added += 1
            jobs += [job] if job else []
        fsync(catalog.files_dir)
    return Restored(added, skipped, jobs)


def _keep(catalog: Catalog, folder: Path, name: str) -> None:
    if (catalog.files_dir / name).exists():
        return
    if not (folder / name).is_file():
        raise InvalidRequest(f"the archive lacks the file {name} that its catalog names")
    fsync(folder / name)
    (folder / name).replace(catalog.files_dir / name)


def _collection(target: sqlite3.Connection, row: sqlite3.Row) -> str:
    """The id under which the archive's collection goes on: its own, or that of the one with its name, where there is one."""
    id_, name, deleted_at = row["id"], row["name"], row["deleted_at"]
    same = target.execute("SELECT deleted_at FROM collections WHERE id = ?", (id_,)).fetchone()
    if same is not None and (same["deleted_at"] is None or deleted_at is not None):
        return str(id_)
    live = target.execute("SELECT id FROM collections WHERE name = ? AND deleted_at IS NULL", (name,)).fetchone()
    if live is not None and deleted_at is None:
        return str(live["id"])
    if same is not None:  # deleted here since
        id_ = uuid.uuid4().hex
    target.execute("INSERT INTO collections VALUES (?, ?, ?, ?)", (id_, name, time.time(), deleted_at))
    return str(id_)


# Named here, because an archive could name anything.
_COLUMNS = (
    "id collection_id filename format sha256 size status error pages chunks reader metadata sequence replaces replaced_by"
    " created_at indexed_at deleted_at".split()
)


def _document(
    target: sqlite3.Connection,
    source: sqlite3.Connection,
    row: sqlite3.Row,
    doc_id: str,
    collection: str,
    sequence: int,
) -> str | None:
    """Take over one document with its text; returns the job that makes its vectors, or reads it."""
    values = {name: row[name] for name in _COLUMNS} | {
        "id": doc_id,
        "collection_id": collection,
        "replaces": None,
        "replaced_by": None,
        "sequence": sequence,
    }
    ended = row["status"] in ("failed", "cancelled", "deleted")
    state = "embedding" if row["reader"] is not None and row["chunks"] else "accepted"
    if not ended:
        values["status"] = state
    target.execute(
        f"INSERT INTO documents ({', '.join(_COLUMNS)}) VALUES ({','.join('?' * len(_COLUMNS))})",  # noqa: S608
        [values[name] for name in _COLUMNS],
    )
    for page in source.execute("SELECT number, text, label, method FROM pages WHERE document_id = ?", (row["id"],)):
        target.execute(
            "INSERT INTO pages (document_id, number, text, label, method) VALUES (?, ?, ?, ?, ?)", (doc_id, *page)
        )
    for report in source.execute("SELECT page, failed, message FROM page_reports WHERE document_id = ?", (row["id"],)):
        target.execute("INSERT INTO page_reports VALUES (?, ?, ?, ?)", (doc_id, *report))
    chunks = source.execute("SELECT ordinal, page, start, end, text FROM chunks WHERE document_id = ?", (row["id"],))
    for chunk in chunks:
        target.execute(
            "INSERT INTO chunks (id, document_id, ordinal, page, start, end, text) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (chunk_id(doc_id, chunk["ordinal"], chunk["text"]), doc_id, *chunk),
        )
    _notes(target, source, row["id"], doc_id)
    if row["status"] == "deleted":
        return None
    # One that failed has its job too: by it, it can be tried again.
    job_id, now = uuid.uuid4().hex, time.time()
    target.execute(
        "INSERT INTO jobs (id, document_id, filename, size, state, error, chunks_total, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (job_id, doc_id, row["filename"], row["size"], values["status"], row["error"], row["chunks"], now, now),
    )
    return None if ended else job_id


def _notes(target: sqlite3.Connection, source: sqlite3.Connection, old_id: str, doc_id: str) -> None:
    """Take over what the model wrote about the document's chunks: it is not asked again."""
    rows = source.execute(
        "SELECT k.ordinal, k.text, n.text_sha256, n.model, n.version, n.note, n.created_at FROM chunks k"
        " JOIN chunk_notes c ON c.chunk_id = k.id JOIN notes n ON n.id = c.note_id WHERE k.document_id = ?",
        (old_id,),
    )
    for ordinal, text, *note in rows:
        target.execute(
            "INSERT OR IGNORE INTO notes (text_sha256, model, version, note, created_at) VALUES (?, ?, ?, ?, ?)", note
        )
        target.execute(
            "INSERT INTO chunk_notes SELECT ?, id FROM notes WHERE text_sha256 = ? AND model = ? AND version = ?",
            (chunk_id(doc_id, ordinal, text), *note[:3]),
        )
    for choice in source.execute("SELECT wanted FROM note_choices WHERE document_id = ?", (old_id,)):
        target.execute("INSERT INTO note_choices VALUES (?, ?)", (doc_id, *choice))
