"""Features, ranking, probability and calibration, as pure functions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.calibration import (
    CALIBRATIONS,
    DEFAULT,
    FEWEST_QUESTIONS,
    FILE,
    Calibrations,
    Sample,
    calibrate,
    fit,
    rates,
    threshold,
)
from services.rag.errors import InvalidRequest
from services.rag.fusion import Calibration, Model, hedged
from services.rag.relevance import FEATURES, Array, Asked, Background, Row, coverage, features, is_cjk
from services.rag.terms import indexed

NOTHING = Background(np.empty(0), np.empty(0, np.bool_), {})
WORDS = "灯塔 透镜 清洁 发电机 lens lighthouse 90 cleaning v2.5 缓存 the 的".split()
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=12).map(" ".join)


def asked(question: str) -> Asked:
    return Asked(question, lambda terms: {term: 1.0 + len(term) for term in terms})


def row(text: str, page: int = 1, *, context: str = "", cosine: float = float("nan")) -> Row:
    return Row(("d", page), indexed(text), indexed(context), cosine)


def named(values: Array, name: str) -> list[float]:
    return [float(v) for v in values[:, FEATURES.index(name)]]


# -- features


@given(texts, texts, texts)
def test_shares_are_shares_and_a_page_holds_what_its_chunks_hold(question: str, one: str, other: str) -> None:
    values = features(asked(question), [row(one), row(other)], NOTHING)
    covered, together, page = (named(values, name) for name in ("coverage", "proximity", "page"))
    for stretch, chunk, whole in zip(together, covered, page, strict=True):
        assert 0 <= stretch <= chunk + 1e-9
        assert chunk <= whole + 1e-9 <= 1 + 2e-9
    assert page[0] == page[1]


@given(texts, texts)
def test_a_text_that_repeats_the_question_holds_all_of_it(question: str, more: str) -> None:
    values = features(asked(question), [row(f"{question}\n{more}")], NOTHING)
    assert named(values, "coverage")[0] == pytest.approx(1.0 if len(asked(question).weights) else 0.0)


def test_words_that_stand_together_count_for_more_than_scattered_ones() -> None:
    filler = "这里写的是别的事情,与此无关。" * 6
    near, far = row(f"灯塔的透镜每月清洁。{filler}", 1), row(f"灯塔很高。{filler}透镜很重。{filler}每月清洁地板。", 2)
    values = features(asked("灯塔的透镜每月清洁吗?"), [near, far], NOTHING)
    assert named(values, "proximity")[0] > named(values, "proximity")[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("颱風來臨之前檢查發電機", "台风来临之前检查发电机"),
        ("ＲＡＧ　ｖ２．５", "rag v2.5"),
        ("Lamps are cleaned", "LAMP, cleaning"),
    ],
)
def test_script_width_case_and_endings_do_not_matter(one: str, other: str) -> None:
    assert named(features(asked(one), [row(other)], NOTHING), "coverage") == [pytest.approx(1.0)]


def test_the_documents_name_and_headings_count_for_the_page_only() -> None:
    values = features(asked("lighthouse lens"), [row("The lens is cleaned.", context="lighthouse manual")], NOTHING)
    assert named(values, "coverage")[0] < 1.0 == named(values, "page")[0]


@given(
    st.lists(st.floats(-1, 1), min_size=8, max_size=60).filter(
        lambda v: float(np.subtract(*np.quantile(v, [0.75, 0.25]))) > 0.05
    ),
    st.floats(0.2, 1),
    st.floats(-0.5, 0.5),
    st.floats(-1, 1),
)
def test_nearness_has_no_scale(sample: list[float], factor: float, shift: float, cosine: float) -> None:
    cjk = np.zeros(len(sample), np.bool_)
    plain = Background(np.array(sample), cjk, {}).nearness(cosine, False)
    squeezed = Background(factor * np.array(sample) + shift, cjk, {}).nearness(factor * cosine + shift, False)
    assert squeezed == pytest.approx(plain, rel=1e-6, abs=1e-6)


def test_each_script_has_its_own_background() -> None:
    cosines = np.array([0.7, 0.72, 0.74, 0.76] * 4 + [0.80, 0.82, 0.84, 0.86] * 4)
    background = Background(cosines, np.array([False] * 16 + [True] * 16), {})
    assert background.nearness(0.8, False) > 0 > background.nearness(0.8, True)


def test_few_chunks_say_little_about_an_embedder() -> None:
    """Of a collection of three chunks the right one is a third."""
    few = np.array([0.92, 0.90, 0.91])
    cjk = np.ones(3, np.bool_)
    assert Background(few, cjk, {}).nearness(0.92, True) == 0.0
    assert Background(few, cjk, {True: (0.81, 0.016)}).nearness(0.92, True) > 2.0
    assert Background(few, cjk, {True: (0.81, 0.016)}).nearness(float("nan"), True) == 0.0


def test_rubbish_in_the_sample_changes_little() -> None:
    ordinary = np.random.default_rng(0).normal(0.8, 0.02, 250)
    cjk = np.zeros(256, np.bool_)
    plain = Background(ordinary, cjk[:250], {}).nearness(0.9, False)
    assert Background(np.append(ordinary, [0.0] * 6), cjk, {}).nearness(0.9, False) == pytest.approx(plain, rel=0.15)


def test_a_passage_in_another_script_is_told() -> None:
    values = features(
        asked("灯塔的透镜多久清洁一次?"), [row("The lens is cleaned monthly."), row("透镜每月清洁")], NOTHING
    )
    assert named(values, "foreign") == [1.0, 0.0]
    assert is_cjk("RAG_K 的默认值是多少")
    assert not is_cjk("the value of 默认 here is four")


def test_coverage_is_a_share() -> None:
    assert coverage("the lens", "lens and lamp") == 1.0
    assert coverage("", "lens") == coverage("的", "的") == 0.0


# -- ranking and probability


def candidates(*covered: float, nearness: float = 0.0) -> Array:
    values = np.zeros((len(covered), len(FEATURES)))
    for name in ("coverage", "proximity", "page"):
        values[:, FEATURES.index(name)] = covered
    values[:, FEATURES.index("nearness")] = nearness * np.array(covered)
    return values


@pytest.mark.parametrize("calibration", [*CALIBRATIONS.values(), DEFAULT])
@given(st.lists(st.floats(0, 1), max_size=30), st.randoms(use_true_random=False))
def test_probabilities_rise_with_the_score_whatever_the_order(
    calibration: Calibration, covered: list[float], random: "np.random.Generator"
) -> None:
    for model in (calibration.hybrid, calibration.words):
        values, pages = candidates(*covered, nearness=4.0), list(range(len(covered)))
        found = model.probabilities(values, pages)
        assert ((found >= 0) & (found <= 1)).all()
        by_score = found[np.argsort(model.scores(values), kind="stable")]
        assert (np.diff(by_score) >= -1e-12).all()
        random.shuffle(pages)
        assert model.probabilities(values[pages], pages) == pytest.approx(found[pages])


@pytest.mark.parametrize("calibration", [*CALIBRATIONS.values(), DEFAULT])
def test_what_holds_the_question_is_answered_and_what_holds_none_of_it_refused(calibration: Calibration) -> None:
    """Also in a collection of one page, where nothing is there to stand out against."""
    for others in ([], [0.1] * 10):
        there = candidates(0.9, *others, nearness=4.0)
        away = candidates(0.1, *others, nearness=1.0)
        for model in (calibration.hybrid, calibration.words):
            assert model.probabilities(there, range(len(there)))[0] > 0.5
            assert model.probabilities(away, range(len(away)))[0] < 0.2


def test_what_does_not_stand_out_is_not_lifted_by_what_does() -> None:
    """Beside a page that is certainly right, its neighbours are what they are without it."""
    model = CALIBRATIONS["embedded"].hybrid
    rest = [0.5, *[0.45] * 8]
    with_it = model.probabilities(candidates(1.0, *rest, nearness=4.0), range(len(rest) + 1))
    without = model.probabilities(candidates(*rest, nearness=4.0), range(len(rest)))
    assert with_it[0] > 0.9
    assert with_it[1] == pytest.approx(without[0], abs=0.05)


def test_pages_that_are_not_there_are_taken_for_ordinary_ones() -> None:
    model = CALIBRATIONS["embedded"].hybrid
    (unit,) = model.scores(candidates(1.0, nearness=4.0))
    ordinary = model.ordinary / float(unit)
    alone, among = candidates(0.5, nearness=4.0), candidates(0.5, *[ordinary] * 4, nearness=4.0)
    assert model.probabilities(alone, [0])[0] == pytest.approx(model.probabilities(among, range(5))[0])


def test_two_editions_that_are_both_right_are_not_refused() -> None:
    model = CALIBRATIONS["embedded"].hybrid
    alone, both = candidates(0.8, *[0.2] * 8, nearness=4.0), candidates(0.8, 0.8, *[0.2] * 8, nearness=4.0)
    assert model.probabilities(both, range(10))[0] == pytest.approx(model.probabilities(alone, range(9))[0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.integers(0, 300), st.integers(0, 300))
def test_fewer_chunks_tell_less_and_keep_the_order(found: list[float], chunks: int, more: int) -> None:
    given = np.array(sorted(found))
    few, many = hedged(given, chunks, 256), hedged(given, chunks + more, 256)
    for values in (few, many):
        assert ((values >= 0) & (values <= 1)).all()
        assert (np.diff(values) >= -1e-12).all()
    assert (abs(few - 0.5) <= abs(many - 0.5) + 1e-9).all()
    assert (hedged(given, 256, 256) == given).all()


def test_one_manual_is_not_too_small_for_an_answer() -> None:
    """A probability of 0.09 in many documents refuses; in the 57 chunks of two manuals it does not, and 0.003 does."""
    assert (hedged(np.array([0.09, 0.003]), 57, 256) > 0.23).tolist() == [True, False]
    assert (hedged(np.array([0.09, 0.003]), 2, 256) > 0.23).tolist() == [True, False]


# -- calibration


def planted(count: int, weights: Sequence[float], seed: int, noise: float = 1.0) -> list[tuple[Sample, Sample]]:
    """Questions whose right page is the one that these weights, and chance, prefer."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        values = random.normal(size=(12, len(FEATURES)))
        values[:, FEATURES.index("foreign") :] = 0.0
        best = int(np.argmax(values @ np.array(weights) + random.gumbel(scale=noise, size=12)))
        right = np.arange(12) == best
        there = Sample(values, tuple(range(12)), right, False)
        away = Sample(values[~right], tuple(range(11)), np.zeros(11, np.bool_), True)
        out.append((there, away))
    return out


