"""The HTTP application: documents, search, LangServe. ``create_app`` is handed its collaborators."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from services.rag.chain import Chain
from services.rag.chat import ChatInput
from services.rag.config import COLLECTION_PATTERN, DEFAULT_COLLECTION, Settings
from services.rag.embeddings import Embedder
from services.rag.errors import RagError, error_body
from services.rag.langserve_routes import langserve_router
from services.rag.middleware import BodyLimit, Drain, KeyGuard, RequestLog
from services.rag.protocol import Options, RagInput
from services.rag.retrieval import Mode
from services.rag.routes import calibration, documents, index, jobs, pages, sessions
from services.rag.service import Service

log = logging.getLogger("docduet.rag")

_BLOCK = 1 << 20
_OPEN_PATHS = ("/health", "/ready")


class SearchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    query: str
    k: int = 4
    collection: str = Field(default=DEFAULT_COLLECTION, pattern=COLLECTION_PATTERN)
    filter: dict[str, Any] | None = None
    mode: Mode = "hybrid"


class PlaceOut(BaseModel):
    document_id: str
    filename: str
    page: int


class PassageOut(BaseModel):
    document_id: str
    filename: str
    page: int
    label: str = Field(description="What a person calls the page; empty for a printed one.")
    start: int = Field(description="Offset of the text in the page, in code points.")
    text: str
    score: float
    also: list[PlaceOut] = Field(description="Where the same text stands too.")


class SearchResult(BaseModel):
    passages: list[PassageOut]


def create_app(settings: Settings, load_embedder: Callable[[str], Embedder]) -> FastAPI:
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
    _add_search(app, service)
    for routes in (documents, pages, jobs, index, calibration, sessions):
        app.include_router(routes.router(service))
    rag = Chain(lambda: service.retriever, service.model, settings, service.metrics, service.sessions).build()
    app.include_router(langserve_router(rag))

    keys = [key.get_secret_value() for key in settings.api_keys]
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimit,
        max_bytes=(settings.max_upload_mb + 1) * _BLOCK,
        setting="RAG_MAX_UPLOAD_MB",
        unlimited=("/restore",),  # as large as everything there is
    )
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
        # LangServe checks only the types of `config.configurable`; the bounds are those of the chain's own model. The inputs
        # of a batch it checks where it expects no error.
        inputs = error.title in (RagInput.__name__, ChatInput.__name__)
        if not inputs and error.title != Options.__name__:
            raise error
        first = error.errors()[0]
        where = ".".join(("inputs" if inputs else "config.configurable", *map(str, first["loc"][:1])))
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
            model = await service.model.model_name()
        except RagError as error:
            reasons["model"] = error.message
        if getattr(app.state, "gate", None) and app.state.gate.draining:
            reasons["service"] = "the service is shutting down"
        if reasons:
            response.status_code = 503
            return {"status": "not ready", "reason": "; ".join(reasons.values()), "reasons": reasons}
        return {"status": "ready", "model": model}

    @app.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Prometheus text format."""
        for status, count in service.catalog.counts().items():
            service.metrics.documents.labels(status=status).set(count)
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")


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
                    document_id=p.document_id,
                    filename=p.filename,
                    page=p.page,
                    label=p.label,
                    start=p.start,
                    text=p.text,
                    score=p.score,
                    also=[PlaceOut(document_id=a.document_id, filename=a.filename, page=a.page) for a in p.also],
                )
                for p in found
            ]
        )


def add_gate(app: FastAPI) -> Drain:
    """The outermost layer, which refuses new work while the service drains."""
    gate = Drain(app)
    app.state.gate = gate
    return gate
