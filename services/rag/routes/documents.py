"""Documents, their trash, and collections over HTTP: a thin layer over the library."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION
from services.rag.documents.detect import FORMATS
from services.rag.service import Service
from services.rag.store.notes import NoteCount
from services.rag.store.records import Collection, Document, PageReport
from services.rag.uploads import checked_metadata, checked_name, form_in

# A browser shows these inside its window; anything that could carry a script is saved instead.
_SHOWN = ("application/pdf", "image/", "text/plain")


class PageReportOut(BaseModel):
    page: int = Field(description="1-based.")
    failed: bool = Field(description="Whether the page cannot be searched; otherwise something was left out of it.")
    message: str


class NotesOut(BaseModel):
    done: int = Field(description="Chunks that the model was asked about.")
    total: int
    kept: int = Field(description="Chunks with a note; the model's word on the others was of no use.")
    error: str | None = Field(description="Why the rest waits, if it does; the document is searched meanwhile.")


class DocumentOut(BaseModel):
    id: str
    collection: str
    filename: str
    format: str
    sha256: str
    size: int
    status: str = Field(description="accepted | reading | embedding | indexed | failed | cancelled | deleted")
    error: str | None
    pages: int | None
    chunks: int | None
    failed_pages: list[int]
    page_reports: list[PageReportOut]
    metadata: dict[str, str | int | float | bool]
    notes: NotesOut | None = Field(description="Null where none are made.")
    created_at: float
    indexed_at: float | None
    deleted_at: float | None
    replaced_by: str | None


class Documents(BaseModel):
    documents: list[DocumentOut]


class Change(BaseModel):
    model_config = ConfigDict(extra="forbid")

    filename: str | None = None
    metadata: dict[str, Any] | None = None


class MemberOut(BaseModel):
    filename: str
    document_id: str | None = None
    job_id: str | None = None
    error: str | None = None


class AcceptedOut(BaseModel):
    job_id: str
    document_id: str
    documents: list[MemberOut] | None = Field(default=None, description="Of a ZIP: its members, taken or refused.")


class Queued(BaseModel):
    job_id: str
    document_id: str


class CollectionName(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=COLLECTION_PATTERN)


class CollectionOut(BaseModel):
    name: str
    documents: int
    created_at: float


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    _add_uploads(routes, service)
    _add_documents(routes, service)
    _add_trash(routes, service)
    _add_collections(routes, service)
    return routes


def _add_uploads(routes: APIRouter, service: Service) -> None:
    library = service.library
    uploads = APIRouter(route_class=_into(service.catalog.incoming_dir))

    @uploads.post("/documents", status_code=202, tags=["documents"], response_model_exclude_none=True)
    async def upload(
        file: Annotated[UploadFile, File(description="A document, or a ZIP of documents.")],
        collection: Annotated[str, Form(pattern=COLLECTION_PATTERN)] = DEFAULT_COLLECTION,
        metadata: Annotated[str | None, Form(description="A flat JSON object; its fields can be filtered by.")] = None,
        password: Annotated[str | None, Form(description="Opens an encrypted file.")] = None,
        replace: Annotated[str | None, Form(description="Id of the document that this one takes the place of.")] = None,
        notes: Annotated[
            Literal["on", "off"] | None, Form(description="Whether the model writes notes; else RAG_NOTES says.")
        ] = None,
    ) -> AcceptedOut:
        """Accept a document; its job tells when it can be searched. The same content again is the same document; another
        content under the same name takes its place once it is indexed."""
        fields = checked_metadata(metadata)
        taken = await run_in_threadpool(
            library.add,
            file.file,
            file.filename,
            collection=collection,
            metadata=fields,
            password=password or None,
            replace=replace or None,
        )
        if notes is not None:
            for item in taken:
                if item.document:
                    await run_in_threadpool(service.choose_notes, item.document.id, notes == "on")
        members = [
            MemberOut(
                filename=item.filename,
                document_id=item.document.id if item.document else None,
                job_id=item.job.id if item.job else None,
                error=item.error,
            )
            for item in taken
        ]
        first = next(item for item in members if item.document_id and item.job_id)
        several = members if len(members) > 1 or first.filename != checked_name(file.filename) else None
        return AcceptedOut(job_id=first.job_id or "", document_id=first.document_id or "", documents=several)

    routes.include_router(uploads)


def _into(incoming_dir: Path) -> type[APIRoute]:
    """A route whose form's files go to ``incoming_dir``."""

    class UploadRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                async with form_in(request, incoming_dir):
                    return await handler(request)

            return handle

    return UploadRoute


