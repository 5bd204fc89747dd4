"""Fits the models of :mod:`services.rag.fusion` to questions whose page is known, and keeps what was fitted.

A question gives two samples: its candidates, and its candidates with every chunk of its page left out, as if the document
were not there. Ranking weights are those under which the right page is most likely the first of the candidates (a
conditional logit). The probability is then a logistic regression that tells, of the best candidates of both kinds, which
were right.
"""

import contextlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.rag.errors import InvalidRequest, StorageError
from services.rag.fusion import Calibration, Model, contrast, field
from services.rag.relevance import FEATURES, Array

log = logging.getLogger("docduet.rag.calibration")

FILE = "calibration.json"
# Fewer questions say more about themselves than about the embedder.
FEWEST_QUESTIONS = 50
_WORDS = np.array([name not in ("nearness", "foreign nearness") for name in FEATURES])
_NEARNESS, _FOREIGN = FEATURES.index("nearness"), FEATURES.index("foreign")
# Draws weights towards 0, in units of the mean log likelihood of a question.
_RIDGE = 1e-3

# Of a set: features (n, f), whether each candidate's page is right, where each question's candidates begin.
_Group = tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.intp]]


# Similarities of multilingual-e5-small: question, chunk, mean, standard deviation.
_E5_BACKGROUND = (
    (True, True, 0.809, 0.016),
    (True, False, 0.718, 0.020),
    (False, False, 0.741, 0.021),
    (False, True, 0.701, 0.017),
)
# Fitted on four public question sets, Chinese, traditional Chinese and English, and on questions across the languages:
# docs/decisions/0022 has the figures, each of a set that was left out of the fit.
_EMBEDDED = Calibration(
    hybrid=Model((1.73, 5.40, 5.86, 5.20, -1.30, 1.30), 0.238, 0.344, -6.09, 7.46, 1.081, -4.043),
    words=Model((0.0, 10.73, 7.21, 7.40, 0.98, 0.0), 0.119, 0.409, -3.79, 4.64, 0.0, 0.0),
    background=_E5_BACKGROUND,
    size=256,
)
CALIBRATIONS = {"embedded": _EMBEDDED}
# For an embedder that nobody calibrated. The features have no scale, but how much nearness tells is the embedder's: it counts
# half, and a passage in another language than the question has the benefit of the doubt.
DEFAULT = Calibration(
    hybrid=Model((0.866, 5.40, 5.86, 5.20, -1.30, 0.65), 0.239, 0.462, -5.23, 5.14, 0.0, 0.0),
    words=_EMBEDDED.words,
    size=_EMBEDDED.size,
)


@dataclass(frozen=True)
class Sample:
    """A question's candidates: features (n, f), the number of each one's page, and whether that page is right."""

    features: Array
    pages: tuple[int, ...]
    right: npt.NDArray[np.bool_]
    left_out: bool  # the right page was taken away


@dataclass(frozen=True)
class Rates:
    """What a threshold does, of the questions that were fitted on: shares from 0 to 1."""

    threshold: float
    false_refusals: float
    false_answers: float


@dataclass(frozen=True)
class Report:
    """What a calibration is worth: each half of the questions judged by a fit on the other half.

    ``first`` is the share of questions whose page comes first, ``before`` the same with the calibration that was replaced.
    """

    questions: int
    found: int  # of these the page was among the candidates
    first: float
    before: float
    threshold: float  # for the wanted share of false refusals, on the scale of the fit on all questions
    false_refusals: float
    false_answers: float


def calibrate(
    sets: Sequence[Sequence[tuple[Sample, Sample]]], base: Calibration, false_refusals: float
) -> tuple[Calibration, Report]:
    """A calibration from samples (there, left out) of questions, and what it is worth.

    Raises:
        InvalidRequest: too few questions to fit on, or to judge it by.
    """
    calibration = fit([_flat(questions) for questions in sets], base)
    refused, answered, first, before, n = 0.0, 0.0, 0.0, 0.0, 0
    for half in (0, 1):
        other = fit([_flat(questions[1 - half :: 2]) for questions in sets], base, fewest=1).hybrid
        seen = [sample for questions in sets for sample in _flat(questions[1 - half :: 2])]
        judged = [sample for questions in sets for sample in _flat(questions[half::2])]
        there = [sample for sample in judged if not sample.left_out]
        found = rates(other, judged, threshold(other, seen, false_refusals))
        refused += found.false_refusals * len(there)
        answered += found.false_answers * len(there)
        first += sum(_first_is_right(other, sample) for sample in there)
        before += sum(_first_is_right(base.hybrid, sample) for sample in there)
        n += len(there)
    every = [sample for questions in sets for sample in _flat(questions)]
    return calibration, Report(
        questions=n,
        found=sum(bool(sample.right.any()) for sample in every),
        first=first / n,
        before=before / n,
        threshold=threshold(calibration.hybrid, every, false_refusals),
        false_refusals=refused / n,
        false_answers=answered / n,
    )


