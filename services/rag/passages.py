"""A passage: what a search finds, the model reads and a citation quotes. Pure.

Small chunks are searched; the passage around them is what is read (:func:`joined`).
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from services.rag.documents.chunking import estimate_tokens, sentences
from services.rag.terms import fold

# Estimated tokens that a passage grows to.
PASSAGE_TOKENS = 400

# Stand for a sentence's start and for the bounds of what was found, in a text that is folded; neither is a character.
_SENTENCE, _FOUND = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"[{_SENTENCE}{_FOUND}]")
_APART = re.compile(r"[\W_]+")
_SPACE = re.compile(r"\s+")
_TELLING = frozenset(f"#%&@{_SENTENCE}{_FOUND}")
# The greater part of all runs: signs between letters that say nothing there. Only to be quick.
_BETWEEN_LETTERS = re.compile("(?<=[a-z一-鿿])[\\s,.;:!?'\"()—_、。《》「」“”‘’-]++(?=[a-z一-鿿])")


@dataclass(frozen=True)
class Place:
    """Where the same text stands too."""

    document_id: str
    filename: str
    page: int  # 1-based


@dataclass(frozen=True)
class Passage:
    """``text`` is the page's text from ``start`` (offsets in code points)."""

    document_id: str
    filename: str
    page: int  # 1-based
    start: int
    text: str
    score: float  # probability, 0 to 1, that it bears on the question
    label: str = ""  # what a person calls the page, where it is not a printed one
    sequence: int = 0  # of documents the order of acceptance: the highest is the newest
    also: tuple[Place, ...] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.text)


# Of the hits with these numbers, a slice of the page around each: its start and its text.
Around = Callable[[Sequence[int]], Sequence[tuple[int, str]]]


def joined(hits: Sequence[Passage], k: int, around: Around, *, tokens: int = PASSAGE_TOKENS) -> list[Passage]:
    """The first ``k`` passages of a ranking of chunks, in its order; fewer only where the hits give out.

    A passage is an exact slice of its page: hits that overlap or adjoin, then whole sentences on both sides, up to
    ``tokens`` estimated tokens. No two overlap. The score is the best of the hits'. Of passages that say the same
    one is kept, the newest; the others are named in its ``also``.

    Two say the same when what was found in the one stands in the other, and both go on alike for as far as both go,
    which is to a sentence's end. White space, punctuation, width, case and traditional characters may differ. A digit,
    a sign beside one, a name or a "not" may not: two editions that contradict each other are both read.
    """
    taken: list[Passage] = []
    windows: list[tuple[int, str]] = []
    known: dict[_Grown, _Grown] = {}  # with the words that were needed of it
    while True:
        following = range(len(taken), min(max(k, 2 * len(taken)), len(hits)))
        if following:
            taken += hits[following.start : following.stop]
            windows += around(following)
        found = _without_repeats(known.setdefault(grown, grown) for grown in _grown(taken, windows, tokens))
        if len(found) >= k or len(taken) == len(hits):
            return found[:k]


def stable_order(found: Iterable[Passage]) -> list[Passage]:
    """Passages by document, oldest first, and place, overlapping ones joined: the same set always makes the same prompt."""
    out: list[Passage] = []
    for passage in sorted(found, key=lambda p: (p.sequence, p.document_id, p.page, p.start)):
        last = out[-1] if out else None
        if (
            last is None
            or (last.document_id, last.page) != (passage.document_id, passage.page)
            or passage.start > last.end
        ):
            out.append(passage)
        else:
            text = last.text + passage.text[max(last.end - passage.start, 0) :]
            also = _places(last, passage)
            out[-1] = replace(last, text=text, score=max(last.score, passage.score), also=also)
    return out


# -- growing -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Span:
    """A passage as it grows: a part of a slice, and the part of that which was found."""

    rank: int
    start: int
    end: int
    found_start: int
    found_end: int


@dataclass(frozen=True)
class _Words:
    """A passage's words as they are compared; ``found`` is what was found, ``starts`` are the sentences' and the end."""

    text: str
    found: tuple[int, int]
    starts: frozenset[int]


