"""The HTTP application: documents, search, LangServe. ``create_app`` is handed its collaborators."""

import asyncio
import hashlib
import logging
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from services.rag.chain import Chain, Options
from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION, Settings
from services.rag.documents.pdf import is_pdf
from services.rag.embeddings import Embedder
from services.rag.errors import InvalidRequest, RagError, StorageError, TooLarge, UnsupportedFile, error_body
from services.rag.langserve_routes import langserve_router
from services.rag.middleware import BodyLimit, Drain, KeyGuard, RequestLog
from services.rag.retrieval import Mode
from services.rag.service import Service
from services.rag.store.catalog import Document, Job

log = logging.getLogger("docduet.rag")

_BLOCK = 1 << 20
_OPEN_PATHS = ("/health", "/ready")


class JobOut(BaseModel):
    id: str
    document_id: str
    filename: str
    state: str = Field(description="accepted | reading | embedding | indexed | failed | cancelled")
    error: str | None = Field(description="Why it failed.")
    page: int | None = Field(description="The page that the error is about, 1-based.")
    pages_total: int | None
    pages_read: int
    chunks_total: int | None
    chunks_embedded: int
    created_at: float
    updated_at: float


class DocumentOut(BaseModel):
    id: str
    collection: str
    filename: str
    sha256: str
    size: int
    status: str
    error: str | None
    pages: int | None
    chunks: int | None
    failed_pages: list[int]
    created_at: float
    indexed_at: float | None


class Accepted(BaseModel):
    job_id: str
    document_id: str


class SearchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: str
    k: int = 4
    collection: str = Field(default=DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    filter: dict[str, Any] | None = None
    mode: Mode = "hybrid"


class PassageOut(BaseModel):
    document_id: str
    filename: str
    page: int
    start: int = Field(description="Offset of the text in the page, in code points.")
    text: str
    score: float


class SearchResult(BaseModel):
    passages: list[PassageOut]


def create_app(settings: Settings, load_embedder: Callable[[], Embedder]) -> FastAPI:
    """The application. The embedder is loaded in the background once it serves; ``/ready`` tells when.

    ``app.state.fatal`` holds the error that made opening fail, ``app.state.gate`` the drain switch.

    Raises:
        StartupError: the data folder cannot be used.
    """
    service = Service(settings, load_embedder)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(service.open())
        opening.add_done_callback(lambda task: _opened(app, task))
        try:
            yield
        finally:
            opening.cancel()
            await service.model.close()
            await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        title="docduet RAG service",
        version="0.1.0",
        description="Ask your own documents, with every answer traceable to a page.",
        lifespan=lifespan,
        redoc_url=None,  # its page asks another host for a logo
    )
    app.state.service = service
    app.state.fatal = None
    app.state.on_fatal = lambda: None
    _add_errors(app)
    _add_operations(app, service)
    _add_documents(app, service)
    _add_search(app, service)
    rag = Chain(lambda: service.retriever, service.model, settings, service.metrics).build()
    app.include_router(langserve_router(rag))

    keys = [key.get_secret_value() for key in settings.api_keys]
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=(settings.max_upload_mb + 1) * _BLOCK, setting="RAG_MAX_UPLOAD_MB")
    app.add_middleware(KeyGuard, keys=keys, open_paths=_OPEN_PATHS, setting="RAG_API_KEYS")
    metrics = service.metrics

    def observe(method: str, route: str, status: int) -> None:
        metrics.requests.labels(method=method, route=route, status=str(status)).inc()

    app.add_middleware(RequestLog, observe=observe)
    return app


