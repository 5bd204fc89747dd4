"""Pages of other origins: off unless MODEL_CORS_ORIGINS lets them in. Plain ASGI.

Starlette's own answers a refused preflight in plain text; here every error is the OpenAI error object.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.model.errors import InvalidRequest
from services.model.middleware import error_response

_MAX_AGE = "600"
# What a page's script may read, beside the body.
_EXPOSED = ", ".join(
    ["x-request-id", "retry-after"]
    + [f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
)


class Cors:
    """Answers a browser's preflight, which carries no key, and marks every answer to an allowed origin, errors and streams too.

    `origins`: as browsers send them (`https://host:port`), or `*`. Cookies play no part, keys come in a header.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        allowed = "*" if "*" in self._origins else origin if origin.lower() in self._origins else None

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.add_vary_header("Origin")
                if origin and allowed is not None:
                    answer["Access-Control-Allow-Origin"] = allowed
                    answer["Access-Control-Expose-Headers"] = _EXPOSED
            await send(message)

        if not (origin and scope["method"] == "OPTIONS" and "access-control-request-method" in headers):
            await self._app(scope, receive, marked)
            return
        if allowed is None:
            error = InvalidRequest(
                "pages of this origin are not let in; MODEL_CORS_ORIGINS lists those that are",
                code="origin_not_allowed",
            )
            await error_response(error)(scope, receive, marked)
            return
        answer = Response(status_code=204)
        answer.headers["Access-Control-Allow-Methods"] = "GET, POST"
        # Whatever it asks for: Authorization, Content-Type, and the many x-stainless-* of OpenAI's client.
        if wanted := headers.get("access-control-request-headers"):
            answer.headers["Access-Control-Allow-Headers"] = wanted
        answer.headers["Access-Control-Max-Age"] = _MAX_AGE
        answer.headers["Vary"] = "Access-Control-Request-Headers"
        await answer(scope, receive, marked)
