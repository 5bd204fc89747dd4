"""Who may run now: a bounded first-come queue in front of the engine's places and its KV cache."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from services.model.errors import QueueFull


@dataclass(frozen=True)
class Reservation:
    """Places, and the KV tokens that the request may come to need. Given back with `Scheduler.release`, once."""

    tokens: int
    places: int = 1


class Scheduler:
    """Admission by reservation: a request starts when its prompt and its longest answer fit beside the running ones.

    So the engine never runs out of KV memory halfway through an answer. Strictly first come, first served: a large request
    at the head is not overtaken by small ones, which could keep it waiting for ever. Used from one event loop.
    """

    def __init__(self, *, places: int, tokens: int, queue: int) -> None:
        self._places = places
        self._tokens = tokens
        self._queue = queue
        self._waiting: deque[tuple[asyncio.Future[None], Reservation]] = deque()
        self.running = 0
        self._taken = 0  # places
        self.reserved = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def admit(self, tokens: int, *, alone: bool = False) -> Reservation:
        """Waits for a place for `tokens` (at most the whole cache), or for all of them. Raises QueueFull; cancelling leaves the
        queue."""
        wanted = Reservation(min(tokens, self._tokens), self._places if alone else 1)
        if not self._waiting and self._fits(wanted):
            return self._take(wanted)
        if len(self._waiting) >= self._queue:
            raise QueueFull(
                f"{self.running} requests are running and {len(self._waiting)} waiting, which is the bound (MODEL_PARALLEL, "
                "MODEL_QUEUE). Try again shortly.",
                retry_after=max(1, (len(self._waiting) + self.running) // self._places),
            )
        turn = asyncio.get_running_loop().create_future()
        entry = (turn, wanted)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(wanted)  # it was given the place in the same moment
            else:
                self._waiting.remove(entry)
                self._admit_next()
            raise
        return wanted

    def release(self, reservation: Reservation) -> None:
        self.running -= 1
        self._taken -= reservation.places
        self.reserved -= reservation.tokens
        self._admit_next()

    def _fits(self, wanted: Reservation) -> bool:
        return self._taken + wanted.places <= self._places and self.reserved + wanted.tokens <= self._tokens

    def _take(self, wanted: Reservation) -> Reservation:
        self.running += 1
        self._taken += wanted.places
        self.reserved += wanted.tokens
        return wanted

    def _admit_next(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            turn, wanted = self._waiting.popleft()
            self._take(wanted)
            turn.set_result(None)
