"""What surrounds every route: request ids, the log, metrics, keys, the size of bodies. Plain ASGI, so streams stay streams."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.model.errors import CLIENT_GONE_STATUS, BodyTooLarge, ServiceError, Unauthorized, status_of
from services.model.service import ModelService

log = logging.getLogger("docduet.model.requests")

# Probes come without keys, and the API page is no secret.
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json", "/static-offline-docs")
# Known routes; others share one label, or a port scan would fill the metrics.
_ROUTES = ("/health", "/ready", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
# A client that is still sending a body that is too large would not read the answer. It may finish, up to here.
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 10.0
NOTES = "docduet.notes"  # scope key: a dict that the route fills for the log line


def error_response(error: ServiceError) -> JSONResponse:
    """The one place where an error becomes HTTP."""
    return JSONResponse(error.body(), status_of(error), error.headers())


class Observe:
    """Outermost: gives every request an id, one log line and its metrics, and turns what nobody caught into a plain 500."""

    def __init__(self, app: ASGIApp, service: ModelService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(8)
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
        except Exception:
            log.exception("unexpected error in %s %s id=%s", scope["method"], scope["path"], request_id)
            if not status:
                error = ServiceError(
                    f"an unexpected error; the service's log has it under {request_id}", code="internal_error"
                )
                await error_response(error)(scope, receive, send_with_id)
        finally:
            if work:
                self._service.work_ended()
            status = notes.pop("status", status) or CLIENT_GONE_STATUS
            self._finish(scope, int(status), time.perf_counter() - began, request_id, notes)

    def _finish(self, scope: Scope, status: int, seconds: float, request_id: str, notes: dict[str, float]) -> None:
        path = scope["path"]
        route = "/v1/models" if path.startswith("/v1/models/") else path if path in _ROUTES else "other"
        self._service.metrics.requests.labels(route, str(status)).inc()
        notes.pop("arrived", None)
        extra = "".join(f" {name}={value}" for name, value in notes.items())
        level = logging.DEBUG if route in ("/health", "/ready", "/metrics") else logging.INFO
        # %r: a path may contain line breaks, which would forge log lines
        log.log(level, "%s %r %d %.3fs%s id=%s", scope["method"], path, status, seconds, extra, request_id)


class Authenticate:
    """Bearer keys on everything but `OPEN_PATHS`. Without keys, nothing is asked; the settings allow that on loopback."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._knows(given.strip().encode("latin-1", "replace")):
            await self._app(scope, receive, send)
            return
        problem = "is not known here" if given else "is missing: send Authorization: Bearer <key>"
        await error_response(Unauthorized(f"the API key {problem}"))(scope, receive, send)

    def _knows(self, given: bytes) -> bool:
        # Every key is compared, and each in constant time: the time taken tells nothing about them.
        return any([hmac.compare_digest(key, given) for key in self._keys])  # noqa: C419


def _is_open(path: str) -> bool:
    return any(path == known or path.startswith(known + "/") for known in OPEN_PATHS)


class LimitBody:
    """Refuses bodies of more than `limit` bytes: by their declared length at once, else when the count passes it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        error = BodyTooLarge(
            f"the body is larger than {self._limit >> 20} MiB (MODEL_MAX_BODY_MB), the most this service takes"
        )
        if declared.isdigit() and int(declared) > self._limit:
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
            if received > self._limit:
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