def _add_documents(routes: APIRouter, service: Service) -> None:
    catalog, library = service.catalog, service.library

    @routes.get("/documents", tags=["documents"])
    def documents(collection: str | None = None, status: str | None = None) -> Documents:
        """All documents, oldest first."""
        return _out(service, catalog.documents(collection, status))

    @routes.get("/documents/{document_id}", tags=["documents"])
    def document(document_id: str) -> DocumentOut:
        return _out(service, [catalog.document(document_id)]).documents[0]

    @routes.patch("/documents/{document_id}", tags=["documents"])
    def change(document_id: str, change: Change) -> DocumentOut:
        """Another name, other metadata."""
        filename = None if change.filename is None else checked_name(change.filename)
        changed = catalog.update_document(document_id, filename=filename, metadata=checked_metadata(change.metadata))
        return _out(service, [changed]).documents[0]

    @routes.delete("/documents/{document_id}", status_code=204, tags=["documents"])
    def delete(document_id: str) -> None:
        """Into the trash: nothing of it can be found or read any more, until it is restored or purged."""
        library.delete(document_id)

    @routes.get("/documents/{document_id}/file", tags=["documents"])
    def original(document_id: str) -> FileResponse:
        """The original file."""
        found = catalog.document(document_id)
        media_type = FORMATS[found.format].media_type if found.format in FORMATS else "application/octet-stream"
        how = "inline" if media_type.startswith(_SHOWN) else "attachment"
        name = quote(found.filename.rpartition("/")[2])
        headers = {
            "Content-Disposition": f"{how}; filename*=UTF-8''{name}",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox",
        }
        return FileResponse(catalog.file_path(found), media_type=media_type, headers=headers)


def _add_trash(routes: APIRouter, service: Service) -> None:
    catalog, library = service.catalog, service.library

    @routes.get("/trash", tags=["trash"])
    def trash() -> Documents:
        """Deleted and replaced documents, the last deleted first."""
        return _out(service, catalog.trash())

    @routes.post("/trash/{document_id}/restore", status_code=202, tags=["trash"])
    def restore(document_id: str) -> Queued:
        """Undo a delete; its job tells when it can be searched again."""
        document, job = library.restore(document_id)
        return Queued(job_id=job.id, document_id=document.id)

    @routes.delete("/trash", tags=["trash"])
    def purge() -> dict[str, int]:
        """Remove everything in the trash for good."""
        return {"purged": library.purge()}

    @routes.delete("/trash/{document_id}", status_code=204, tags=["trash"])
    def purge_one(document_id: str) -> None:
        """Remove one document of the trash for good."""
        library.purge(document_id)


def _add_collections(routes: APIRouter, service: Service) -> None:
    catalog, library = service.catalog, service.library

    @routes.get("/collections", tags=["collections"])
    def collections() -> dict[str, list[CollectionOut]]:
        return {"collections": [_collection(c) for c in catalog.collections()]}

    @routes.post("/collections", status_code=201, tags=["collections"])
    def create(body: CollectionName) -> CollectionOut:
        return _collection(catalog.create_collection(body.name))

    @routes.patch("/collections/{name}", tags=["collections"])
    def rename(name: str, body: CollectionName) -> CollectionOut:
        """Another name; its documents keep their ids and nothing is indexed again."""
        return _collection(catalog.rename_collection(name, body.name))

    @routes.delete("/collections/{name}", status_code=204, tags=["collections"])
    def delete(name: str) -> None:
        """The collection is gone, its documents are in the trash."""
        library.delete_collection(name)


def _out(service: Service, documents: list[Document]) -> Documents:
    ids = [d.id for d in documents]
    reports, counts = service.catalog.page_reports(ids), service.catalog.note_counts(ids)
    return Documents(
        documents=[_document(d, reports.get(d.id, []), _notes(service, counts.get(d.id))) for d in documents]
    )


def _notes(service: Service, count: NoteCount | None) -> NotesOut | None:
    if count is None:
        return None
    waiting = count.done < count.total
    return NotesOut.model_validate(vars(count) | {"error": service.notes_error if waiting else None})


def _document(document: Document, reports: list[PageReport], notes: NotesOut | None) -> DocumentOut:
    values = vars(document) | {
        "notes": notes,
        "failed_pages": sorted({r.page for r in reports if r.failed}),
        "page_reports": [vars(r) for r in reports],
    }
    return DocumentOut.model_validate(values)


def _collection(collection: Collection) -> CollectionOut:
    return CollectionOut.model_validate(vars(collection))
