"""How sure a figure is: percentile bootstrap over the questions, in plain Python and with a fixed seed.

A share that every question agrees on, where a bootstrap has nothing to draw, gets the exact interval (Clopper-Pearson).

A question's part of a figure is ``(numerator, denominator)``; the figure is the sum of the ones over the sum of the
others. A mean has denominators of 1; the share of good citations has a question's citations.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Part = tuple[float, float]
RESAMPLES = 1000
_SEED = 20240229  # any: the same rows give the same interval


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, of ``n`` questions."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """``b - a`` of the same ``n`` questions, its 95 % interval, and the two-sided bootstrap p."""

    a: float
    b: float
    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def figure(parts: Sequence[Part], resamples: int = RESAMPLES) -> Figure | None:
    """None where there is nothing to divide by."""
    return figures([parts], resamples)[0]


def figures(columns: Sequence[Sequence[Part]], resamples: int = RESAMPLES) -> list[Figure | None]:
    """Figures of the same questions: drawn together, which is most of the work."""
    out: list[Figure | None] = []
    for parts, drawn in zip(columns, _resampled(columns, resamples), strict=True):
        value = _ratio(parts)
        low, high = _interval(sorted(v for v in drawn if v is not None), value or 0.0)
        if low == high and value in (0.0, 1.0):
            # Every draw is alike, which does not mean that every question is: the exact interval of a share.
            unseen = 1 - 0.025 ** (1 / sum(d > 0 for _, d in parts))
            low, high = (0.0, unseen) if value == 0.0 else (1 - unseen, 1.0)
        out.append(None if value is None else Figure(value, low, high, len(parts)))
    return out


def difference(a: Sequence[Part], b: Sequence[Part], resamples: int = RESAMPLES) -> Difference | None:
    """``a`` and ``b`` are the same questions in the same order: each draw takes a question's both sides.

    Raises:
        ValueError: they are not of the same length.
    """
    if len(a) != len(b):
        raise ValueError("paired samples differ in length")
    first, second = _ratio(a), _ratio(b)
    if first is None or second is None:
        return None
    pairs = zip(*_resampled([a, b], resamples), strict=True)
    drawn = sorted(y - x for x, y in pairs if x is not None and y is not None)
    low, high = _interval(drawn, second - first)
    below = sum(d <= 0 for d in drawn)
    above = sum(d >= 0 for d in drawn)
    p = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    return Difference(first, second, second - first, low, high, p, len(a))


def error_ratio(parts: Sequence[Sequence[float]], fused: Sequence[float]) -> Figure | None:
    """(1 - mean of ``fused``) over (1 - mean of the best of ``parts``); None where the best has no error."""

    def ratio(means: Sequence[float]) -> float | None:
        best = max(means[1:])
        return (1 - means[0]) / (1 - best) if best < 1 else None

    return of_means([fused, *parts], ratio)


def quotient(a: Sequence[float], b: Sequence[float]) -> Figure | None:
    """Mean of ``b`` over mean of ``a``, of the same questions; None where ``a`` is nothing."""
    return of_means([a, b], lambda means: means[1] / means[0] if means[0] else None)


def of_means(columns: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float | None]) -> Figure | None:
    """``statistic`` of the columns' means; None where it cannot be told. All columns are of the same questions."""
    if not columns[0]:
        return None
    parts = [[(v, 1.0) for v in column] for column in columns]
    value = statistic([sum(column) / len(column) for column in columns])
    if value is None:
        return None
    means = zip(*_resampled(parts, RESAMPLES), strict=True)
    drawn = sorted(r for m in means if (r := statistic([x for x in m if x is not None])) is not None)
    low, high = _interval(drawn, value)
    return Figure(value, low, high, len(columns[0]))


def _ratio(parts: Sequence[Part]) -> float | None:
    total = sum(d for _, d in parts)
    return sum(n for n, _ in parts) / total if total else None


def _resampled(columns: Sequence[Sequence[Part]], resamples: int) -> list[list[float | None]]:
    """For each column, its figure in every resample; the resamples draw the same questions for all columns."""
    chance = random.Random(_SEED)  # noqa: S311
    size = len(columns[0])
    split = [([n for n, _ in c], [d for _, d in c]) for c in columns]
    whole = [all(d == 1 for d in denominators) for _, denominators in split]
    out: list[list[float | None]] = [[] for _ in columns]
    for _ in range(resamples):
        drawn = chance.choices(range(size), k=size)
        for (numerators, denominators), simple, into in zip(split, whole, out, strict=True):
            total = size if simple else sum(map(denominators.__getitem__, drawn))
            into.append(sum(map(numerators.__getitem__, drawn)) / total if total else None)
    return out


def _interval(drawn: Sequence[float], value: float) -> tuple[float, float]:
    if not drawn:
        return value, value
    low, high = drawn[int(0.025 * (len(drawn) - 1))], drawn[round(0.975 * (len(drawn) - 1))]
    return min(low, value), max(high, value)
