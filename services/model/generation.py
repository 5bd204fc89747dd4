"""One admitted request: the engine's tokens become the parts of an answer, with a finish reason and a usage that are true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Literal

from services.model.calling import Redirect
from services.model.deltas import Delta
from services.model.engine.base import Engine, Event, Finish, GenerationRequest, Progress, Token
from services.model.errors import EngineFailed
from services.model.metrics import Metrics
from services.model.reading import AnswerReader
from services.model.scheduler import Reservation, Scheduler
from services.model.streaming import Usage


class Generation:
    """Made by `Generator.start`. Iterate `deltas()`, then read `finish_reason` and `usage`; always `close()` it."""

    def __init__(self, owner: Generator, request: GenerationRequest, reservation: Reservation, arrived: float) -> None:
        self._owner = owner
        self._request = request
        self._events = owner.engine.generate(request)
        self._reservation = reservation
        self._arrived = arrived
        self._closed = False
        self._prompt_tokens = len(request.token_ids)
        self._cached_tokens = 0
        self._before = 0  # tokens generated before a redirect
        self._count = 0
        self._first_at = self._last_at = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"

    async def accepted(self) -> None:
        """Waits for the engine's first word; what it refuses is raised here, while the HTTP status is still open."""
        first = await anext(self._events, None)
        if not isinstance(first, Progress):
            raise EngineFailed("the engine did not accept the request")
        self._cached_tokens = first.cached
        self._owner.metrics.prompt_tokens.inc(self._prompt_tokens)

    async def deltas(self, reader: AnswerReader) -> AsyncIterator[Delta]:
        """The parts of the answer, none empty."""
        going = True
        while going:
            going = False
            async for event in self._events:
                if type(event) is Token:
                    self._last_at = time.perf_counter()
                    if not self._count:
                        self._first_at = self._last_at
                        self._owner.metrics.first_token.observe(self._first_at - self._arrived)
                    self._count = self._before + event.count
                    for delta in reader.feed(event.text, event.logprobs):
                        yield delta
                    if reader.stopped:
                        self.finish_reason = "stop"
                        return  # what the engine still makes is cancelled by close()
                    if reader.redirect is not None:
                        break
                elif type(event) is Finish:
                    self.finish_reason = event.reason
                    self._count = self._before + event.completion_tokens
                    if not self._before:
                        self._cached_tokens = event.cached_tokens
                    if event.reason == "stop":
                        reader.ended()
                elif type(event) is Progress and not self._before:
                    self._cached_tokens = event.cached
            if reader.redirect is not None and await self._redirect(reader.redirect):
                reader.redirected()
                going = True
        for delta in reader.finish():
            yield delta
        if reader.stopped:
            self.finish_reason = "stop"

    async def _redirect(self, redirect: Redirect) -> bool:
        """Starts the engine again from what was said, held to a grammar; false when no room is left for that."""
        await self._events.aclose()
        first = self._request
        # The text is tokenized anew: what the model wrote is not always what a tokenizer makes of it, and nearly all of the
        # prompt is in the engine's cache in any case.
        said = await asyncio.to_thread(self._retokenized, redirect)
        token_ids = first.token_ids + said
        self._before = max(self._count, 1)
        room = min(
            first.max_tokens - self._before, len(first.token_ids) + first.max_tokens - len(token_ids)
        )  # the reservation
        if room < 1:
            self.finish_reason = "length"
            return False
        request = replace(first, token_ids=token_ids, max_tokens=room, constraint=redirect.constraint)
        if redirect.body is not None:
            request = replace(request, logprobs=None)  # calls have none
        self._events = self._owner.engine.generate(request)
        return True

    def _retokenized(self, redirect: Redirect) -> list[int]:
        tokenize = self._owner.engine.tokenize
        return tokenize(redirect.kept, special=False) + tokenize(redirect.tail, special=True)

    @property
    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, self._cached_tokens, self._count)

    def close(self) -> None:
        """Stops the engine where it still works. Returns at once; the place is free when the engine has let go of it."""
        if self._closed:
            return
        self._closed = True
        metrics = self._owner.metrics
        metrics.cached_tokens.inc(self._cached_tokens)
        metrics.generated_tokens.inc(self._count)
        if self._count > 1 and self._last_at > self._first_at:
            metrics.per_token.observe((self._last_at - self._first_at) / (self._count - 1))
        self._owner.retire(self._events, self._reservation)


class Generator:
    """Starts generations: waits for a place, hands the request to the engine, and takes the place back."""

    def __init__(self, engine: Engine, scheduler: Scheduler, metrics: Metrics) -> None:
        self.engine = engine
        self._scheduler = scheduler
        self.metrics = metrics
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, request: GenerationRequest, *, arrived: float) -> Generation:
        """Raises QueueFull and EngineFailed. `arrived`: `time.perf_counter()` when the HTTP request came in."""
        reservation = await self._scheduler.admit(len(request.token_ids) + request.max_tokens, alone=request.alone)
        generation = Generation(self, request, reservation, arrived)
        try:
            await generation.accepted()
        except BaseException:
            generation.close()
            raise
        return generation

    def retire(self, events: AsyncGenerator[Event, None], reservation: Reservation) -> None:
        task = asyncio.create_task(self._retire(events, reservation))
        self._retiring.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, events: AsyncGenerator[Event, None], reservation: Reservation) -> None:
        try:
            await events.aclose()
        finally:
            self._scheduler.release(reservation)

    async def settled(self) -> None:
        """Returns when the engine has let go of every closed generation."""
        while self._retiring:
            await asyncio.wait(self._retiring)
