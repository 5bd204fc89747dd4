"""The indexes, and copies of everything, over HTTP: for whoever runs the service."""

import tempfile
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, cast

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from services.rag.backup import backup, restore
from services.rag.errors import StorageError
from services.rag.service import Service
from services.rag.store.verify import differences

# Only the newest are interesting to a person; the count is whole.
_MOST_DIFFERENCES = 10_000


class RebuildOut(BaseModel):
    reason: str
    chunks_total: int
    chunks_done: int
    error: str | None = Field(description="Why it waits, if it does; the present index answers meanwhile.")


class IndexOut(BaseModel):
    fingerprint: str = Field(description="Of the embedder whose vectors answer now.")
    state: str = Field(description="ready | rebuilding")
    rebuild: RebuildOut | None
    chunks: int = Field(description="Chunks of indexed documents.")
    deleted: int = Field(description="Vectors deleted since the index was made; many of them make it be rebuilt.")


class DifferenceOut(BaseModel):
    kind: str
    document_id: str
    filename: str
    detail: str


class Verified(BaseModel):
    ok: bool
    checked: dict[str, int]
    differences: list[DifferenceOut]


class RestoredOut(BaseModel):
    documents: int
    skipped: int = Field(description="Documents that were there already.")
    jobs: list[str]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    catalog = service.catalog

    @routes.get("/index", tags=["operations"])
    def index() -> IndexOut:
        """The index that answers, and the one that is being built, if any."""
        row = catalog.index("active")
        rebuild = service.jobs.writer.rebuilding
        return IndexOut(
            fingerprint=row.fingerprint if row else service.indexes.active.row.fingerprint,
            state="ready" if rebuild is None else "rebuilding",
            rebuild=None if rebuild is None else RebuildOut.model_validate(vars(rebuild)),
            chunks=sum(d.chunks or 0 for d in catalog.documents(status="indexed")),
            deleted=row.deleted if row else 0,
        )

    @routes.post("/index/rebuild", status_code=202, tags=["operations"])
    def rebuild() -> IndexOut:
        """Make Chroma and the lexical index again from the catalog, beside the ones that answer, then swap."""
        service.jobs.writer.rebuild("asked for")
        return index()

    @routes.get("/index/verify", tags=["operations"])
    def verify(files: bool = False) -> Verified:
        """Compare catalog, files, Chroma and the lexical index; ``files`` reads each file and compares its SHA-256."""
        with service.indexes.use() as active:
            found = list(differences(catalog, active, files=files))
        documents = catalog.documents()
        return Verified(
            ok=not found,
            checked={
                "documents": len(documents),
                "chunks": sum(d.chunks or 0 for d in documents if d.status == "indexed"),
                "files": len(documents) + len(catalog.trash()),
            },
            differences=[DifferenceOut.model_validate(vars(d)) for d in found[:_MOST_DIFFERENCES]],
        )

    @routes.get("/backup", tags=["operations"], response_class=StreamingResponse)
    async def make_backup() -> StreamingResponse:
        """A tar file of the catalog and all files, one moment's state. The indexes are not in it: they are made again."""
        pieces = backup(catalog)
        first = await run_in_threadpool(next, pieces)  # what can go wrong does so before the answer begins
        headers = {"Content-Disposition": 'attachment; filename="docduet-backup.tar"'}
        return StreamingResponse(_rest(first, pieces), media_type="application/x-tar", headers=headers)

    @routes.post("/restore", tags=["operations"], openapi_extra=_TAR_BODY)
    async def take_backup(request: Request) -> RestoredOut:
        """Add what a backup holds to what is there; documents that are there stay as they are."""
        try:
            with tempfile.TemporaryFile(dir=catalog.incoming_dir) as file:
                async for block in request.stream():
                    await run_in_threadpool(file.write, block)
                await run_in_threadpool(file.seek, 0)
                restored = await run_in_threadpool(restore, catalog, cast(BinaryIO, file))
        except OSError as error:
            raise StorageError(f"the backup cannot be stored in {catalog.incoming_dir}: {error}") from error
        if service.opened:
            service.jobs.wake()
        return RestoredOut.model_validate(vars(restored))

    return routes


_TAR_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def _rest(first: bytes, pieces: Any) -> AsyncIterator[bytes]:
    try:
        yield first
        while (piece := await run_in_threadpool(next, pieces, None)) is not None:
            yield piece
    finally:
        await run_in_threadpool(pieces.close)