def _opened(app: FastAPI, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        app.state.fatal = error
        app.state.on_fatal()


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RagError)
    async def rag_error(request: Request, error: RagError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        first = problems[0] if problems else "the request is not valid"
        if isinstance(first, dict):
            where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
            message = f"{where}: {first.get('msg')}" if where else str(first.get("msg"))
            return _error(400, message, param=where or None)
        return _error(400, str(first))

    @app.exception_handler(ValidationError)
    async def bad_option(request: Request, error: ValidationError) -> JSONResponse:
        # LangServe checks only the types of `config.configurable`; the bounds are those of the chain's own model.
        if error.title != Options.__name__:
            raise error
        first = error.errors()[0]
        where = f"config.configurable.{first['loc'][0]}"
        return _error(400, f"{where}: {first['msg']}", param=where)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        if error.status_code == 404 and error.detail == "Not Found":
            return _error(404, f"there is no {request.method} {request.url.path}; see /docs", code="not_found")
        status = 400 if error.status_code == 422 else error.status_code
        return _error(status, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette logs the traceback; the client learns no internals.
        return JSONResponse(error_body("internal error; the service's log tells more", "server_error"), 500)


def _error(
    status: int, message: str, *, param: str | None = None, code: str = "invalid_request", headers: Any = None
) -> JSONResponse:
    return JSONResponse(error_body(message, "invalid_request_error", param, code), status, headers)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("/chat/playground/")

    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operations"])
    async def ready(response: Response) -> dict[str, Any]:
        """200 when questions can be answered; 503 with the reason of each part that is not ready."""
        reasons = {}
        if not service.opened:
            reasons["embeddings"] = "the embedding model is still loading"
        else:
            try:
                await run_in_threadpool(service.check_stores)
            except Exception as error:  # whatever Chroma's client raises, it is the reason
                reasons["chroma"] = f"the vector store does not answer: {error}"
        try:
            await service.model.ready()
        except RagError as error:
            reasons["model"] = error.message
        if getattr(app.state, "gate", None) and app.state.gate.draining:
            reasons["service"] = "the service is shutting down"
        if reasons:
            response.status_code = 503
            return {"status": "not ready", "reason": "; ".join(reasons.values()), "reasons": reasons}
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Prometheus text format."""
        for status, count in service.catalog.counts().items():
            service.metrics.documents.labels(status=status).set(count)
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")


def _add_documents(app: FastAPI, service: Service) -> None:
    catalog = service.catalog

    @app.post("/documents", status_code=202, tags=["documents"])
    async def upload(
        file: Annotated[UploadFile, File(description="A PDF.")],
        collection: Annotated[str, Form(pattern=COLLECTION_PATTERN)] = DEFAULT_COLLECTION,
    ) -> Accepted:
        """Accept a document; its job tells when it can be searched. The same content again is the same document."""
        name = _filename(file.filename)
        document, job = await run_in_threadpool(_store, service, file, name, collection)
        service.wake_jobs()
        return Accepted(job_id=job.id, document_id=document.id)

    @app.get("/documents", tags=["documents"])
    def documents(collection: str | None = None) -> dict[str, list[DocumentOut]]:
        """All documents, oldest first."""
        return {"documents": [_document_out(d) for d in catalog.documents(collection)]}

    @app.get("/documents/{document_id}", tags=["documents"])
    def document(document_id: str) -> DocumentOut:
        return _document_out(catalog.document(document_id))

    @app.delete("/documents/{document_id}", status_code=204, tags=["documents"])
    def delete(document_id: str) -> None:
        """Remove the document, its text, its vectors and the file."""
        service.jobs.delete(document_id)

    @app.get("/documents/{document_id}/file", tags=["documents"])
    def original(document_id: str) -> FileResponse:
        """The original file."""
        found = catalog.document(document_id)
        disposition = f"inline; filename*=UTF-8''{quote(found.filename)}"
        headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
        return FileResponse(catalog.file_path(found), media_type="application/pdf", headers=headers)

    @app.get("/documents/{document_id}/pages/{page}", tags=["documents"])
    def page(document_id: str, page: int) -> dict[str, Any]:
        """The text of one page (1-based); a citation's offsets refer to it."""
        found = catalog.document(document_id)
        return {"document_id": found.id, "page": page, "text": catalog.page(found.id, page).text}

    @app.get("/jobs/{job_id}", tags=["documents"])
    def job(job_id: str) -> JobOut:
        return _job_out(catalog.job(job_id))

    @app.get("/jobs/{job_id}/events", tags=["documents"])
    async def job_events(job_id: str) -> EventSourceResponse:
        """The job as server-sent events: its state now, each change, and the end."""
        first = await run_in_threadpool(catalog.job, job_id)
        return EventSourceResponse(_follow(service, first), ping=15)


async def _follow(service: Service, job: Job) -> AsyncIterator[dict[str, str]]:
    shown: Job | None = None
    while True:
        changed = service.changed
        job = await run_in_threadpool(service.catalog.job, job.id)
        if job != shown:
            shown = job
            yield {"event": job.state, "data": _job_out(job).model_dump_json()}
        if job.done:
            return
        await changed.wait()


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post("/search", tags=["search"])
    def search(request: SearchRequest) -> SearchResult:
        """The passages that bear on a query, best first, with their probability of relevance."""
        found = service.retriever.search(
            request.query, request.k, collection=request.collection, filter=request.filter, mode=request.mode
        )
        return SearchResult(
            passages=[
                PassageOut(
                    document_id=f.document.id,
                    filename=f.document.filename,
                    page=f.chunk.page,
                    start=f.chunk.start,
                    text=f.chunk.text,
                    score=f.score,
                )
                for f in found
            ]
        )


def _filename(given: str | None) -> str:
    """The last part of the name, printable, at most 200 characters: it is shown, never used as a path."""
    name = (given or "").encode("utf-8", "replace").decode().replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(c for c in unicodedata.normalize("NFC", name) if c.isprintable()).strip()
    if not name.strip("."):
        raise InvalidRequest("the upload has no usable file name", param="file")
    if len(name) > 200:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[: 199 - len(suffix)]}.{suffix}" if dot and len(suffix) < 16 else name[:200]
    return name


def _store(service: Service, file: UploadFile, name: str, collection: str) -> tuple[Document, Job]:
    """Copy the upload into the data folder, hashing it on the way, and hand it to the catalog."""
    limit = service.settings.max_upload_mb * _BLOCK
    digest, size, head = hashlib.sha256(), 0, b""
    incoming: Path | None = None
    try:
        incoming = service.catalog.incoming_dir / uuid.uuid4().hex
        with incoming.open("wb") as target:
            while block := file.file.read(_BLOCK):
                head = head or block[:1024]
                size += len(block)
                if size > limit:
                    raise TooLarge(
                        f"{name} is larger than {service.settings.max_upload_mb} MB (RAG_MAX_UPLOAD_MB)", param="file"
                    )
                digest.update(block)
                target.write(block)
        if size == 0:
            raise InvalidRequest(f"{name} is empty (0 bytes)", param="file")
        if not is_pdf(head):
            raise UnsupportedFile(f"{name} is not a PDF, whatever its name says; only PDF is read", param="file")
        return service.catalog.accept(incoming, collection=collection, filename=name, content_sha256=digest.hexdigest())
    except OSError as error:
        raise StorageError(f"{name} cannot be stored in {service.settings.data_dir}: {error}") from error
    finally:
        if incoming is not None:
            incoming.unlink(missing_ok=True)


def _document_out(document: Document) -> DocumentOut:
    return DocumentOut.model_validate({**vars(document), "failed_pages": list(document.failed_pages)})


def _job_out(job: Job) -> JobOut:
    return JobOut.model_validate(vars(job))


def add_gate(app: FastAPI) -> Drain:
    """The outermost layer, which refuses new work while the service drains."""
    gate = Drain(app)
    app.state.gate = gate
    return gate