def _flat(questions: Sequence[tuple[Sample, Sample]]) -> list[Sample]:
    return [sample for both in questions for sample in both]


def _first_is_right(model: Model, sample: Sample) -> bool:
    return bool(len(sample.features)) and bool(sample.right[model.scores(sample.features).argmax()])


def fit(sets: Sequence[Sequence[Sample]], base: Calibration, *, fewest: int = FEWEST_QUESTIONS) -> Calibration:
    """A calibration from samples. ``base`` gives what they do not tell: how to judge a passage in another language.

    Raises:
        InvalidRequest: fewer than ``fewest`` questions whose page was found.
    """
    usable = sum(sample.right.any() for samples in sets for sample in samples)
    if usable < fewest:
        raise InvalidRequest(
            f"{usable} questions whose page is among the candidates are too few to fit on: at least {fewest} are needed"
        )
    hybrid = _model(sets, np.array([True] * len(FEATURES)), base.hybrid)
    return Calibration(hybrid, _model(sets, _WORDS, base.words), base.background)


def _model(sets: Sequence[Sequence[Sample]], used: npt.NDArray[np.bool_], base: Model) -> Model:
    weights = np.zeros(len(FEATURES))
    found = [[s for s in samples if s.right.any()] for samples in sets]
    weights[used] = rank_weights(found, used)
    # Of a feature that is the same everywhere (no passage in another language) the sets tell nothing: its weight stays, by
    # the scale of the others.
    told = np.concatenate([s.features for samples in found for s in samples]).std(axis=0) > 0
    if (used & ~told).any():
        known = np.array(base.weights)
        shared = used & told
        weights[used & ~told] = (
            known[used & ~told] * (weights[shared] @ known[shared]) / max(float(known[shared] @ known[shared]), 1e-9)
        )
    fields = [
        field(s.features @ weights, s.pages, math.nan) for samples in sets for s in samples if len(set(s.pages)) >= 5
    ]
    ordinary = float(np.mean(fields)) if fields else 0.0
    native: list[tuple[tuple[float, ...], bool]] = []
    foreign: list[tuple[tuple[float, ...], bool]] = []
    for sample in (s for samples in sets for s in samples if len(s.features)):
        scores = sample.features @ weights
        top = sample.features[scores.argmax()]
        if top[_FOREIGN]:
            foreign.append(((top[_NEARNESS], 1.0), not sample.left_out))
        else:
            native.append(((scores.max(), contrast(scores, sample.pages, ordinary), 1.0), not sample.left_out))
    slope, against, intercept = logistic(native)
    across = [base.foreign_slope, base.foreign_intercept]
    if used[_NEARNESS] and len(foreign) >= 2 * FEWEST_QUESTIONS:
        across = logistic(foreign)
    return Model(tuple(weights.tolist()), slope, against, intercept, ordinary, *across)


def rank_weights(sets: Sequence[Sequence[Sample]], used: npt.NDArray[np.bool_]) -> Array:
    """The weights of the ``used`` features that make the right pages most likely the first.

    By Newton's steps with the curvature of all candidates alone, which is never negative, halved until they are a gain.
    """
    groups = [
        (
            np.concatenate([s.features[:, used] for s in samples]),
            np.concatenate([s.right for s in samples]),
            _starts(samples),
        )
        for samples in sets
        if samples
    ]
    scale = np.concatenate([features for features, _, _ in groups]).std(axis=0)
    scale[scale == 0] = 1.0
    groups = [(features / scale, right, starts) for features, right, starts in groups]
    weights = np.zeros(int(used.sum()))
    likelihood = _likelihood(groups, weights)
    for _ in range(100):
        gradient, hessian = -2 * _RIDGE * weights, 2 * _RIDGE * np.eye(len(weights))
        for x, right, starts in groups:
            score = x @ weights
            every = _softmax(score, starts)
            gold = _softmax(np.where(right, score, -np.inf), starts)
            n = len(starts) * len(groups)
            mean = np.add.reduceat(x * every[:, None], starts)
            gradient += x.T @ (gold - every) / n
            hessian += ((x * every[:, None]).T @ x - mean.T @ mean) / n
        step = np.linalg.solve(hessian, gradient)
        while np.abs(step).max() > 1e-4 and _likelihood(groups, weights + step) <= likelihood:
            step /= 2
        if np.abs(step).max() <= 1e-4:
            break
        weights += step
        likelihood = _likelihood(groups, weights)
    return np.asarray(weights / scale)