def flat(questions: Sequence[tuple[Sample, Sample]]) -> list[Sample]:
    return [sample for both in questions for sample in both]


def test_a_fit_finds_the_weights_that_made_the_data() -> None:
    weights = (1.5, 2.0, 0.5, 1.0, 0.0, 0.0)
    found = fit([flat(planted(1500, weights, 1)), flat(planted(1500, weights, 2))], DEFAULT)
    assert found.hybrid.weights[:4] == pytest.approx(weights[:4], abs=0.25)
    assert found.words.weights[0] == 0.0


def test_weights_that_the_questions_do_not_tell_stay() -> None:
    """No passage was in another language: the weights of such are not forgotten."""
    base = CALIBRATIONS["embedded"]
    found = fit([flat(planted(300, (1.5, 2.0, 0.5, 1.0, 0.0, 0.0), 1))], base).hybrid
    kept = np.array(found.weights[4:]) / np.array(base.hybrid.weights[4:])
    assert kept[0] == pytest.approx(kept[1])
    assert kept[0] > 0.1


def test_a_fit_of_questions_that_are_all_easy_ends() -> None:
    """Nothing bounds the weights but their cost."""
    found = fit([flat(planted(100, (5.0, 5.0, 5.0, 5.0, 0.0, 0.0), 3, noise=1e-9))], DEFAULT)
    assert np.isfinite(found.hybrid.weights).all()
    assert max(map(abs, found.hybrid.weights)) < 50


