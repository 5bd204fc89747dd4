"""One admitted request: the engine's tokens become text deltas, a finish reason and a usage that are true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal

from services.model.engine.base import Engine, Event, Finish, GenerationRequest, Progress, Token
from services.model.errors import EngineFailed
from services.model.metrics import Metrics
from services.model.scheduler import Reservation, Scheduler
from services.model.streaming import Usage
from services.model.text import StopMatcher


class Generation:
    """Made by `Generator.start`. Iterate `deltas()`, then read `finish_reason` and `usage`; always `close()` it."""

    def __init__(
        self, owner: Generator, events: AsyncGenerator[Event, None], reservation: Reservation, arrived: float
    ) -> None:
        self._owner = owner
        self._events = events
        self._reservation = reservation
        self._arrived = arrived
        self._closed = False
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._count = 0
        self._first_at = self._last_at = 0.0
        self.finish_reason: Literal["stop", "length"] = "stop"

    async def accepted(self, prompt_tokens: int) -> None:
        """Waits for the engine's first word; what it refuses is raised here, while the HTTP status is still open."""
        self._prompt_tokens = prompt_tokens
        first = await anext(self._events, None)
        if not isinstance(first, Progress):
            raise EngineFailed("the engine did not accept the request")
        self._cached_tokens = first.cached
        self._owner.metrics.prompt_tokens.inc(prompt_tokens)

    async def deltas(self, stops: Sequence[str]) -> AsyncIterator[str]:
        """The answer in pieces, none empty, without the stop string that ended it."""
        matcher = StopMatcher(stops)
        async for event in self._events:
            if type(event) is Token:
                self._last_at = time.perf_counter()
                if not self._count:
                    self._first_at = self._last_at
                    self._owner.metrics.first_token.observe(self._first_at - self._arrived)
                self._count = event.count
                text = matcher.feed(event.text)
                if text:
                    yield text
                if matcher.matched is not None:
                    return  # finish_reason "stop"; what the engine still makes is cancelled by close()
            elif type(event) is Finish:
                self.finish_reason = event.reason
                self._prompt_tokens = event.prompt_tokens
                self._cached_tokens = event.cached_tokens
                self._count = event.completion_tokens
                if text := matcher.flush():
                    yield text
            elif type(event) is Progress:
                self._cached_tokens = event.cached

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
        self._engine = engine
        self._scheduler = scheduler
        self.metrics = metrics
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self, request: GenerationRequest, *, arrived: float) -> Generation:
        """Raises QueueFull and EngineFailed. `arrived`: `time.perf_counter()` when the HTTP request came in."""
        prompt_tokens = len(request.token_ids)
        reservation = await self._scheduler.admit(prompt_tokens + request.max_tokens)
        generation = Generation(self, self._engine.generate(request), reservation, arrived)
        try:
            await generation.accepted(prompt_tokens)
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
