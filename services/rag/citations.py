"""Citations, made and checked by code. Pure text.

A sentence of the answer is matched against the sentences of the passages. What bears it out holds most of its words, every
number in it with its unit, and something beyond the question's own words; the quote is the shortest such span, an exact
slice of its page. A sentence that claims something and that nothing bears out is said to be unsupported, with the reason.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from services.rag.answer_text import Sentence
from services.rag.binding import of_another
from services.rag.claims import after_refusal, claimed_words, claims, without_lead
from services.rag.denials import (
    CLAUSES,
    NOT_WORDS,
    Denied,
    Reply,
    denied,
    denied_elsewhere,
    denies,
    negated,
    reply,
    says_not,
    words,
)
from services.rag.documents.chunking import sentences
from services.rag.documents.reflow import CJK, folded_letters
from services.rag.opposites import opposed
from services.rag.orders import is_evidence
from services.rag.passages import Passage
from services.rag.prompts import neutral
from services.rag.quantities import Quantity, held, held_ones, missing, quantities, without
from services.rag.terms import indexed, is_cjk

# Shares of a sentence's weight that a quote must hold: of all its words, and of those that the question did not bring in,
# since an answer repeats the question's words whether it is right or not.
SUPPORT = 0.55
NOVEL_SUPPORT = 0.5
# Where the question brought in all the words, nothing but nearly all of them will do.
ECHO_SUPPORT = 0.8
# What a number weighs; a word weighs about 1 to 4, by how few of the passages' sentences have it.
NUMBER_WEIGHT = 3.0
# A sentence of so many clauses at most may have a quote for each.
MOST_CLAUSES = 4
# A second sentence is quoted only where it adds so much.
SECOND_SENTENCE = 0.12
# The passage that the model named is taken when it is so much worse than the best at most.
HINT_BONUS = 0.15
# A sentence in another language than the passages is borne out by the place that is nearer to it in meaning than every other by
# so much (decision 4 has what that finds).
CLEARLY_NEARER = 1.5
# A quote is cut at commas beyond this many characters.
LONG_QUOTE = 160
# Bounds of what is compared with what: beyond them is no sentence that anyone reads.
LONGEST_SENTENCE = 2_000
MOST_NUMBERS = 20
MOST_CUTS = 64

# How near in meaning each of some spans is to a text in another script: standard deviations above ordinary ones; empty where
# that cannot be told.
Nearness = Callable[[str, Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Support:
    passage: Passage
    start: int  # offset of the quote in the page, in code points
    quote: str
    score: float  # share of the sentence's weight that the quote holds, 0 to 1


@dataclass(frozen=True)
class Unsupported:
    reason: Literal["no_source", "number"]
    numbers: tuple[str, ...] = ()  # those of the sentence that no source has, as they are written


@dataclass(frozen=True)
class _Place:
    """A sentence or a table row of a passage, with what is matched."""

    passage: int
    start: int
    end: int
    terms: frozenset[str]
    numbers: dict[str, set[str]]
    ones: frozenset[str]
    negated: bool
    denied: tuple[Denied, ...]
    wide: bool  # CJK text
    row: bool  # of a table
    text: str

    @cached_property
    def folded(self) -> str:
        """In which a word of CJK text can be found however its neighbours are cut."""
        return indexed(self.text)


@dataclass(frozen=True)
class _Claim:
    text: str
    weights: dict[str, float]
    total: float
    novel: frozenset[str]
    novel_total: float
    numbers: tuple[Quantity, ...]  # those that are claimed
    says_not: bool
    negated: bool  # the claim itself, or the question that it answers
    wide: bool
    hints: tuple[int, ...]
    replied: bool = False  # the claim is the question's, the answer a yes or no


class Evidence:
    """The passages of one answer. Their sentences are taken apart once, when the first sentence of the answer is there."""

    def __init__(self, passages: Sequence[Passage], question: str = "", nearness: Nearness | None = None) -> None:
        self._passages = passages
        self._question = question
        self._nearness = nearness

    def support(self, sentence: Sentence) -> list[Support] | Unsupported | None:
        """The spans that bear ``sentence`` out, or why none does; None where it claims nothing."""
        if len(sentence.text) > LONGEST_SENTENCE:
            return Unsupported("no_source")
        sentence = replace(sentence, text=after_refusal(sentence.text))
        if sentence.kind == "prose" and (replied := reply(self._question, sentence.text)):
            return self._replied(replied, sentence.hints)
        if not claims(sentence, self._names):
            return None
        claim = self._claim(sentence.text, sentence.hints)
        if not claim.total:
            return None
        if quoted := self._quoted(sentence.text):
            return quoted
        best = self._best(claim)
        if best is not None:
            return [best]
        if together := self._joint(claim):
            return together
        if abroad := self._abroad(claim):
            return [abroad]
        return self._unsupported(claim)

    # -- what is matched ---------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(t for p in self._passages for name in (p.filename, p.label) for t in words(name))

    @cached_property
    def _name_numbers(self) -> dict[str, set[str]]:
        return held(q for p in self._passages for q in quantities(p.filename))

    @cached_property
    def _asked(self) -> frozenset[str]:
        return words(self._question)

    @cached_property
    def _places(self) -> list[_Place]:
        out: list[_Place] = []
        for index, passage in enumerate(self._passages):
            head: frozenset[str] = frozenset()
            in_table = False
            for span in sentences(passage.text):
                text = passage.text[span.start : span.end]
                row = text.startswith("|")
                if (row and not any(c.isalnum() for c in text)) or not is_evidence(neutral(text), self._question):
                    continue
                terms = words(text)
                if row and not in_table:
                    head = terms
                in_table = row
                out.append(
                    _Place(
                        index,
                        span.start,
                        span.end,
                        terms | head if row else terms,
                        held(quantities(text)),
                        frozenset(held_ones(text)),
                        negated(text),
                        tuple(denied(text)),
                        _is_wide(text),
                        row,
                        text,
                    )
                )
        return out

    @cached_property
    def _frequency(self) -> Counter[str]:
        return Counter(term for place in self._places for term in place.terms)

    def _weight(self, term: str) -> float:
        """A word that stands everywhere tells little; a single character of a word is part of it, too."""
        weight = 1 + math.log((len(self._places) + 1) / (self._frequency[term] + 1))
        if len(term) == 1 and not term.isascii():
            weight *= 0.5
        return weight * (0.5 if term in self._asked else 1.0)

    def _claim(self, text: str, hints: tuple[int, ...] = ()) -> _Claim:
        text = without_lead(text)
        plain = without(text)
        wanted = claimed_words(plain) or words(plain)
        wanted = wanted - NOT_WORDS or wanted
        weights = {term: self._weight(term) for term in wanted}
        novel = wanted - self._asked
        # A number is a word of weight: the same value in other characters is the same word.
        numbers = tuple(q for q in quantities(text) if q.claimed)
        figures = NUMBER_WEIGHT * len(numbers)
        return _Claim(
            text,
            weights,
            sum(weights.values()) + figures,
            novel,
            sum(weights[t] for t in novel) + figures,
            numbers,
            says_not(text),
            negated(text) or negated(self._question),
            _is_wide(text),
            hints,
        )

    # -- finding it --------------------------------------------------------------------------------------------

    def _best(self, claim: _Claim) -> Support | None:
        best: tuple[tuple[float, int], list[_Place], float] | None = None
        for places in self._candidates():
            terms = _held(claim, places)
            score = self._score(claim, terms)
            if score is None or _contradicts(claim, places) or self._missing(claim, places):
                continue
            rank = (self._rank(claim, places, terms, score), -(places[-1].end - places[0].start))
            if (best is None or rank > best[0]) and not self._elsewhere(claim, places):
                best = rank, places, score
        return self._cut(claim, best[1], best[2]) if best else None

    def _elsewhere(self, claim: _Claim, places: list[_Place]) -> bool:
        """Whether the quote has the claim's number, or its "not", but says it of something else."""
        text = self._text(places)
        units = words(" ".join(q.unit for q in claim.numbers))
        said = claim.weights.keys() - units
        if said and folded_letters(claim.text)[0] in folded_letters(text)[0]:
            return False
        mine = frozenset().union(*(p.terms for p in places)) & said
        passage = self._by_passage[places[0].passage]
        if any(mine < p.terms & said and p not in places and _contradicts(claim, [p]) for p in passage):
            return True
        if not 1 <= len(claim.numbers) <= MOST_NUMBERS:
            return False
        # "90 seconds." is said of what was asked.
        return of_another(claim.numbers, said or self._asked - units, text, places, passage, listed=not said)

    @cached_property
    def _by_passage(self) -> dict[int, list[_Place]]:
        return {index: list(of) for index, of in itertools.groupby(self._places, key=lambda p: p.passage)}

    def _text(self, places: Sequence[_Place]) -> str:
        return self._passages[places[0].passage].text[places[0].start : places[-1].end]

    def _candidates(self) -> Iterator[list[_Place]]:
        for place, following in itertools.zip_longest(self._places, self._places[1:]):
            yield [place]
            if following is not None and following.passage == place.passage:
                yield [place, following]

    def _score(self, claim: _Claim, terms: frozenset[str]) -> float | None:
        """The share of the claim that ``terms`` and its numbers hold, or None where that is too little."""
        figures = NUMBER_WEIGHT * len(claim.numbers)
        score = (sum(weight for term, weight in claim.weights.items() if term in terms) + figures) / claim.total
        if not claim.novel_total:
            return score if score >= ECHO_SUPPORT else None
        novel = (sum(claim.weights[term] for term in claim.novel if term in terms) + figures) / claim.novel_total
        return score if score >= SUPPORT and novel >= NOVEL_SUPPORT else None

    def _rank(self, claim: _Claim, places: list[_Place], terms: frozenset[str], score: float) -> float:
        passage = self._passages[places[0].passage]
        # An answer of one word stands in many places; the one that speaks of the question is meant.
        asked = len(self._asked & terms) / len(self._asked) if self._asked else 0.0
        rank = score + 0.3 * asked + 0.05 * passage.score - SECOND_SENTENCE * (len(places) - 1)
        return round(rank + (HINT_BONUS if places[0].passage + 1 in claim.hints else 0.0), 3)

    def _missing(self, claim: _Claim, places: Sequence[_Place]) -> list[Quantity]:
        given: dict[str, set[str]] = {}
        for source in (*(p.numbers for p in places), self._name_numbers):
            for value, units in source.items():
                given.setdefault(value, set()).update(units)
        if ones := set().union(*(p.ones for p in places)):
            given.setdefault("1", set()).update(ones)
        return missing(claim.numbers, given)

    def _replied(self, replied: Reply, hints: tuple[int, ...]) -> list[Support] | Unsupported | None:
        """A bare yes or no: what the question says, or its denial, must stand in the passages."""
        claim = replace(
            self._claim(replied.statement, hints),
            novel=frozenset(),
            novel_total=0.0,
            says_not=replied.negative,
            negated=replied.negative,
            replied=True,
        )
        if (found := self._best(claim)) is not None:
            return [found]
        other = replace(claim, says_not=not replied.negative, negated=not replied.negative)
        # A "yes" before its sentence claims no more than that does, unless the passages say "no".
        return None if replied.hollow and self._best(other) is None else Unsupported("no_source")

    def _joint(self, claim: _Claim) -> list[Support]:
        """A quote for each clause of the sentence: "A is 2, while B is 3". All clauses, or none."""
        clauses: list[_Claim] = []
        begun = ""
        for part in CLAUSES.split(claim.text):
            # "In 1996," is true of many things: it belongs to what follows.
            begun = f"{begun}, {part}" if begun else part
            clause = self._claim(begun, claim.hints)
            units = words(" ".join(q.unit for q in clause.numbers))
            if sum(len(term) > 1 for term in clause.weights.keys() - units) >= 2:
                clauses.append(clause)
                begun = ""
        if words(begun) or not 2 <= len(clauses) <= MOST_CLAUSES:
            return []
        found = [self._best(clause) for clause in clauses]
        quotes = list(dict.fromkeys(f for f in found if f is not None))
        return quotes if None not in found and len(quotes) > 1 else []

    def _quoted(self, text: str) -> list[Support]:
        """Where the sentence quotes: the places of its quotations, if all of them stand in the passages."""
        out: list[Support] = []
        for match in _QUOTATION.finditer(text):
            wanted = next(filter(None, match.groups()))
            if len(folded_letters(wanted)[0]) < 8:
                return []
            found = next(filter(None, (self._verbatim(wanted, p) for p in self._passages)), None)
            if found is None:
                return []
            out.append(found)
        rest = [q for q in quantities(_QUOTATION.sub(" ", text)) if q.claimed]
        return out if out and not missing(rest, self._name_numbers) else []

    def _verbatim(self, wanted: str, passage: Passage) -> Support | None:
        letters, places = folded_letters(passage.text)
        needle = folded_letters(wanted)[0]
        at = letters.find(needle)
        if at < 0:
            return None
        start, end = places[at], places[at + len(needle) - 1] + 1
        return Support(passage, passage.start + start, passage.text[start:end], 1.0)

    def _abroad(self, claim: _Claim) -> Support | None:
        """A place in another script: a name and a number that both share tell, or meaning where that can be asked."""
        places = [p for p in self._places if p.wide != claim.wide]
        possible = [p for p in places if not self._missing(claim, [p]) and not _contradicts(claim, [p])]
        if not possible:
            return None
        names = {t for t in claim.weights if t.isascii() and (not claim.wide or len(t) > 1) and not t.isdigit()}
        stated = sum(1 for q in claim.numbers if len(q.value) > 1 or q.unit)

        def shared(place: _Place) -> int:
            new = claim.numbers or names & place.terms & claim.novel
            return stated + len(names & place.terms) if new else 0

        place = max(possible, key=shared)
        if shared(place) >= 2:
            return self._cut(claim, [place], min(1.0, shared(place) / 4))
        nearest = self._nearest(claim, places)
        return self._cut(claim, [nearest], 1.0) if nearest in possible else None

    def _nearest(self, claim: _Claim, places: Sequence[_Place]) -> _Place | None:
        """The place that is clearly nearer in meaning than every other; two editions may say it in the same words."""
        near = list(self._nearness(claim.text, [p.text for p in places])) if self._nearness is not None else []
        if not near:
            return None
        best = max(range(len(near)), key=near.__getitem__)
        same = folded_letters(places[best].text)[0]
        rest = [n for n, p in zip(near, places, strict=True) if folded_letters(p.text)[0] != same]
        return places[best] if near[best] - max(rest, default=0.0) >= CLEARLY_NEARER else None

    def _unsupported(self, claim: _Claim) -> Unsupported:
        nearest: list[Quantity] | None = None
        for places in self._candidates():
            if self._score(claim, _held(claim, places)) is None:
                continue
            # Where none is missing, they are there, but said of something else.
            lacks = self._missing(claim, places) or ([] if _contradicts(claim, places) else list(claim.numbers))
            if lacks and (nearest is None or len(lacks) < len(nearest)):
                nearest = lacks
        if nearest is not None:
            return Unsupported("number", _written(nearest))
        return Unsupported("no_source", _written(self._missing(claim, self._places)))

    def _cut(self, claim: _Claim, places: list[_Place], score: float) -> Support:
        """The quote: whole sentences, but of a very long one only the clauses that carry the claim."""
        passage = self._passages[places[0].passage]
        start, end = places[0].start, places[-1].end
        if end - start > LONG_QUOTE:
            start, end = self._clauses(claim, passage.text, start, end)
        return Support(passage, passage.start + start, passage.text[start:end], score)

    def _clauses(self, claim: _Claim, text: str, start: int, end: int) -> tuple[int, int]:
        """The shortest run of clauses that holds what the whole holds."""
        cuts = [start, *(m.end() for m in _CLAUSE.finditer(text, start, end) if m.end() < end), end]
        if len(cuts) > MOST_CUTS:
            cuts = [*cuts[: -1 : len(cuts) // MOST_CUTS + 1], end]
        held_terms = [words(text[a:b]) & claim.weights.keys() for a, b in itertools.pairwise(cuts)]
        held_numbers = [held(quantities(text[a:b])) for a, b in itertools.pairwise(cuts)]
        whole = frozenset().union(*held_terms)
        all_numbers = held(quantities(text[start:end]))
        needed = [q for q in claim.numbers if not missing([q], all_numbers)]
        best = (end - start, start, end)
        for first in range(len(held_terms)):
            terms: set[str] = set()
            numbers: dict[str, set[str]] = {}
            for last in range(first, len(held_terms)):
                terms |= held_terms[last]
                for value, units in held_numbers[last].items():
                    numbers.setdefault(value, set()).update(units)
                if terms >= whole and not missing(needed, numbers):
                    best = min(best, (cuts[last + 1] - cuts[first], cuts[first], cuts[last + 1]))
                    break
        _, start, end = best
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        return start, end


_QUOTATION = re.compile(r"“([^“”]{4,})”|「([^「」]{4,})」|\"([^\"]{4,})\"")
_CLAUSE = re.compile(r"[，,；;：:、]\s*|\s+(?=\|)|\n+")
_WIDE = re.compile(f"[{CJK}]")
_LATIN = re.compile(r"[A-Za-z]+")


def _held(claim: _Claim, places: Sequence[_Place]) -> frozenset[str]:
    """The words of ``places``, and those of the claim that are cut otherwise there: in 国民党 | 人龙 | 云 stands 龙云."""
    terms = frozenset().union(*(p.terms for p in places))
    uncut = [t for t in claim.weights.keys() - terms if len(t) > 1 and is_cjk(t)]
    return terms.union(t for t in uncut if any(t in p.folded for p in places))


def _contradicts(claim: _Claim, places: Sequence[_Place]) -> bool:
    """A sentence that denies something is not borne out by one that denies nothing, nor the other way round."""
    said = frozenset(claim.weights) if claim.replied else words(claim.text)
    if claim.replied and places[0].text.endswith(("?", "？")):
        # A question states nothing; the sentence after it may answer.
        return len(places) == 1 or says_not(places[1].text) != claim.says_not
    if not claim.negated and opposed(claim.text, " ".join(p.text for p in places)):
        return True
    denying = any(denies(p.denied, claim.text, said, claim.replied) for p in places)
    if claim.says_not:
        there = denying if claim.replied else any(p.negated for p in places)
        return not there or denied_elsewhere([p.text for p in places], claim.weights)
    return denying and not claim.negated


def _is_wide(text: str) -> bool:
    """Whether it is CJK text, names in Latin letters notwithstanding."""
    return len(_WIDE.findall(text)) > len(_LATIN.findall(text))


def _written(found: Sequence[Quantity]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(q.text for q in found))