def test_a_fit_of_one_that_stands_far_out_of_a_tight_field_does_not_run_away() -> None:
    """The curvature at the start promises a step that overshoots: weights in the thousands, of the wrong sign."""
    random = np.random.default_rng(1)
    samples = []
    for _ in range(100):
        covered = 0.01 * random.random(40)
        covered[0], covered[5] = 0.9 * random.random(), 0.6 * random.random()
        samples.append(Sample(candidates(*covered), tuple(range(40)), np.arange(40) == 0, False))
        samples.append(Sample(candidates(*covered[1:]), tuple(range(39)), np.zeros(39, np.bool_), True))
    found = fit([samples], DEFAULT).hybrid
    assert 0 < sum(found.weights) < 100
    right = [found.scores(s.features).argmax() == 0 for s in samples if not s.left_out]
    assert np.mean(right) > 0.6


def test_how_passages_in_another_language_are_judged_stays() -> None:
    base = replace(DEFAULT, hybrid=replace(DEFAULT.hybrid, foreign_slope=1.25, foreign_intercept=-3.5))
    found = fit([flat(planted(100, (1.0,) * 6, 4))], base)
    assert (found.hybrid.foreign_slope, found.hybrid.foreign_intercept) == (1.25, -3.5)


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"at least {FEWEST_QUESTIONS}"):
        fit([flat(planted(FEWEST_QUESTIONS - 1, (1.0,) * 6, 5))], DEFAULT)


