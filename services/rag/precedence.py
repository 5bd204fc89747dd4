"""Who may use the model now: questions at once, work that nobody waits for only while there are none."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

# After an answer the next question often follows, on passages that the engine still has in its cache.
QUIET_SECONDS = 10.0
# Until a question that is being answered may be done.
_LOOK_SECONDS = 1.0


class Interrupted(Exception):
    """A question came: the work is to be done again later."""


class Precedence:
    """Thread-safe; the questions and the work may run in different event loops."""

    def __init__(self, quiet: float = QUIET_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._lock = threading.Lock()
        self._questions = 0
        self._free_at = clock()
        self._work: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    @contextlib.contextmanager
    def question(self) -> Iterator[None]:
        """While the model answers somebody; work that runs is given up."""
        with self._lock:
            self._questions += 1
            if self._work is not None:
                loop, task = self._work
                loop.call_soon_threadsafe(task.cancel)
        try:
            yield
        finally:
            with self._lock:
                self._questions -= 1
                self._free_at = self._clock() + self._quiet

    @property
    def wait(self) -> float:
        """Seconds until it is worth to look again whether work may run; 0: it may now."""
        with self._lock:
            return _LOOK_SECONDS if self._questions else max(0.0, self._free_at - self._clock())

    async def work(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it while no question comes.

        Raises:
            Interrupted: one came, or is being answered.
        """
        task = asyncio.ensure_future(coroutine)
        with self._lock:
            if self._questions or self._work is not None:
                task.cancel()
            else:
                self._work = asyncio.get_running_loop(), task
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # it is the caller who gives up
            raise Interrupted from None
        finally:
            task.cancel()
            with self._lock:
                if self._work is not None and self._work[1] is task:
                    self._work = None
