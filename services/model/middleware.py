"""What surrounds every route: request ids, the log, metrics, keys, limits, the size of bodies. Plain ASGI, so streams stay streams."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.model.errors import (
    CLIENT_GONE_STATUS,
    BodyTooLarge,
    RateLimited,
    ServiceError,
    Unauthorized,
    status_of,
)
from services.model.limits import Client, Clients
from services.model.logs import FIELDS, TRACE, describe
from services.model.metrics import Metrics
from services.model.service import ModelService

log = logging.getLogger("docduet.model.requests")

# Probes come without keys, and the API page is no secret.
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json", "/static-offline-docs")
# Known routes; others share one label, or a port scan would fill the metrics.
_ROUTES = ("/health", "/ready", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# A client that is still sending a body that is too large would not read the answer. It may finish, up to here.
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 10.0

# Keys of the ASGI scope.
REQUEST_ID = "docduet.request_id"
CLIENT = "docduet.client"  # the limits.Client that asks; not there on open paths
# A dict that the route fills for the log: prompt and cached (tokens), generated (tokens; its presence says that the engine
# worked, and the tokens are charged), finish, and, only where `LOG_PROMPTS` is true, prompt_text and answer_text.
# Also `status`, where it is not that of the response, and `arrived`, from `time.perf_counter()`.
NOTES = "docduet.notes"
LOG_PROMPTS = "docduet.log_prompts"
_NOTED = {  # how the log calls them, in its order
    "error": "error",
    "prompt": "prompt_tokens",
    "cached": "cached",
    "generated": "generated",
    "finish": "finish",
    "prompt_text": "prompt_text",
    "answer_text": "answer_text",
}


class ErrorResponse(JSONResponse):
    """An error as HTTP: the status of its class, its headers, the OpenAI error object and the request's id."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.body(), status_of(error), error.headers())
        self.error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = self.render(self.error.body(scope.get(REQUEST_ID)))
        self.headers["content-length"] = str(len(self.body))
        if NOTES in scope:
            scope[NOTES]["error"] = self.error.code or self.error.type
        await super().__call__(scope, receive, send)


def error_response(error: ServiceError) -> ErrorResponse:
    """The one place where an error becomes HTTP."""
    return ErrorResponse(error)


def log_unexpected(scope: Scope, error: Exception) -> ServiceError:
    """Logs what nobody foresaw, under the request's id, and returns what the client is told: nothing of the inside."""
    request_id = scope[REQUEST_ID]
    fields = {"method": scope["method"], "path": scope["path"], "request_id": request_id}
    trace = describe(error, with_text=scope[LOG_PROMPTS])
    message = "unexpected error in %s %r: %s"
    kind = type(error).__qualname__
    log.error(message, scope["method"], scope["path"], kind, extra={FIELDS: fields, TRACE: trace})
    return ServiceError(f"an unexpected error; the service's log has it under {request_id}", code="internal_error")


class Observe:
    """Outermost: gives every request an id, one log line and its metrics."""

    def __init__(self, app: ASGIApp, service: ModelService) -> None:
        self._app = app
        self._service = service
        self._log_prompts = service.settings.log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(8)
        scope[REQUEST_ID] = request_id
        scope[LOG_PROMPTS] = self._log_prompts
        notes = scope[NOTES] = {"arrived": began}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        work = scope["method"] == "POST"
        if work:
            self._service.work_began()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if work:
                self._service.work_ended()
            status = int(notes.get("status", status)) or CLIENT_GONE_STATUS
            self._finish(scope, status, time.perf_counter() - began, notes)

    def _finish(self, scope: Scope, status: int, seconds: float, notes: dict[str, Any]) -> None:
        method, path = scope["method"], scope["path"]
        shown = path if len(path) <= 200 else path[:200] + "…"
        route = "/v1/models" if path.startswith("/v1/models/") else path if path in _ROUTES else "other"
        self._service.metrics.requests.labels(route, str(status)).inc()
        level = logging.DEBUG if route in ("/health", "/ready", "/metrics") else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = {"method": method, "path": shown, "status": status, "seconds": round(seconds, 3)}
        if CLIENT in scope:
            fields["client"] = scope[CLIENT].name
        fields |= {name: notes[note] for note, name in _NOTED.items() if note in notes}
        if not self._log_prompts:
            fields.pop("prompt_text", None)
            fields.pop("answer_text", None)
        fields["request_id"] = scope[REQUEST_ID]
        # %r: a path may contain line breaks, which would forge log lines
        log.log(level, "%s %r %d %.3fs", method, shown, status, seconds, extra={FIELDS: fields})


class Catch:
    """Turns what nobody caught into a plain 500, and a client that left while its body was read into no error at all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            scope[NOTES]["status"] = CLIENT_GONE_STATUS
        except Exception as unexpected:
            error = log_unexpected(scope, unexpected)
            if not started:
                await error_response(error)(scope, receive, send)


class Authenticate:
    """Bearer keys on everything but `OPEN_PATHS`; says who asks. Without keys, nothing is asked; the settings allow that on
    loopback."""

    def __init__(self, app: ASGIApp, clients: Clients) -> None:
        self._app = app
        self._clients = clients

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        client = self._clients.anonymous
        if client is None:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() == "bearer":
                client = self._clients.find(given.strip().encode("latin-1", "replace"))
            if client is None:
                problem = "is not known here" if given else "is missing: send Authorization: Bearer <key>"
                await error_response(Unauthorized(f"the API key {problem}"))(scope, receive, send)
                return
        scope[CLIENT] = client
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in OPEN_PATHS)


class LimitClients:
    """Holds every client to its limits (see limits.py), for POST requests: what is only looked at costs nothing."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client: Client | None = scope.get(CLIENT)
        if client is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        running = False

        def leave() -> None:
            nonlocal running
            if running:
                running = False
                client.leave()

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(client.headers())
            elif not message.get("more_body"):
                leave()  # before the client can have the end and send its next request
            await send(message)

        try:
            client.enter()
        except RateLimited as error:
            self._metrics.limited.labels(error.limit).inc()
            await error_response(error)(scope, receive, send_with_limits)
            return
        running = True
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            leave()
            notes = scope[NOTES]
            client.charge(notes.get("prompt", 0) + notes["generated"] if "generated" in notes else 0)


class LimitBody:
    """Refuses bodies of more than `limit_mb`, or the client's own bound: by their declared length at once, else by counting."""

    def __init__(self, app: ASGIApp, limit_mb: int) -> None:
        self._app = app
        self._limit_mb = limit_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        limit_mb, whose = self._limit_mb, "MODEL_MAX_BODY_MB), the most this service takes"
        own = scope[CLIENT].limits.max_body_mb if CLIENT in scope else None
        if own is not None and own < limit_mb:
            limit_mb, whose = own, "MODEL_LIMITS), the most this client may send"
        limit = limit_mb << 20
        error = BodyTooLarge(f"the body is larger than {limit_mb} MiB ({whose}")
        if declared.isdigit() and int(declared) > limit:
            if "expect" not in headers and int(declared) <= _DRAIN_BYTES:
                await _discard(receive)
            response = error_response(error)
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                await _discard(receive)
                raise error
            return message

        await self._app(scope, counted, send)


async def _discard(receive: Receive) -> None:
    """Reads what the client still sends, within bounds, and keeps none of it."""
    seen = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while seen < _DRAIN_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
    except TimeoutError:
        return