def _likelihood(groups: Sequence[_Group], weights: Array) -> float:
    """The mean log likelihood of a right page being the first, less what the weights cost."""
    total = 0.0
    for x, right, starts in groups:
        score = x @ weights
        gold = _log_sums(np.where(right, score, -np.inf), starts)
        total += float((gold - _log_sums(score, starts)).mean()) / len(groups)
    return total - _RIDGE * float(weights @ weights)


def logistic(observed: Sequence[tuple[tuple[float, ...], bool]]) -> list[float]:
    """Weights of a logistic regression by Newton's method; right and wrong count the same in all."""
    rows, right = np.array([row for row, _ in observed]), np.array([is_right for _, is_right in observed])
    share = np.where(right, 0.5 / max(right.sum(), 1), 0.5 / max((~right).sum(), 1))
    weights = np.zeros(rows.shape[1])
    for _ in range(200):
        p = 1.0 / (1.0 + np.exp(-np.clip(rows @ weights, -50, 50)))
        gradient = rows.T @ (share * (right - p)) - 2e-5 * weights
        hessian = (rows * (share * p * (1 - p))[:, None]).T @ rows + 2e-5 * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights += np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-6:
            break
    return [float(w) for w in weights]


def best(model: Model, sample: Sample) -> float:
    """The probability of the best candidate; 0 where there is none."""
    if not len(sample.features):
        return 0.0
    return float(model.probabilities(sample.features, sample.pages).max())


def rates(model: Model, samples: Sequence[Sample], threshold: float) -> Rates:
    there = np.array([best(model, s) for s in samples if not s.left_out])
    away = np.array([best(model, s) for s in samples if s.left_out])
    return Rates(threshold, float((there < threshold).mean()), float((away >= threshold).mean()))


def threshold(model: Model, samples: Sequence[Sample], false_refusals: float) -> float:
    """The highest threshold that refuses at most this share of the questions whose page is there.

    At most 0.5: what is likelier right than wrong is no reason to refuse, however easy these questions were.
    """
    found = [best(model, s) for s in samples if not s.left_out]
    return min(float(np.quantile(found, false_refusals, method="lower")), 0.5)


def _starts(samples: Sequence[Sample]) -> npt.NDArray[np.intp]:
    return np.cumsum([0, *(len(s.features) for s in samples[:-1])])


def _log_sums(scores: Array, starts: npt.NDArray[np.intp]) -> Array:
    """Of each group the logarithm of the sum of exp."""
    sizes = np.diff([*starts, len(scores)])
    most = np.maximum.reduceat(scores, starts)
    return np.asarray(most + np.log(np.add.reduceat(np.exp(scores - np.repeat(most, sizes)), starts)))


def _softmax(scores: Array, starts: npt.NDArray[np.intp]) -> Array:
    """Within each group."""
    sizes = np.diff([*starts, len(scores)])
    return np.asarray(np.exp(scores - np.repeat(_log_sums(scores, starts), sizes)))


class Calibrations:
    """Which calibration an index is searched with: the data folder's if it was made for this embedder, else a shipped one."""

    def __init__(self, data_dir: Path | None = None) -> None:
        """Without a folder only the shipped ones."""
        self._path = data_dir / FILE if data_dir is not None else None
        self._own: tuple[str, Calibration] | None = None
        if self._path is None:
            return
        try:
            self._own = _read(self._path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning(
                "%s cannot be read (%s): the calibration that comes with docduet is used; `docduet calibrate` makes it "
                "again",
                self._path,
                error,
            )

    def of(self, fingerprint: str, model_id: str) -> Calibration:
        if self._own is not None and self._own[0] == fingerprint:
            return self._own[1]
        return CALIBRATIONS.get(model_id, DEFAULT)

    def source(self, fingerprint: str, model_id: str) -> str:
        """``own``, ``shipped`` or ``default``."""
        if self._own is not None and self._own[0] == fingerprint:
            return "own"
        return "shipped" if model_id in CALIBRATIONS else "default"

    def store(self, fingerprint: str, calibration: Calibration) -> None:
        """Keep it for this embedder, and use it from now on.

        Raises:
            StorageError: it cannot be written; the one before stays.
        """
        assert self._path is not None
        content = json.dumps({"fingerprint": fingerprint, **asdict(calibration)}, indent=1)
        part = self._path.with_name(f"{FILE}.part")
        try:
            part.write_text(content)
            part.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise StorageError(f"the calibration cannot be written to {self._path}: {error}") from error
        self._own = (fingerprint, calibration)

    def forget(self) -> None:
        """Back to the shipped one."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._own = None


def _read(path: Path) -> tuple[str, Calibration]:
    found: dict[str, Any] = json.loads(path.read_text())
    hybrid, words = (Model(**{**found[name], "weights": tuple(found[name]["weights"])}) for name in ("hybrid", "words"))
    background = tuple((bool(a), bool(b), float(m), float(d)) for a, b, m, d in found["background"])
    return str(found["fingerprint"]), Calibration(hybrid, words, background)
