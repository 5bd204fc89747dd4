"""Reads on after a page that killed its reader, so that one bad page costs one page. Pure logic: no process in sight."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from services.rag.documents.pages import Page, PageFailure, PageText, ReadError

MAX_RECOVERIES = 3  # a file that breaks its reader more often is broken, or made to waste time
MAX_PAGES = 100_000  # what a document may have; as printed pages that is a shelf of books
MAX_FAILURES = 10_000  # named one by one when a reader stops; the last one speaks for the rest

Attempt = Callable[[int], Generator[Page, None, None]]


class Broken(Exception):
    """The reader ended at the page after the last one it gave. ``final``: another try cannot help (no time is left)."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.final = final


def recover(attempt: Attempt, first_page: int = 1) -> Generator[Page, None, None]:
    """Every page from ``first_page`` to the last in order, each exactly once, as text or as a failure.

    ``attempt(n)`` reads the pages from n on; it raises ``Broken`` where the reader ends before its work does.

    Raises:
        ReadError: no page could be read, and pages are left that never will be.
    """
    return _Recovery(attempt, first_page).run()


class _Recovery:
    def __init__(self, attempt: Attempt, first_page: int) -> None:
        self._attempt = attempt
        self._next = first_page
        self._total = 0  # the largest that the reader named; 0 as long as it named none
        self._texts = 0
        self._held: str | None = None  # why the first page failed, until a later page tells how many there are

    def run(self) -> Generator[Page, None, None]:
        first, recoveries = self._next, 0
        while True:
            try:
                yield from self._pages()
                break
            except Broken as broken:
                if self._total == 0:
                    if self._held is not None or broken.final:
                        raise ReadError(self._held or broken.reason) from broken
                    self._held = broken.reason
                    self._next += 1
                    continue
                if broken.final or recoveries == MAX_RECOVERIES or self._next > self._total + 1:
                    yield from self._rest(broken.reason)
                    return
                recoveries += 1
                yield self._failure(broken.reason)
            except ReadError as error:
                if self._total == 0:
                    raise ReadError(self._held or str(error)) from error
                yield from self._rest(str(error))
                return
        if self._total == 0 and (self._held is not None or first == 1):
            raise ReadError(self._held or "there is nothing to read in the file")
        if self._next <= self._total:
            yield from self._rest("the reader ended before this page")

    def _pages(self) -> Iterator[Page]:
        with closing(self._attempt(self._next)) as pages:
            for page in pages:
                if page.number < self._next:
                    continue  # a reader that starts at the beginning whatever it is asked for
                self._total = max(self._total, page.total, page.number)
                if self._held is not None:
                    yield PageFailure(self._next - 1, self._total, self._held)
                    self._held = None
                while self._next < min(page.number, MAX_PAGES):
                    yield self._failure("the reader left this page out")
                if self._next >= MAX_PAGES:
                    yield self._failure(
                        f"a document can have {MAX_PAGES:,} pages; nothing after them was read: split it"
                    )
                    self._total = self._next - 1
                    return
                self._next += 1
                self._texts += isinstance(page, PageText)
                yield page

    def _failure(self, reason: str) -> PageFailure:
        number = self._next
        self._next += 1
        return PageFailure(number, max(self._total, number), reason)

    def _rest(self, reason: str) -> Iterator[PageFailure]:
        if self._texts == 0:
            raise ReadError(reason)
        last = min(self._total, self._next + MAX_FAILURES - 1)
        while self._next < last:
            yield self._failure(reason)
        if self._next < self._total:
            yield self._failure(f"{reason}; the same holds for every page after it, to page {self._total}")
        elif self._next == self._total:
            yield self._failure(reason)
        else:  # nobody knows whether there was more: say so rather than end in silence
            yield self._failure(f"{reason}; nothing after page {self._next - 1} was read")
