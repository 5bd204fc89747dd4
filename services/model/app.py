"""The routes. `create_app` is handed everything that it needs; nothing is built at import time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from services.model import protocol
from services.model.answer import Answer
from services.model.choices import chat_choices, completion_choices
from services.model.config import Settings
from services.model.cors import Cors
from services.model.engine.base import Engine
from services.model.errors import (
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    RouteNotFound,
    ServiceError,
    WrongContentType,
)
from services.model.limits import Clients
from services.model.middleware import CLIENT, Authenticate, Catch, LimitBody, LimitClients, Observe, error_response
from services.model.openapi import describe_errors
from services.model.service import ModelService
from services.model.streaming import AnswerFormat

_DESCRIPTION = """An OpenAI-compatible server of one model. Errors are OpenAI's error objects; a parameter that is not supported
is refused by name. With `MODEL_API_KEYS` set, everything but /health, /ready and these pages asks for a bearer key."""


def create_app(settings: Settings, engine: Engine, names: Sequence[str]) -> FastAPI:
    """The ASGI app; loading begins with its lifespan. `names`: what clients may call the model. `app.state.service` is the
    ModelService."""
    service = ModelService(settings, engine, names)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start_loading()
        yield
        await service.close()

    app: FastAPI = FastAPIOffline(
        title="docduet model service",
        version="0.1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,  # its page asks another host for a logo
    )
    app.state.service = service
    _add_routes(app, service)
    _add_error_handlers(app)
    describe_errors(app, with_keys=bool(settings.api_keys))
    # The last added is the outermost.
    app.add_middleware(LimitBody, limit_mb=settings.max_body_mb)
    app.add_middleware(LimitClients, metrics=service.metrics)
    app.add_middleware(Authenticate, clients=Clients(settings.api_keys, settings.limits))
    app.add_middleware(Catch)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Observe, service=service)
    return app


def _add_routes(app: FastAPI, service: ModelService) -> None:
    chat_body = protocol.body_schema(protocol.CHAT, ["messages"])
    completion_body = protocol.body_schema(protocol.COMPLETION, ["prompt"])
    tokenize_body = protocol.body_schema(protocol.TOKENIZE, [])

    @app.get("/health", tags=["operation"])
    async def health() -> dict[str, str]:
        """200 while the process is alive, whether or not the model is loaded."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operation"])
    async def ready() -> dict[str, Any]:
        """200 when requests are taken; 503 with the reason while the weights are fetched or loaded, and while stopping."""
        info = service.require_ready()
        return {"status": "ready", "model": service.names[0], "max_model_len": info.context}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["OpenAI"])
    async def list_models() -> dict[str, Any]:
        """The names of the one model that is served."""
        return {"object": "list", "data": [_model_card(service, name) for name in service.names]}

    @app.get("/v1/models/{model_id:path}", tags=["OpenAI"])
    async def get_model(model_id: str) -> dict[str, Any]:
        """One of them; ids may contain slashes."""
        if model_id not in service.names:
            raise ModelNotFound(
                f"the model {model_id!r} is not served here; this is {' or '.join(service.names)}", param="model"
            )
        return _model_card(service, model_id)

    @app.post("/v1/chat/completions", tags=["OpenAI"], openapi_extra={"requestBody": chat_body}, response_model=None)
    async def chat_completions(request: Request) -> Response:
        """The next message of a conversation."""
        service.require_ready()
        # In a thread: the schemas of tools and answers are compiled there.
        wanted = await asyncio.to_thread(protocol.parse_chat, await _body(request))
        model = service.check_model(wanted.model)
        options = _within_limits(request, wanted.options, 1)
        choices = await chat_choices(service, replace(wanted, options=options))
        form = AnswerFormat(
            "chat",
            model,
            with_usage=options.include_usage,
            with_logprobs=options.logprobs is not None,
            legacy_calls=wanted.tools is not None and wanted.tools.legacy,
        )
        return Answer(service, choices, form, stream=options.stream)

    @app.post("/v1/completions", tags=["OpenAI"], openapi_extra={"requestBody": completion_body}, response_model=None)
    async def completions(request: Request) -> Response:
        """The continuation of a text."""
        service.require_ready()
        wanted = protocol.parse_completion(await _body(request))
        model = service.check_model(wanted.model)
        options = _within_limits(request, wanted.options, len(wanted.prompts))
        choices = await completion_choices(service, replace(wanted, options=options))
        form = AnswerFormat("text", model, with_usage=options.include_usage, with_logprobs=options.logprobs is not None)
        return Answer(service, choices, form, stream=options.stream)

    @app.post("/tokenize", tags=["vLLM"], openapi_extra={"requestBody": tokenize_body}, response_model=None)
    async def tokenize(request: Request) -> dict[str, Any]:
        """Token ids of a text, or of messages through the chat template, as vLLM has it."""
        info = service.require_ready()
        wanted = protocol.parse_tokenize(await _body(request))
        service.check_model(wanted.model)
        if wanted.messages is not None:
            prompt = await service.chat_prompt(
                wanted.messages,
                tools=wanted.tools.tools if wanted.tools else (),
                add_generation_prompt=wanted.add_generation_prompt,
            )
            ids = prompt.token_ids
        else:
            ids = await service.text_tokens(wanted.prompt or "", add_bos=wanted.add_special_tokens)
        return {"count": len(ids), "max_model_len": info.context, "tokens": ids}


def _within_limits(request: Request, options: protocol.Options, prompts: int) -> protocol.Options:
    """The options, bounded by what this client may ask for. Raises InvalidRequest."""
    most = request.scope[CLIENT].most_tokens(
        options.max_tokens, answers=options.n * prompts, param=options.max_tokens_param
    )
    if most is None or options.max_tokens is not None:
        return options
    return replace(options, default_max_tokens=min(most, options.default_max_tokens or most))


async def _body(request: Request) -> dict[str, Any]:
    # Asking for JSON's own type also keeps web pages of other origins out: a browser asks first before sending it.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise WrongContentType(
            f"the body must be sent as Content-Type: application/json, not {kind or 'without a type'}"
        )
    return protocol.read_json(await request.body())


def _model_card(service: ModelService, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "docduet",
        "max_model_len": service.info.context if service.info else None,
    }


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def service_error(_: Request, error: ServiceError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"][1:]))
        return error_response(InvalidRequest(f"{name}: {problem['msg']}", param=name or None))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path, headers = request.scope["path"], dict(error.headers or {})
        path = path if len(path) <= 200 else path[:200] + "…"
        if error.status_code == 404:
            answer: ServiceError = RouteNotFound(f"there is no {request.method} {path} here; /docs lists what there is")
        elif error.status_code == 405:
            allowed = headers.setdefault("Allow", "GET, HEAD")  # the files of the API page do not say
            answer = MethodNotAllowed(f"{path} does not take {request.method}; use {allowed}")
        elif error.status_code < 500:
            answer = InvalidRequest(str(error.detail))
        else:
            answer = ServiceError(str(error.detail))
        response = error_response(answer)
        response.status_code = error.status_code
        response.headers.update(headers)
        return response
