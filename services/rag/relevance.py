"""What a question and a chunk have to do with each other, as a few numbers. Pure.

Each is a share or a distance that means the same in a small collection and a large one, and for every embedder:

* nearness: how far the chunk's cosine similarity lies above that of an ordinary chunk of its script, in standard deviations;
* coverage: the share of what the question's terms say (their inverse document frequencies) that the chunk holds;
* proximity: the same for the best stretch of the chunk, about a sentence long: words that stand together belong together;
* page: the same for all that was found of the chunk's page, with the document's name and headings;
* foreign: 1 where question and chunk have different scripts, so that hardly a word can match; and
* foreign nearness: the nearness of such a chunk, 0 for others.

:mod:`services.rag.fusion` makes a ranking and a probability of them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.rag import terms
from services.rag.documents.reflow import CJK

Array = npt.NDArray[np.float64]

FEATURES = ("nearness", "coverage", "proximity", "page", "foreign", "foreign nearness")

# A character says less than the pair that it is a part of.
SINGLE_CHARACTER = 0.3
# Characters in a stretch, by whether they are CJK: about a sentence. Stretches overlap by half.
STRETCH = {True: 48, False: 160}
# An ordinary chunk's similarity is estimated from a sample; what the calibration knows of it counts as this many more.
PRIOR_SIZE = 16
# With fewer, and no calibration, a similarity cannot be judged.
FEWEST = 8
# Interquartile ranges from the median: of a normal distribution, four standard deviations.
OUTLYING = 3.0

_CJK_RUN = re.compile(f"[{CJK}]+")


@dataclass(frozen=True)
class Row:
    """A candidate as it is compared. Texts are as :func:`services.rag.terms.indexed` gives them."""

    page: tuple[str, int]  # document id, page number
    text: str
    context: str = ""  # its document's name, the headings above it, notes
    cosine: float = math.nan  # NaN where no embedder looked at it


class Asked:
    """A question as it is matched: its terms, each with what it says."""

    def __init__(self, question: str, weights: Callable[[Sequence[str]], Mapping[str, float]]) -> None:
        """``weights`` tells the inverse document frequency (> 0) of index terms."""
        wanted = terms.query_terms(question)
        said = weights(wanted) if wanted else {}
        self.cjk = is_cjk(question)
        self._sought = [term if terms.is_cjk(term) else f" {term} " for term in wanted]
        self.weights: Array = np.array(
            [said[t] * (SINGLE_CHARACTER if len(t) == 1 and terms.is_cjk(t) else 1.0) for t in wanted]
        )
        self._total = float(self.weights.sum()) or 1.0

    def held(self, framed: str) -> Array:
        """Of each term 1.0 where the text holds it."""
        return np.array([term in framed for term in self._sought], np.float64)

    def share(self, held: Array) -> float:
        """What these terms say, of all that the question says; 0 to 1."""
        return float(self.weights @ held) / self._total if len(self.weights) else 0.0

    def proximity(self, framed: str, held: Array, cjk: bool) -> float:
        """The largest :meth:`share` of any stretch of the text."""
        sought = [(self._sought[i], float(self.weights[i])) for i in np.flatnonzero(held)]
        if not sought:
            return 0.0
        return max(sum(w for term, w in sought if term in part) for part in _stretches(framed, cjk)) / self._total


class Background:
    """The similarity of a question to ordinary chunks of each script: mean and standard deviation."""

    def __init__(self, cosines: Array, cjk: npt.NDArray[np.bool_], prior: Mapping[bool, tuple[float, float]]) -> None:
        """``cosines`` of the question to a sample of chunks, ``cjk`` their scripts; ``prior`` as a calibration tells it."""
        self._by_script = {script: _spread(cosines[cjk == script], prior.get(script)) for script in (True, False)}

    def nearness(self, cosine: float, cjk: bool) -> float:
        """0 where it cannot be told."""
        known = self._by_script[cjk]
        return 0.0 if known is None or math.isnan(cosine) else (cosine - known[0]) / known[1]


def features(asked: Asked, rows: Sequence[Row], background: Background) -> Array:
    """An array (rows, :data:`FEATURES`)."""
    framed = [_framed(row.text) for row in rows]
    held = [asked.held(text) for text in framed]
    pages: dict[tuple[str, int], Array] = {}
    for row, own in zip(rows, held, strict=True):
        own = np.maximum(own, asked.held(_framed(row.context))) if row.context else own
        pages[row.page] = np.maximum(pages[row.page], own) if row.page in pages else own
    out = np.empty((len(rows), len(FEATURES)))
    for at, (row, text, own) in enumerate(zip(rows, framed, held, strict=True)):
        cjk = is_cjk(row.text)
        foreign = cjk != asked.cjk
        near = background.nearness(row.cosine, cjk)
        out[at] = (
            near,
            asked.share(own),
            asked.proximity(text, own, cjk),
            asked.share(pages[row.page]),
            foreign,
            near if foreign else 0.0,
        )
    return out


def coverage(question: str, text: str) -> float:
    """Share, 0 to 1, of the question's content words that ``text`` holds."""
    sought = set(terms.content_terms(question))
    held = set(terms.content_terms(text))
    total = sum(map(_weight, sought))
    return sum(_weight(t) for t in sought if t in held) / total if total else 0.0


def is_cjk(text: str) -> bool:
    """Whether a text is Chinese or Japanese, as opposed to one with a few such characters in it."""
    return sum(map(len, _CJK_RUN.findall(text))) * 4 > len(text)


def _spread(cosines: Array, prior: tuple[float, float] | None) -> tuple[float, float] | None:
    n, m = len(cosines), PRIOR_SIZE if prior is not None else 0
    if n + m < FEWEST:
        return None
    if n >= FEWEST:
        # A page of rubbish, or of what is asked for, must not make the rest look alike.
        low, middle, high = np.quantile(cosines, (0.25, 0.5, 0.75))
        reach = OUTLYING * (high - low)
        cosines = np.clip(cosines, middle - reach, middle + reach)
    mean, deviation = prior if prior is not None else (0.0, 0.0)
    centre = (float(cosines.sum()) + m * mean) / (n + m)
    squares = float(((cosines - centre) ** 2).sum()) + m * (deviation**2 + (mean - centre) ** 2)
    return centre, max(math.sqrt(squares / (n + m)), 1e-3)


def _framed(indexed: str) -> str:
    """Each word between spaces of its own; of a run of CJK characters any part is a term."""
    return f" {indexed.replace(' ', '  ')} "


def _stretches(framed: str, cjk: bool) -> Iterator[str]:
    """Overlapping parts of a text."""
    length = STRETCH[cjk]
    for at in range(0, max(len(framed) - length // 2, 1), length // 2):
        yield framed[at : at + length]


def _weight(term: str) -> float:
    # A word says more than the single characters that it was also cut into.
    return SINGLE_CHARACTER if len(term) == 1 and not term.isascii() else 1.0
