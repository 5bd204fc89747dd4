"""One ranking and one probability out of the candidates of all searches. Pure.

Learned fusion: a linear model of the features that :mod:`services.rag.relevance` computes for every candidate, whichever
search found it. Its score ranks; a logistic function of the score, and of how far the best page stands out, is the
probability that refuses. Both are fitted by :mod:`services.rag.calibration`. Rank fusion, which it replaces, throws away
how much better the first is than the second (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid
Retrieval", ACM TOIS 2023).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from services.rag.relevance import FEATURES, Array

# How far the best page stands out is measured against these (from 0): two editions of one text may both be right.
_FIELD = slice(2, 5)


@dataclass(frozen=True)
class Model:
    """``weights`` by :data:`services.rag.relevance.FEATURES`; the rest makes a score a probability."""

    weights: tuple[float, ...]
    slope: float
    contrast: float
    intercept: float
    # What the third to fifth best page usually score, for a collection that has fewer.
    ordinary: float
    # Of a chunk in another script than the question's hardly a word can match: its nearness alone tells.
    foreign_slope: float
    foreign_intercept: float

    def scores(self, features: Array) -> Array:
        """An array (rows,) for one (rows, features); higher is better."""
        return np.asarray(features @ np.array(self.weights))

    def probabilities(self, features: Array, pages: Sequence[Hashable]) -> Array:
        """Of each candidate the probability, 0 to 1, that it bears on the question; among those of one script it rises with
        the score."""
        if not len(features):
            return np.empty(0)
        scores = self.scores(features)
        # Each by how far it stands out itself: what is best may, and the rest not.
        logit = self.slope * scores + self.contrast * (scores - field(scores, pages, self.ordinary)) + self.intercept
        foreign = self.foreign_slope * features[:, FEATURES.index("nearness")] + self.foreign_intercept
        logit = np.where(features[:, FEATURES.index("foreign")] > 0, foreign, logit)
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -50, 50))))


@dataclass(frozen=True)
class Calibration:
    """What was fitted for an embedder.

    ``hybrid`` sees all features, ``words`` those that need no embedder. ``background`` is the similarity, mean and standard
    deviation, of a question to an ordinary chunk, by whether the question and the chunk are CJK.
    """

    hybrid: Model
    words: Model
    background: tuple[tuple[bool, bool, float, float], ...] = ()
    # Chunks in the smallest collection that it was fitted on; 0 where it was fitted on the user's own.
    size: int = 0

    def __post_init__(self) -> None:
        if any(len(model.weights) != len(FEATURES) for model in (self.hybrid, self.words)):
            raise ValueError(f"a model has a weight for each of {', '.join(FEATURES)}")

    def prior(self, cjk: bool) -> dict[bool, tuple[float, float]]:
        """The background of a question, by whether a chunk is CJK."""
        return {of: (mean, deviation) for asked, of, mean, deviation in self.background if asked == cjk}


def hedged(probabilities: Array, chunks: int, size: int) -> Array:
    """Probabilities drawn towards a half where only ``chunks`` are searched, fewer than ``size``.

    In one manual every page has the manual's words, and little stands out: what was fitted on many documents is then too
    sure of itself, and would refuse a question in other words than the page's. Their order stays. Fewer than a fifth of
    ``size`` count as a fifth: what has not a word of the question can be told in one chunk.
    """
    chunks = max(chunks, size // 5)
    if chunks >= size:
        return probabilities
    inner = np.clip(probabilities, 1e-9, 1 - 1e-9)
    return np.asarray(1.0 / (1.0 + (1.0 / inner - 1.0) ** math.sqrt(chunks / size)))


def contrast(scores: Array, pages: Sequence[Hashable], ordinary: float) -> float:
    """By how much the best score exceeds the mean of the third to fifth best page; a page that is not there is ordinary."""
    return float(scores.max()) - field(scores, pages, ordinary)


def field(scores: Array, pages: Sequence[Hashable], ordinary: float) -> float:
    """The mean score of the third to fifth best page."""
    best: dict[Hashable, float] = {}
    for score, page in zip(scores.tolist(), pages, strict=True):
        best[page] = max(score, best.get(page, score))
    ordered = sorted(best.values(), reverse=True) + [ordinary] * _FIELD.stop
    return sum(ordered[_FIELD]) / (_FIELD.stop - _FIELD.start)
