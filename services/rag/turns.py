"""Who may use an embedding model now: so many at a time, and a query before the next document."""

import contextlib
import threading
from collections.abc import Iterator


class Turns:
    """``at_once`` users of a model; a document waits while a query does."""

    def __init__(self, at_once: int = 1) -> None:
        self._changed = threading.Condition()
        self._free = at_once
        self._queries = 0

    @property
    def queries_waiting(self) -> int:
        return self._queries

    @contextlib.contextmanager
    def query(self) -> Iterator[None]:
        with self._changed:
            self._queries += 1
            try:
                self._changed.wait_for(lambda: self._free)
                self._free -= 1
            finally:
                self._queries -= 1
        yield from self._use()

    @contextlib.contextmanager
    def document(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._free and not self._queries)
            self._free -= 1
        yield from self._use()

    def _use(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
