"""Has the model write notes about chunks, one after the other, while nothing else wants the machine.

A document is indexed and searched without them; they follow. What is done is in the catalog chunk by chunk, so a kill, a
question or a model service that goes away costs at most the note under way.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from services.rag import notes
from services.rag.errors import ModelRejected, ModelTimeout, ModelUnavailable
from services.rag.precedence import Interrupted, Precedence
from services.rag.prompts import Message
from services.rag.store.catalog import Catalog
from services.rag.store.records import Chunk

log = logging.getLogger("docduet.rag.notes")

T = TypeVar("T")

BATCH_CHUNKS = 64
# A model service that is away, full or refuses is asked again after this, and twice as long each time up to the second.
RETRY_SECONDS, MOST_RETRY_SECONDS = 5.0, 300.0
# Between two looks whether ingestion is done: it comes first.
_LOOK_SECONDS = 2.0


class Model(Protocol):
    """What is needed of ``ModelClient``."""

    precedence: Precedence

    async def model_name(self) -> str: ...
    async def complete_aside(self, messages: list[Message], *, max_tokens: int) -> str: ...


class NoteMaker:
    """One thread; the model client lives in the event loop ``loop``."""

    def __init__(
        self,
        catalog: Catalog,
        model: Model,
        loop: asyncio.AbstractEventLoop,
        noted: Callable[[str], None],
        counted: Callable[[str], None] = lambda result: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """``noted`` is called with a document's id when one of its chunks has a note, ``counted`` with what became of each
        chunk: ``made``, ``reused``, ``unusable`` or ``interrupted``."""
        self._catalog = catalog
        self._model = model
        self._loop = loop
        self._noted = noted
        self._counted = counted
        self._retry_seconds = retry_seconds
        # Chunks that the model service does not take, and why; asked again by the next process.
        self._refused: dict[str, str] = {}
        self._error: str | None = None
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._call: concurrent.futures.Future[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="notes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if (call := self._call) is not None:
            call.cancel()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def wake(self) -> None:
        """There may be chunks without a note."""
        self._wake.set()

    @property
    def error(self) -> str | None:
        """Why notes wait, if they do."""
        return self._error

    def _run(self) -> None:
        retry = self._retry_seconds
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                wait = self._step()
                if self._error is None:
                    retry = self._retry_seconds
            except (Interrupted, concurrent.futures.CancelledError):
                self._counted("interrupted")
                wait = 0.0
            except Exception as error:
                if not isinstance(error, ModelUnavailable | ModelTimeout | ModelRejected):
                    log.exception("notes wait")
                elif self._error is None:
                    log.warning("notes wait: %s", error)
                self._error = str(error) or type(error).__name__
                self._stopping.wait(max(retry, getattr(error, "retry_after", None) or 0))
                retry = min(2 * retry, MOST_RETRY_SECONDS)
                continue
            if wait is None or wait > 0:
                self._wake.wait(wait)

    def _step(self) -> float | None:
        """Some chunks. Returns the seconds until there may be more to do; None: until something changes."""
        if self._catalog.open_jobs():
            return _LOOK_SECONDS
        chunks = [c for c in self._catalog.without_note(BATCH_CHUNKS + len(self._refused)) if c.id not in self._refused]
        if not chunks:
            self._error = next(reversed(self._refused.values()), None)
            return None
        name = self._ask(self._model.model_name())
        reused = self._catalog.reuse_notes(chunks, name, notes.VERSION)
        for chunk in chunks:
            if chunk.id in reused:
                self._done(chunk, "reused")
        for chunk in chunks:
            if chunk.id in reused:
                continue
            if self._stopping.is_set() or self._catalog.open_jobs():
                return 0.0
            if (wait := self._model.precedence.wait) > 0:
                return wait
            self._make(chunk, name)
            self._error = None
        return 0.0

    def _make(self, chunk: Chunk, model: str) -> None:
        note = None
        if notes.worth(chunk.text):
            asked = self._model.complete_aside(notes.messages(chunk.text), max_tokens=notes.MAX_TOKENS)
            try:
                note = notes.parse(self._ask(asked), chunk.text)
            except ModelRejected as error:
                self._refused[chunk.id] = str(error)
                raise
        self._catalog.put_note(chunk, model, notes.VERSION, note)
        self._done(chunk, "unusable" if note is None else "made")

    def _done(self, chunk: Chunk, result: str) -> None:
        self._counted(result)
        self._noted(chunk.document_id)

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result, from the loop that the model client lives in."""
        if self._stopping.is_set():
            coroutine.close()
            raise Interrupted
        call: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._call = call
        if self._stopping.is_set():
            call.cancel()
        try:
            return call.result()
        finally:
            self._call = None
