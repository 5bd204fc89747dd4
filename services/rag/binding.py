"""Whether a number that a source has is said of what the claim says it of. Pure text.

"The soft limit is 90 s. The hard limit is 2 h." has all of "the hard limit is 90 s". A number is said of something else where
what stands beside it has less of the claim than what stands beside another number of its kind.
"""

import re
from collections.abc import Iterable, Sequence, Set
from typing import Protocol

from services.rag.denials import CLAUSES, words
from services.rag.quantities import Quantity, held, is_year, measures, missing, quantities, without
from services.rag.terms import content_terms

# "March 5, 1990" is one date.
_CUTS = re.compile(
    rf"(?!,\s(?:in\s)?\d{{4}}\b)(?:{CLAUSES.pattern})|(?<=[。！？!?])\s*(?=\S)|(?<=\.)\s+|\n+", re.IGNORECASE
)
# Measures of one thing: a limit may be 90 seconds or 2 hours.
_FAMILIES = (
    "century year month week day hour minute second millisecond microsecond",
    "byte kilobyte megabyte gigabyte terabyte bit",
    "yuan dollar euro",
    "metre kilometre centimetre millimetre mile foot",
    "gram kilogram ton",
)
_FAMILY = {name: family.split()[0] for family in _FAMILIES for name in family.split()}
# What is said of it is said of what another sentence names.
_PRONOUN = re.compile(r"[他她它其该該此这這]|\b(?:he|she|it|they|his|her|its|their|this|these)\b", re.IGNORECASE)

# "In 1990" opens what follows; other numbers without words end what stands before.
_OPENS = re.compile(r"\W*(?:in|on|at|by|since|from|after|before|until)\b|\W*[于於自在从從至到]", re.IGNORECASE)

# Longer ones are not the items of a list.
_LONGEST_ITEM = 12


class Place(Protocol):
    """A sentence, or a row of a table."""

    @property
    def text(self) -> str: ...
    @property
    def terms(self) -> frozenset[str]: ...
    @property
    def numbers(self) -> dict[str, set[str]]: ...
    @property
    def row(self) -> bool: ...


def of_another(
    claimed: Iterable[Quantity],
    said: Set[str],
    text: str,
    places: Sequence[Place],
    passage: Iterable[Place],
    listed: bool,
) -> bool:
    """Whether one of the numbers ``claimed`` is in ``text``, that of ``places``, only of something else than what is ``said``.

    It is where a clause of the text, or a sentence of the ``passage``, has a number of its kind and more of what is said than
    the clause, or the sentence, with the number has; where they are ``listed``, both must be alike.
    """
    parts = _clauses(text)
    for number in claimed:

        def other(own: frozenset[str], terms: frozenset[str], listed: bool = listed) -> bool:
            return own & said < terms & said and (not listed or _alike(own, terms))

        own = [terms for terms, numbers in parts if not missing([number], numbers)]
        if len(own) == 1 and any(other(own[0], terms) and _rivals(number, numbers) for terms, numbers in parts):
            return True
        holding = [p for p in places if not missing([number], p.numbers)]
        if len(holding) != 1:
            continue
        terms = holding[0].terms
        if _PRONOUN.search(holding[0].text):
            terms = terms.union(*(p.terms for p in places))
        if any(other(terms, p.terms) and _rivals(number, p.numbers, p.row) for p in passage):
            return True
    return False


def _clauses(text: str) -> list[tuple[frozenset[str], dict[str, set[str]]]]:
    """The words and numbers of each clause; one without words of its own ("1990", "in 2020") belongs to its neighbour."""
    found: list[str] = []
    begun = ""
    for part in _CUTS.split(text):
        begun = f"{begun} , {part}" if begun else part
        if words(without(begun)):
            found.append(begun)
            begun = ""
        elif found and quantities(begun) and not _OPENS.match(begun):
            found[-1] += f" , {begun}"
            begun = ""
    if begun and found:
        found[-1] += f" , {begun}"
    return [(words(part), held(quantities(part))) for part in found]


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether they are made alike, as the items of a list are: a third of the shorter one's words are shared."""
    shorter = min(sum(not t.isdigit() for t in terms) for terms in (one, other))
    return shorter <= _LONGEST_ITEM and sum(not t.isdigit() for t in one & other) * 3 >= shorter


def _rivals(number: Quantity, numbers: dict[str, set[str]], loose: bool = False) -> bool:
    """Whether ``numbers`` has one of the same kind, and not this one. In a table (``loose``) a unit may stand elsewhere."""
    if not missing([number], numbers):
        return False
    kinds = _kinds(number)
    given = [Quantity(value, value, unit) for value, units in numbers.items() for unit in units]
    return any((loose and not (q.unit and number.unit)) or not kinds.isdisjoint(_kinds(q)) for q in given)


def _kinds(q: Quantity) -> set[str]:
    if is_year(q):
        return {"calendar"}
    if known := measures(q.unit):
        return {_FAMILY.get(name, name) for name in known}
    return {q.unit if content_terms(q.unit) else ""}