@dataclass(frozen=True)
class _Grown:
    """A passage, and where in its text was found what, and where a sentence starts."""

    passage: Passage
    found: tuple[int, int]
    starts: tuple[int, ...]

    @cached_property
    def words(self) -> _Words:
        text = _MARKS.sub(" ", self.passage.text)
        marks = sorted([*((at, _SENTENCE) for at in self.starts), *((at, _FOUND) for at in self.found)])
        marked, last = "", 0
        for at, mark in marks:
            marked += text[last:at] + mark
            last = at
        return _words(_compared(marked + text[last:]))


def _grown(hits: Sequence[Passage], windows: Sequence[tuple[int, str]], tokens: int) -> Iterator[_Grown]:
    """By the rank of the best hit in each."""
    pages: dict[tuple[str, int], list[int]] = {}
    for rank, hit in enumerate(hits):
        pages.setdefault((hit.document_id, hit.page), []).append(rank)
    out: list[tuple[int, int, _Grown]] = []
    for ranks in pages.values():
        for start, text in _united([*((hits[r].start, hits[r].text) for r in ranks), *(windows[r] for r in ranks)]):
            within = [(r, hits[r].start - start, hits[r].end - start) for r in ranks]
            within = [(r, first, last) for r, first, last in within if first >= 0 and last <= len(text)]
            slice_ = _Slice(text, tokens)
            for span in slice_.spans(within):
                own = [hits[r] for r, first, last in within if first < span.found_end and last > span.found_start]
                passage = replace(
                    hits[span.rank],
                    start=start + span.start,
                    text=text[span.start : span.end],
                    score=max(hit.score for hit in own),
                    also=tuple(dict.fromkeys(place for hit in own for place in hit.also)),
                )
                found = span.found_start - span.start, span.found_end - span.start
                starts = tuple(s - span.start for s in slice_.sentence_starts if span.start <= s < span.end)
                out.append((span.rank, span.start, _Grown(passage, found, starts)))
    return (grown for _, _, grown in sorted(out, key=lambda item: item[:2]))


