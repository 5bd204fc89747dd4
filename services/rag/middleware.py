"""What surrounds every route: the size of bodies, keys, the log, draining. Pure ASGI.

Pure ASGI because Starlette's ``BaseHTTPMiddleware`` hides a client's disconnect from the route, and a disconnect must end
a generation. Every refusal is the OpenAI error object ``{"error": {"message", "type", "param", "code"}}``.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import re
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("docduet.http")

# Which of the keys a request came with, for what belongs to one of them; "" where no key is needed.
caller: ContextVar[str] = ContextVar("caller", default="")


async def send_error(
    send: Send,
    status: int,
    message: str,
    type_: str,
    code: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    last: bool = True,
) -> None:
    """The whole answer. With ``last=False`` the connection stays open until an empty body is sent."""
    body = {"error": {"message": message, "type": type_, "param": None, "code": code}}
    payload = json.dumps(body, ensure_ascii=False).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": payload, "more_body": not last})


class BodyLimit:
    """413 for a body over ``max_bytes``, at once: by its declared length, else as soon as that many bytes came."""

    def __init__(self, app: ASGIApp, max_bytes: int, setting: str, unlimited: Sequence[str] = ()) -> None:
        self._app, self._max, self._setting, self._unlimited = app, max_bytes, setting, unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._unlimited:
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max:
            # Who asks with Expect: 100-continue sends nothing before the answer, and nothing after this one.
            return await self._refuse(receive, send, sending=b"expect" not in headers)
        received, started, over = 0, False, False

        async def limited() -> Message:
            nonlocal received, over
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max:
                over = True
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if over and not started:
                return  # whatever the app makes of the broken body, the answer is ours
            started = True
            await send(message)

        try:
            await self._app(scope, limited, watched)
        except _TooLarge:
            pass
        except Exception:
            if not over:
                raise
        if over and not started:
            await self._refuse(receive, send, sending=True)
        return None

    async def _refuse(self, receive: Receive, send: Send, *, sending: bool) -> None:
        limit = f"{self._max / (1 << 20):g} MB"
        await send_error(
            send,
            413,
            f"the request body is larger than {limit} ({self._setting})",
            "invalid_request_error",
            "request_too_large",
            [(b"connection", b"close")],
            last=not sending,
        )
        if sending:
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})


class _TooLarge(Exception):
    pass


# Closing while a client sends resets the connection, and one that reads only after sending would never see the answer: what
# it sends after the answer is thrown away, within bounds that cost nothing.
_DISCARD_BYTES = 4 << 20
_DISCARD_SECONDS = 2.0


async def _discard(receive: Receive) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            seen = 0
            while seen < _DISCARD_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


class KeyGuard:
    """401 without one of ``keys`` as bearer token; as the password of HTTP Basic too, so that a browser can ask for it."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_paths: Sequence[str], setting: str) -> None:
        self._app, self._setting = app, setting
        self._keys = [key.encode() for key in keys]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in self._open:
            return await self._app(scope, receive, send)
        given = _credentials(dict(scope["headers"]).get(b"authorization", b""))
        # Every key is compared, each in constant time: the answer's time tells nothing about them.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if any(matches):
            caller.set(str(matches.index(True)))
            return await self._app(scope, receive, send)
        await send_error(
            send,
            401,
            f"a key is needed: send 'Authorization: Bearer <key>' with one of {self._setting}",
            "authentication_error",
            "invalid_api_key",
            [(b"www-authenticate", b'Bearer realm="docduet"'), (b"www-authenticate", b'Basic realm="docduet"')],
        )
        return None


def _credentials(header: bytes) -> bytes:
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


_REQUEST_ID = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")


class RequestLog:
    """One log line a request, without its content; ``x-request-id`` in and out; counts requests in flight."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int], None] | None = None) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.match(given) else uuid.uuid4().hex.encode()
        status, began = 0, time.perf_counter()

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            status = status or 499  # the client left before an answer began
            if self._observe:
                self._observe(scope["method"], route, status)
            level = logging.DEBUG if scope["path"] in ("/health", "/ready", "/metrics") else logging.INFO
            seconds = time.perf_counter() - began
            # %r: a path may hold line breaks, which would forge log lines.
            log.log(level, "%s %r %d %.3fs %s", scope["method"], scope["path"], status, seconds, request_id.decode())


class Drain:
    """While ``draining``, new requests get 503; what runs goes on. Reads about the service itself stay open."""

    def __init__(self, app: ASGIApp, open_paths: Sequence[str] = ("/health", "/ready", "/metrics")) -> None:
        self._app, self._open = app, frozenset(open_paths)
        self.draining = False
        self.running = 0
        self.idle = asyncio.Event()  # set whenever nothing runs
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self.draining and scope["path"] not in self._open:
            await send_error(
                send,
                503,
                "the service is shutting down: send the request again in a moment",
                "server_error",
                "shutting_down",
                [(b"retry-after", b"5"), (b"connection", b"close")],
            )
            return None
        self.running += 1
        self.idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
        return None


class DrainingServer(uvicorn.Server):
    """uvicorn whose first SIGTERM or SIGINT drains for at most ``drain_seconds``; a second one stops at once."""

    def __init__(self, config: uvicorn.Config, gate: Drain, drain_seconds: float) -> None:
        super().__init__(config)
        self._gate, self._drain_seconds = gate, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining_task: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.draining or self._loop is None:
            self.force_exit = self.should_exit = True
            return
        self._gate.draining = True
        log.info("%s: finishing %d requests, refusing new ones", signal.Signals(sig).name, self._gate.running)
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._drain_seconds
        while self._gate.running and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gate.idle.wait(), deadline - time.monotonic())
        if self._gate.running:
            log.warning("%d requests did not finish in %g s and are cut", self._gate.running, self._drain_seconds)
            self.force_exit = True
        self.should_exit = True
