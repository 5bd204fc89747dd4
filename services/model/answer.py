"""The response of a request's generations: waits for a place, then streams or collects, and stops when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from services.model.choices import Choice
from services.model.deltas import Content, Delta
from services.model.errors import CLIENT_GONE_STATUS, ClientGone, Draining, RequestTimeout, ServiceError
from services.model.generation import Generation
from services.model.limits import deadline
from services.model.middleware import NOTES, REQUEST_ID, error_response, log_unexpected
from services.model.service import ModelService
from services.model.streaming import KEEP_ALIVE, SSE_HEADERS, AnswerFormat, Usage

log = logging.getLogger("docduet.model")

# Proxies close connections that are silent for a minute; a long prompt on a small machine is read for longer than that.
KEEP_ALIVE_SECONDS = 10.0

Start = asyncio.Task[Generation]


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
    """Runs the generations when it is sent. Errors before the first event are HTTP errors; later ones end the stream."""

    def __init__(self, service: ModelService, choices: Sequence[Choice], form: AnswerFormat, *, stream: bool) -> None:
        super().__init__()
        self._service = service
        self._choices = choices
        self._form = form
        self._stream = stream
        self._parts: dict[int, list[Delta]] = {}  # kept where they are sent whole, or logged
        self._reasons: dict[int, str] = {}
        self._streaming = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._run(scope, receive, send))
        except ClientGone:
            scope[NOTES]["status"] = CLIENT_GONE_STATUS

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes = scope[NOTES]
        notes["prompt"] = sum(len(choice.request.token_ids) for choice in self._choices if choice.first)
        arrived = notes["arrived"]
        # All enter the queue in one go; where it cannot take them, nothing has been answered yet.
        starts = [asyncio.create_task(self._service.start(choice.request, arrived=arrived)) for choice in self._choices]
        seconds = self._service.settings.request_seconds
        try:
            async with deadline(seconds, arrived=arrived):
                await starts[0]
                for start in starts:
                    if start.done():
                        start.result()
                if self._stream:
                    await self._send_events(starts, scope, send)
                else:
                    keep = [self._collect(choice, start) for choice, start in zip(self._choices, starts, strict=True)]
                    await _together(keep)
                    body = self._form.whole([self._whole(choice) for choice in self._choices], self._usage(starts))
                    await JSONResponse(body)(scope, receive, send)
        except ServiceError as error:
            if not self._streaming:  # a stream has ended with an event that says so
                await error_response(error)(scope, receive, send)
        finally:
            self._let_go(starts, scope)

    def _let_go(self, starts: Sequence[Start], scope: Scope) -> None:
        """Gives every place back. Awaits nothing: once the answer is sent, this task may be cancelled at any await."""
        for start in starts:
            start.cancel()  # one that waits leaves the queue, and one that has just begun closes what it began
            start.add_done_callback(_seen)
        usage = self._usage(starts)
        for start in starts:
            if _succeeded(start):
                start.result().close()
        notes = scope[NOTES]
        if any(map(_succeeded, starts)):
            notes["cached"], notes["generated"] = usage.cached_tokens, usage.completion_tokens
        if self._reasons:
            notes["finish"] = ",".join(reason for _, reason in sorted(self._reasons.items()))
        if self._service.settings.log_prompts:
            notes["prompt_text"] = "\n".join(
                self._service.engine.detokenize(choice.request.token_ids) for choice in self._choices if choice.first
            )
            notes["answer_text"] = "\n".join(
                "".join(getattr(part, "text", "") for part in parts) for _, parts in sorted(self._parts.items())
            )

    def _usage(self, starts: Sequence[Start]) -> Usage:
        """Of all choices; the tokens of a prompt count once, however many answers it gets."""
        total = Usage(0, 0, 0)
        for choice, start in zip(self._choices, starts, strict=True):
            if _succeeded(start):
                usage = start.result().usage
                total += usage if choice.first else Usage(0, 0, usage.completion_tokens)
        return total

    def _finish_reason(self, choice: Choice, generation: Generation) -> str:
        reason: str = generation.finish_reason
        if choice.reader.called and reason == "stop" and not choice.named:
            reason = "function_call" if self._form.legacy_calls else "tool_calls"
        self._reasons[choice.index] = reason
        return reason

    # --- whole --------------------------------------------------------------------------------------------------------

    async def _collect(self, choice: Choice, start: Start) -> None:
        generation = await start
        parts = self._parts.setdefault(choice.index, [Content(choice.echo)] if choice.echo else [])
        async for part in generation.deltas(choice.reader):
            parts.append(part)
        self._finish_reason(choice, generation)
        generation.close()  # its place is free for the next choice

    def _whole(self, choice: Choice) -> dict[str, Any]:
        return self._form.choice(choice.index, self._parts[choice.index], self._reasons[choice.index])

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _send_events(self, starts: Sequence[Start], scope: Scope, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in SSE_HEADERS.items()]
        self._streaming = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        out = _Events(send)
        request_id = scope.get(REQUEST_ID)
        try:
            await _together(
                [self._send_choice(choice, start, out) for choice, start in zip(self._choices, starts, strict=True)]
            )
            end = self._form.end(self._usage(starts))
        except ServiceError as error:
            end = self._form.error(error.body(request_id))
        except asyncio.CancelledError:
            # Out of time, by draining or by MODEL_REQUEST_SECONDS; a client that has left does not mind one more event.
            cut: ServiceError = RequestTimeout(self._service.settings.request_seconds)
            if self._service.draining:
                cut = Draining("the service is stopping and could not finish this answer in time; ask again")
            await out.end(self._form.error(cut.body(request_id)))
            raise
        except Exception as unexpected:
            end = self._form.error(log_unexpected(scope, unexpected).body(request_id))
        finally:
            out.started()
        await out.end(end)

    async def _send_choice(self, choice: Choice, start: Start, out: _Events) -> None:
        index = choice.index
        generation = await start
        await out.send(self._form.first(index))
        if choice.echo:
            await out.send(self._form.delta(index, Content(choice.echo)))
        kept = self._parts.setdefault(index, []) if self._service.settings.log_prompts else None
        async for part in generation.deltas(choice.reader):
            out.started()
            if kept is not None:
                kept.append(part)
            await out.send(self._form.delta(index, part))
        await out.send(self._form.last(index, self._finish_reason(choice, generation)))
        generation.close()


def _succeeded(start: Start) -> bool:
    return start.done() and not start.cancelled() and start.exception() is None


def _seen(start: Start) -> None:
    """asyncio complains of exceptions that nobody looked at; of several choices' one is answered."""
    if not start.cancelled():
        start.exception()


class _Events:
    """The body of a stream, written by several choices in turn; a comment keeps it alive until the first part."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = asyncio.create_task(self._keep_alive())
        self._ended = False

    async def send(self, event: bytes) -> None:
        async with self._turn:
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end(self, event: bytes) -> None:
        if not self._ended:
            self._ended = True
            await self._send({"type": "http.response.body", "body": event})

    def started(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            await self.send(KEEP_ALIVE)


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Awaits all; the first exception stops the others and is raised."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
