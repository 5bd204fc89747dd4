"""The response of a generation: waits for a place, then streams or collects, and stops when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from services.model.engine.base import GenerationRequest
from services.model.errors import CLIENT_GONE_STATUS, ClientGone, Draining, ServiceError
from services.model.generation import Generation
from services.model.middleware import NOTES, error_response
from services.model.service import ModelService
from services.model.streaming import KEEP_ALIVE, SSE_HEADERS, AnswerFormat

log = logging.getLogger("docduet.model")

# Proxies close connections that are silent for a minute; a long prompt on a small machine is read for longer than that.
KEEP_ALIVE_SECONDS = 10.0


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work`, or cancels it when the client leaves, and then raises ClientGone. The body must have been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        watching.cancel()
        working.cancel()
        await asyncio.wait({working, watching})


class Answer(Response):
    """Runs one generation when it is sent. Errors before the first event are HTTP errors; later ones end the stream."""

    def __init__(
        self,
        service: ModelService,
        request: GenerationRequest,
        form: AnswerFormat,
        *,
        stops: Sequence[str],
        stream: bool,
    ) -> None:
        super().__init__()
        self._service = service
        self._request = request
        self._form = form
        self._stops = stops
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._run(scope, receive, send))
        except ClientGone:
            scope[NOTES]["status"] = CLIENT_GONE_STATUS

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes = scope[NOTES]
        notes["prompt"] = len(self._request.token_ids)
        generation: Generation | None = None
        try:
            generation = await self._service.start(self._request, arrived=notes["arrived"])
            if self._stream:
                await self._send_events(generation, send)
            else:
                text = "".join([delta async for delta in generation.deltas(self._stops)])
                body = self._form.whole(text, generation.finish_reason, generation.usage)
                await JSONResponse(body)(scope, receive, send)
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
        finally:
            if generation is not None:
                generation.close()
                notes["cached"] = generation.usage.cached_tokens
                notes["generated"] = generation.usage.completion_tokens

    async def _send_events(self, generation: Generation, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_more(send, self._form.first())
        keeping: asyncio.Task[None] | None = asyncio.create_task(_keep_alive(send))
        try:
            async for delta in generation.deltas(self._stops):
                if keeping is not None:
                    keeping.cancel()
                    keeping = None
                await _send_more(send, self._form.delta(delta))
            end = self._form.last(generation.finish_reason, generation.usage)
        except ServiceError as error:
            end = self._form.error(error.body())
        except asyncio.CancelledError:
            if self._service.draining:  # out of time; a client that has left does not mind one more event
                await send({"type": "http.response.body", "body": self._form.error(_cut_short().body())})
            raise
        except Exception:
            log.exception("unexpected error in a stream")
            end = self._form.error(
                ServiceError("an unexpected error ended the answer; the service's log has it").body()
            )
        finally:
            if keeping is not None:
                keeping.cancel()
        await send({"type": "http.response.body", "body": end})


def _cut_short() -> ServiceError:
    return Draining("the service is stopping and could not finish this answer in time; ask again")


async def _send_more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _keep_alive(send: Send) -> None:
    while True:
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        await _send_more(send, KEEP_ALIVE)
