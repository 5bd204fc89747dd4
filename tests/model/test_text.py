from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.model.text import MarkerSearch


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = MarkerSearch(stops)
    out = "".join(matcher.feed(piece) for piece in pieces)
    return out + matcher.flush(), matcher.matched


def reference(text: str, stops: list[str]) -> str:
    """What the docstring promises, the slow way: the first stop string to be complete cuts."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


letters = st.text("ab停", max_size=24)
stop_lists = st.lists(st.text("ab停", min_size=1, max_size=5), max_size=4)


@given(letters, stop_lists, st.lists(st.integers(0, 24), max_size=8))
def test_every_split_of_the_text_gives_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(places)]
    assert run(pieces, stops)[0] == reference(text, stops)
    assert run(list(text), stops) == run([text], stops)


@given(letters, stop_lists)
def test_nothing_is_held_back_that_cannot_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = MarkerSearch(stops)
    out = matcher.feed(text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected", "matched"),
    [
        (["Hello ", "wor", "ld"], ["worl"], "Hello ", "worl"),
        (["a", "b", "c"], ["abc"], "", "abc"),
        (["ab"], ["abc"], "ab", None),
        (["xabab"], ["abab", "b"], "xa", "b"),
        (["ENDING"], ["END"], "", "END"),
        (["aaab"], ["aab"], "a", "aab"),
        (["x\n", "\ny"], ["\n\n"], "x", "\n\n"),
        (["anything"], [], "anything", None),
    ],
)
def test_examples(pieces: list[str], stops: list[str], expected: str, matched: str | None) -> None:
    assert run(pieces, stops) == (expected, matched)


def test_text_after_a_match_is_dropped() -> None:
    matcher = MarkerSearch(["x"])
    assert matcher.feed("axb") == "a"
    assert matcher.feed("more") == ""
    assert matcher.flush() == ""
