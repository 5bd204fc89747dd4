"""Every page is accounted for exactly once, whatever the reader does."""

import contextlib
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents import recovery
from services.rag.documents.pages import Page, PageFailure, PageText, ReadError
from services.rag.documents.recovery import MAX_RECOVERIES, Broken, recover


class Reader:
    """Reads ``pages`` pages and breaks at some, each time it comes to them. ``streaming``: it learns the total as it goes."""

    def __init__(
        self, pages: int, broken: set[int], streaming: bool = False, skipped: frozenset[int] = frozenset()
    ) -> None:
        self.pages, self.broken, self.streaming, self.skipped = pages, broken, streaming, skipped
        self.attempts = 0
        self.open = 0

    def __call__(self, first_page: int) -> Generator[Page, None, None]:
        self.attempts += 1
        self.open += 1
        try:
            for number in range(first_page, self.pages + 1):
                if number in self.broken:
                    raise Broken(f"broke at {number}")
                if number not in self.skipped:
                    yield PageText(number, number if self.streaming else self.pages, f"page {number}")
        finally:
            self.open -= 1


@given(
    pages=st.integers(1, 30),
    broken=st.sets(st.integers(1, 30)),
    streaming=st.booleans(),
    skipped=st.frozensets(st.integers(1, 30), max_size=5),
)
def test_every_page_comes_once_or_the_file_is_refused(
    pages: int, broken: set[int], streaming: bool, skipped: frozenset[int]
) -> None:
    reader = Reader(pages, broken, streaming, skipped)
    seen: list[Page] = []
    refused = True
    with contextlib.suppress(ReadError):
        for page in recover(reader):
            seen.append(page)
        refused = False
    assert [page.number for page in seen] == list(range(1, len(seen) + 1))
    texts = {page.number for page in seen if isinstance(page, PageText)}
    assert texts.isdisjoint(broken | skipped)
    assert reader.open == 0
    assert reader.attempts <= MAX_RECOVERIES + 2
    if refused:
        assert not texts
        assert broken or len(skipped) >= pages
    elif not streaming:
        last_given = pages if len(broken & set(range(pages + 1))) > MAX_RECOVERIES else max(texts, default=0)
        assert len(seen) >= last_given
        assert len(seen) <= pages + 1
        if len({n for n in broken if n <= pages}) <= MAX_RECOVERIES and not skipped:
            assert texts == set(range(1, pages + 1)) - broken
            assert all(page.reason == f"broke at {page.number}" for page in seen if isinstance(page, PageFailure))
    else:  # the end is not known beforehand, so it must be told apart from a reader that gave up
        unread = set(range(1, pages + 1)) - {page.number for page in seen} - skipped
        assert not unread or "nothing after" in getattr(seen[-1], "reason", "")


def test_a_first_page_that_breaks_costs_one_page() -> None:
    pages = list(recover(Reader(3, {1})))
    assert pages == [PageFailure(1, 3, "broke at 1"), PageText(2, 3, "page 2"), PageText(3, 3, "page 3")]


def test_a_file_whose_opening_breaks_is_refused_with_the_first_reason() -> None:
    reader = Reader(9, {1, 2})
    with pytest.raises(ReadError, match="broke at 1"):
        list(recover(reader))
    assert reader.attempts == 2


def test_a_single_page_that_breaks_is_a_file_that_cannot_be_read() -> None:
    with pytest.raises(ReadError, match="broke at 1"):
        list(recover(Reader(1, {1})))


def test_a_file_without_pages_is_refused() -> None:
    with pytest.raises(ReadError, match="nothing to read"):
        list(recover(Reader(0, set())))


def test_reading_on_after_the_last_page_is_no_error() -> None:
    assert list(recover(Reader(3, set()), first_page=4)) == []


def test_after_the_last_recovery_the_rest_is_named() -> None:
    pages = list(recover(Reader(9, {2, 4, 5, 7})))
    reasons = {page.number: page.reason for page in pages if isinstance(page, PageFailure)}
    assert reasons == {
        2: "broke at 2",
        4: "broke at 4",
        5: "broke at 5",
        7: "broke at 7",
        8: "broke at 7",
        9: "broke at 7",
    }


def test_no_time_left_means_no_other_try() -> None:
    def attempt(first_page: int) -> Generator[Page, None, None]:
        yield PageText(1, 3, "one")
        raise Broken("reading the file took longer than 9 s", final=True)

    assert [page.number for page in recover(attempt)] == [1, 2, 3]


def test_a_reader_that_gives_up_midway_ends_the_file() -> None:
    def attempt(first_page: int) -> Generator[Page, None, None]:
        yield PageText(1, 3, "one")
        raise ReadError("the rest is encrypted")

    assert list(recover(attempt))[1:] == [
        PageFailure(2, 3, "the rest is encrypted"),
        PageFailure(3, 3, "the rest is encrypted"),
    ]


def test_pages_that_are_announced_and_never_come_are_failures() -> None:
    def attempt(first_page: int) -> Generator[Page, None, None]:
        yield PageText(1, 3, "one")

    assert [type(page) for page in recover(attempt)] == [PageText, PageFailure, PageFailure]


def test_a_reader_that_ignores_the_first_page_gives_no_page_twice() -> None:
    def attempt(first_page: int) -> Generator[Page, None, None]:
        for number in range(1, 6):
            if number == 3 and first_page == 1:
                raise Broken("broke")
            yield PageText(number, 5, "text")

    assert [page.number for page in recover(attempt)] == [1, 2, 3, 4, 5]


def test_a_total_that_no_document_has_does_not_fill_the_catalog() -> None:
    def attempt(first_page: int) -> Generator[Page, None, None]:
        yield PageText(1, 10**12, "one")

    pages = list(recover(attempt))
    assert len(pages) == 1 + recovery.MAX_FAILURES
    assert f"to page {10**12}" in pages[-1].reason  # type: ignore[union-attr]


def test_a_page_number_that_no_document_has_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "MAX_PAGES", 50)

    def attempt(first_page: int) -> Generator[Page, None, None]:
        yield PageText(1, 1, "one")
        yield PageText(10**12, 10**12, "far away")

    pages = list(recover(attempt))
    assert [page.number for page in pages] == list(range(1, 51))
    assert "split it" in pages[-1].reason  # type: ignore[union-attr]


def test_closing_early_closes_the_attempt() -> None:
    reader = Reader(9, set())
    pages = recover(reader)
    next(pages)
    assert reader.open == 1
    pages.close()
    assert reader.open == 0