def _united(slices: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Slices of one page, those that overlap or touch made one."""
    out: list[tuple[int, str]] = []
    for start, text in sorted(slices):
        if out and start <= (end := out[-1][0] + len(out[-1][1])):
            out[-1] = (out[-1][0], out[-1][1] + text[end - start :])
        else:
            out.append((start, text))
    return out


class _Slice:
    """A slice of a page, in which passages grow."""

    def __init__(self, text: str, tokens: int) -> None:
        self._text = text
        self._tokens = tokens
        self._spans: list[_Span] = []
        found = list(sentences(text))
        self.sentence_starts = [s.start for s in found]
        self._sentence_ends = [s.end for s in found]

    def spans(self, hits: Iterable[tuple[int, int, int]]) -> list[_Span]:
        """Of hits (rank, start, end), best first."""
        for rank, start, end in hits:
            for first, last in self._uncovered(start, end):
                self._add(_Span(rank, first, last, first, last))
        for span in list(self._spans):
            if span in self._spans:  # else it was met by one before it
                self._grow(span)
        return self._spans

    def _uncovered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of start … end no span has, without the white space around it."""
        for span in sorted(self._spans, key=lambda s: s.start):
            if start < span.end and span.start < end:
                yield from self._stripped(start, span.start)
                start = span.end
        yield from self._stripped(start, end)

    def _stripped(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        text = self._text[start:end] if start < end else ""
        if stripped := text.strip():
            first = start + len(text) - len(text.lstrip())
            yield first, first + len(stripped)

    def _add(self, new: _Span) -> None:
        for span in self._spans:
            if self._adjoin(span, new) and self._fits(min(span.start, new.start), max(span.end, new.end)):
                self._unite(span, new)
                return self._meet(span)
        self._spans.append(new)

    def _grow(self, span: _Span) -> None:
        """Sentence by sentence, the one that follows first; a sentence is taken whole or not at all."""
        sides = [True, False]
        while sides:
            forward = sides.pop(0)
            if self._step(span, forward):
                sides.append(forward)
                self._meet(span)

    def _step(self, span: _Span, forward: bool) -> bool:
        others = [s for s in self._spans if s is not span]
        if forward:
            limit = min((s.start for s in others if s.start >= span.end), default=len(self._text))
            at = bisect_right(self._sentence_ends, span.end)
            end = self._sentence_ends[at] if at < len(self._sentence_ends) else span.end
            if span.end < end <= limit and self._fits(span.start, end):
                span.end = end
                return True
        else:
            limit = max((s.end for s in others if s.end <= span.start), default=0)
            at = bisect_left(self.sentence_starts, span.start)
            start = self.sentence_starts[at - 1] if at else span.start
            if limit <= start < span.start and self._fits(start, span.end):
                span.start = start
                return True
        return False

    def _meet(self, span: _Span) -> None:
        """Unite it with those that it has come to adjoin, where that is not too long."""
        for other in [s for s in self._spans if s is not span]:
            if self._adjoin(span, other) and self._fits(min(span.start, other.start), max(span.end, other.end)):
                self._spans.remove(other)
                self._unite(span, other)
                return self._meet(span)

    def _adjoin(self, one: _Span, other: _Span) -> bool:
        first, second = sorted((one, other), key=lambda s: s.start)
        return not self._text[first.end : second.start].strip()

    def _fits(self, start: int, end: int) -> bool:
        return estimate_tokens(self._text[start:end]) <= self._tokens

    @staticmethod
    def _unite(span: _Span, other: _Span) -> None:
        span.rank = min(span.rank, other.rank)
        span.start, span.end = min(span.start, other.start), max(span.end, other.end)
        span.found_start = min(span.found_start, other.found_start)
        span.found_end = max(span.found_end, other.found_end)


# -- repeats -----------------------------------------------------------------------------------------------------------


def _without_repeats(found: Iterable[_Grown]) -> list[Passage]:
    kept: list[_Grown] = []
    for grown in found:
        for at, other in enumerate(kept):
            if _repeats(grown.words, other.words):
                newer = grown.passage.sequence > other.passage.sequence and _repeats(other.words, grown.words)
                shown, hidden = (grown, other) if newer else (other, grown)
                also = _places(shown.passage, hidden.passage)
                score = max(shown.passage.score, hidden.passage.score)
                kept[at] = replace(shown, passage=replace(shown.passage, also=also, score=score))
                break
        else:
            kept.append(grown)
    return [grown.passage for grown in kept]


def _repeats(one: _Words, other: _Words) -> bool:
    """Whether what was found in ``one`` stands in ``other``, and both go on alike for as far as both go."""
    found = one.text[slice(*one.found)]
    at = other.text.find(found) if found else -1
    while at >= 0:
        shift = at - one.found[0]  # of a place in one to its place in other
        first, last = max(0, -shift), min(len(one.text), len(other.text) - shift)
        if (
            one.text[first:last] == other.text[first + shift : last + shift]
            # Where one gives out, the other ends a sentence: "5" is not what "50" says, nor "allowed" "not allowed".
            and {first, last} <= one.starts
            and {first + shift, last + shift} <= other.starts
        ):
            return True
        at = other.text.find(found, at + 1)
    return False


def _places(shown: Passage, hidden: Passage) -> tuple[Place, ...]:
    """``also`` of a passage that stands for both, each place once and none that is its own."""
    place = Place(hidden.document_id, hidden.filename, hidden.page)
    own = Place(shown.document_id, shown.filename, shown.page)
    return tuple(p for p in dict.fromkeys((*shown.also, place, *hidden.also)) if p != own)


def _compared(text: str) -> str:
    return _APART.sub(_sign, _BETWEEN_LETTERS.sub("", fold(text)))


def _sign(match: re.Match[str]) -> str:
    """What of a run of signs has a say in what is said: all beside a digit (1.5 is not 15, nor -5 5), else + < $ % and such.

    White space has one between two digits (1 5, 1. 5), and marks stay.
    """
    run, (start, end) = match.group(), match.span()
    digits = match.string[start - 1 : start].isdigit(), match.string[end : end + 1].isdigit()
    if all(digits):
        return _SPACE.sub(" ", run)
    if any(digits):
        return _SPACE.sub("", run)
    return "".join(c for c in run if c in _TELLING or (c != "|" and unicodedata.category(c) in ("Sm", "Sc")))


def _words(marked: str) -> _Words:
    """The words without their marks, and where those were."""
    places: dict[str, list[int]] = {_SENTENCE: [], _FOUND: []}
    pieces = _MARKS.split(marked)
    length = 0
    for piece, mark in zip(pieces, _MARKS.findall(marked), strict=False):
        length += len(piece)
        places[mark].append(length)
    text = "".join(pieces)
    first, last = places[_FOUND]
    return _Words(text, (first, last), frozenset((0, *places[_SENTENCE], len(text))))