def test_a_threshold_refuses_at_most_what_was_asked_for() -> None:
    questions = planted(300, (1.5, 2.0, 0.5, 1.0, 0.0, 0.0), 6)
    calibration, report = calibrate([questions], DEFAULT, 0.05)
    at = rates(calibration.hybrid, flat(questions), report.threshold)
    assert 0.03 < at.false_refusals <= 0.05
    assert threshold(calibration.hybrid, flat(questions), 0.2) > report.threshold
    assert report.questions == report.found == 300
    assert report.first > 0.5
    # Of the halves that were not fitted on: not far from what was asked for.
    assert 0.01 < report.false_refusals < 0.12
    assert 0 < report.false_answers < 1


def test_a_calibration_is_kept_for_its_embedder(tmp_path: Path) -> None:
    calibrations = Calibrations(tmp_path)
    assert calibrations.of("e5:1", "embedded") == CALIBRATIONS["embedded"]
    assert (calibrations.of("x:1", "x"), calibrations.source("x:1", "x")) == (DEFAULT, "default")
    own = fit([flat(planted(100, (1.0,) * 6, 7))], CALIBRATIONS["embedded"])
    calibrations.store("e5:1", own)
    again = Calibrations(tmp_path)
    assert calibrations.of("e5:1", "embedded") == again.of("e5:1", "embedded") == own
    assert again.source("e5:1", "embedded") == "own"
    # Another embedder's similarities mean something else.
    assert again.of("e5:2", "embedded") == CALIBRATIONS["embedded"]
    again.forget()
    assert not (tmp_path / FILE).exists()
    assert again.of("e5:1", "embedded") == CALIBRATIONS["embedded"]


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", json.dumps({"fingerprint": "e5:1", "hybrid": 1}), "\x00"])
def test_a_damaged_file_is_told_and_left_alone(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_text(content)
    assert Calibrations(tmp_path).of("e5:1", "embedded") == CALIBRATIONS["embedded"]
    assert FILE in caplog.text
    assert (tmp_path / FILE).read_text() == content


def test_a_model_has_a_weight_for_each_feature() -> None:
    with pytest.raises(ValueError, match="nearness"):
        Calibration(replace(DEFAULT.hybrid, weights=(1.0,)), DEFAULT.words)
    assert len(Model((0.0,) * len(FEATURES), 0, 0, 0, 0, 0, 0).weights) == len(FEATURES)
