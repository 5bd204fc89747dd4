"""LangServe at the edge: ``/rag/*`` and ``/chat/*``. The chain does not know it.

LangServe reports every failure in a stream as a bare 500 inside a 200 response. Our route class looks at the first event
before the response starts: an error there becomes a proper HTTP status with its reason; a later one keeps its reason in
the error event.

LangServe's playground pages show neither: they get a script of ours (web/playground.js), which shows the reason, and the
answer as text.
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from langchain_core.runnables import Runnable
from langserve import add_routes
from sse_starlette import EventSourceResponse

from services.rag.chat import chat_chain
from services.rag.errors import RagError

_PLAYGROUND_SCRIPT = "/playground.js"
_PLAYGROUND_TAG = f'<script src="{_PLAYGROUND_SCRIPT}"></script>'.encode()


class EdgeRoute(APIRoute):
    """Gives streams their errors back and the playground pages their script."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            if isinstance(response, EventSourceResponse):
                response.body_iterator = await _started(response.body_iterator)
            elif response.media_type == "text/html":
                # After the page's inline script, which sets the schemas; before its module, which is deferred.
                page = bytes(response.body).replace(b"</body>", _PLAYGROUND_TAG + b"</body>", 1)
                return Response(page, response.status_code, media_type="text/html")
            return response

        return handle


async def _started(events: Any) -> AsyncIterator[Any]:
    """``events`` once the first one is there; raises what made it fail before that."""
    first = await anext(events, None)
    if _is_error(first):
        await anext(events, None)  # LangServe raises the original error after its error event
    return _with_reasons(first, events)


async def _with_reasons(first: Any, events: Any) -> AsyncIterator[Any]:
    async with aclosing(events):
        if first is not None:
            yield first
        async for event in events:
            if not _is_error(event):
                yield event
                continue
            try:
                await anext(events, None)
            except RagError as error:
                reason = {"status_code": error.status, "message": error.message}
                yield {"event": "error", "data": json.dumps(reason, ensure_ascii=False)}
            except Exception:
                yield event
                raise
            return


def _is_error(event: Any) -> bool:
    return isinstance(event, dict) and event.get("event") == "error"


def langserve_router(rag: Runnable[Any, Any]) -> APIRouter:
    """All routes of ``/rag`` and ``/chat``. Feedback and trace links need LangSmith and stay off."""
    router = APIRouter(route_class=EdgeRoute)
    off: dict[str, Any] = {
        "enable_feedback_endpoint": False,
        "enable_public_trace_link_endpoint": False,
        "disabled_endpoints": ["token_feedback"],
    }
    add_routes(router, rag, path="/rag", **off)
    add_routes(router, chat_chain(rag), path="/chat", playground_type="chat", **off)
    script = resources.files("services.rag").joinpath("web/playground.js").read_bytes()

    @router.get(_PLAYGROUND_SCRIPT, include_in_schema=False)
    async def playground_script() -> Response:
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    return router
