"""What comes with an upload: the name, the metadata and the size, checked; the form's files, written once and in one place."""

import hashlib
import json
import math
import re
import shutil
import unicodedata
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from services.rag.errors import InvalidRequest, StorageError, TooLarge
from services.rag.store.records import Scalar

MAX_NAME_BYTES = 1024
MAX_METADATA_FIELDS = 64
MAX_METADATA_CHARACTERS = 2000
_BLOCK = 1 << 20
# What a filter takes for itself.
_RESERVED_FIELDS = frozenset({"document_id", "filename"})


@dataclass(frozen=True)
class Upload:
    """A file in ``incoming``, hashed."""

    path: Path
    filename: str
    sha256: str


def checked_name(given: str | None) -> str:
    """The name as it is shown: a relative path with ``/``. It is never used as a path.

    Raises:
        InvalidRequest: it leads out of its folder, is absolute, too long, or holds control characters or nothing.
    """
    name = unicodedata.normalize("NFC", (given or "").encode("utf-8", "replace").decode()).replace("\\", "/")
    if not name.strip():
        raise InvalidRequest("the upload has no file name", param="file")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"the file name has {len(name.encode())} bytes, at most {MAX_NAME_BYTES} are taken", param="file"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") or c in "\u2028\u2029" for c in name):
        raise InvalidRequest("the file name holds control characters", param="file")
    if name.startswith("/") or re.match(r"[A-Za-z]:/", name):
        raise InvalidRequest(f"the file name {name[:100]!r} is an absolute path; send a relative one", param="file")
    for part in name.split("/"):
        if not part.strip(". "):
            raise InvalidRequest(
                f"the file name {name[:100]!r} has a part that is empty or only dots; send a plain relative name",
                param="file",
            )
    return name


def checked_metadata(given: str | dict[str, Any] | None) -> dict[str, Scalar] | None:
    """Flat metadata: names to strings, numbers, true or false. None where none was given.

    Raises:
        InvalidRequest: it is not JSON, not an object, not flat, or too large.
    """
    if given is None or given == "":
        return None
    try:
        # JSON has no NaN; Python's parser takes it all the same.
        value = json.loads(given, parse_constant=lambda name: math.nan) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"metadata is not JSON: {error}", param="metadata") from error
    if not isinstance(value, dict):
        raise InvalidRequest("metadata must be a JSON object of names and values", param="metadata")
    if len(value) > MAX_METADATA_FIELDS:
        raise InvalidRequest(
            f"metadata has {len(value)} fields, at most {MAX_METADATA_FIELDS} are taken", param="metadata"
        )
    for name, field in value.items():
        if not name.strip() or len(name) > 100 or not name.isprintable():
            raise InvalidRequest(
                f"the metadata field {name[:100]!r} needs a printable name of 1 to 100 characters", param="metadata"
            )
        if name in _RESERVED_FIELDS:
            raise InvalidRequest(
                f"the metadata field {name!r} is the document's own; choose another name", param="metadata"
            )
        if not isinstance(field, str | int | float | bool) or (isinstance(field, float) and not math.isfinite(field)):
            raise InvalidRequest(
                f"metadata.{name} must be a string, a finite number, true or false: metadata is flat", param="metadata"
            )
        if isinstance(field, str) and (len(field) > MAX_METADATA_CHARACTERS or "\0" in field):
            raise InvalidRequest(
                f"metadata.{name} must be a string of at most {MAX_METADATA_CHARACTERS} characters without NUL",
                param="metadata",
            )
        if isinstance(field, int) and not isinstance(field, bool) and abs(field) > 2**63 - 1:
            raise InvalidRequest(f"metadata.{name} does not fit into 64 bits", param="metadata")
        if isinstance(field, str) and field.encode("utf-8", "replace").decode() != field:
            raise InvalidRequest(f"metadata.{name} is not valid Unicode", param="metadata")
    return value


@contextmanager
def received(file: BinaryIO, filename: str, incoming_dir: Path, max_mb: int) -> Iterator[Upload]:
    """Hash ``file``, copying it into ``incoming_dir`` if it is not there; removed at the end unless somebody took it.

    Raises:
        InvalidRequest: it is empty.
        TooLarge: it is larger than ``max_mb`` MiB.
        StorageError: it cannot be written.
    """
    name = getattr(file, "name", None)
    there = isinstance(name, str) and Path(name).is_relative_to(incoming_dir)
    path = Path(str(name)) if there else incoming_dir / uuid.uuid4().hex
    digest, size = hashlib.sha256(), 0
    try:
        with nullcontext() if there else path.open("wb") as target:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > max_mb * _BLOCK:
                    raise TooLarge(f"{filename} is larger than {max_mb} MB (RAG_MAX_UPLOAD_MB)", param="file")
                digest.update(block)
                if target is not None:
                    target.write(block)
        if size == 0:
            raise InvalidRequest(f"{filename} is empty (0 bytes)", param="file")
        yield Upload(path, filename, digest.hexdigest())
    except OSError as error:
        raise StorageError(f"{filename} cannot be stored in {incoming_dir.parent}: {error}") from error
    finally:
        with suppress(OSError):  # on a read-only disk even what is not there cannot be removed
            path.unlink(missing_ok=True)


@asynccontextmanager
async def form_in(request: Request, incoming_dir: Path) -> AsyncIterator[None]:
    """Parse a multipart form with its files in ``incoming_dir``, from where :func:`received` takes them without a copy.

    Starlette would put them into the system's temporary folder, which may be small, full or memory, and answer 400 then.

    Raises:
        InvalidRequest: it is no such form, or it ended early.
        StorageError: a file cannot be written.
    """
    folder = incoming_dir / uuid.uuid4().hex
    try:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
            try:
                folder.mkdir()
                # What Starlette keeps of a parsed form: FastAPI's own parsing finds it there.
                request._form = await _Parser(request.headers, request.stream(), folder).parse()
            except MultiPartException as error:
                raise InvalidRequest(f"the form cannot be read: {error.message}") from error
            except ClientDisconnect as error:
                raise InvalidRequest("the upload ended before it was whole: send it again") from error
            except OSError as error:
                raise StorageError(f"the upload cannot be stored in {incoming_dir.parent}: {error}") from error
        yield
    finally:
        with suppress(OSError):  # what a full disk did not take is still in a buffer
            await request.close()
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


class _Parser(MultiPartParser):
    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], folder: Path) -> None:
        super().__init__(headers, stream)
        self._folder = folder

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None:
            file = (self._folder / uuid.uuid4().hex).open("w+b")
            self._files_to_close_on_error.append(file)  # type: ignore[arg-type]  # it is closed, nothing else
            self._current_part.file.file = file
