"""Conformal thresholds: simulations of the guarantee, its algebra, and bad input."""

from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.regression import SplitConformalRegressor
from scipy.stats import norm
from sklearn.dummy import DummyRegressor

from hq.errors import HQError
from hq.stats.conformal import (
    conformal_threshold,
    entities_needed,
    rate_of_calibration,
    require_enough,
)

finite = st.floats(-100, 100, allow_nan=False)
# Few distinct values, so that most scores tie.
tied = st.integers(-3, 3).map(float)
rates = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
DRAWS = 3000


def within(found: float, draws: np.ndarray) -> float:
    """Four standard errors of a mean of draws."""
    return float(4 * draws.std() / np.sqrt(len(draws)))


@pytest.mark.parametrize(
    ("n", "false_alarms"), [(9, 0.1), (18, 0.1), (19, 0.05), (30, 0.1), (50, 0.25), (1, 0.5)]
)
def test_the_promise_holds_and_is_not_slack(n, false_alarms):
    """Mean rate over calibrations: at most ε, and at least ε − 1/(n + 1) for scores without ties."""
    rng = np.random.default_rng(n)
    thresholds = np.array(
        [conformal_threshold(rng.standard_normal(n), false_alarms) for _ in range(DRAWS)]
    )
    realised = norm.sf(thresholds)  # the rate of each calibration, exactly
    margin = within(realised.mean(), realised)
    assert realised.mean() <= false_alarms + margin
    assert realised.mean() >= false_alarms - 1 / (n + 1) - margin
    # The exact value: all n + 1 ranks are equally likely.
    assert realised.mean() == pytest.approx(
        int((n + 1) * false_alarms + 1e-9) / (n + 1), abs=margin
    )


def test_the_promise_is_about_entities_not_answers():
    """Entities with more answers score higher: treating answers as independent would fail."""
    rng, n, false_alarms = np.random.default_rng(0), 18, 0.1
    by_entity, by_answer = [], []
    for _ in range(DRAWS):
        sizes = np.where(rng.random(n + 1) < 0.2, 1, 20)
        entity = np.repeat(np.arange(n + 1), sizes)
        level = np.where(sizes == 1, 3.0, 0.0) + rng.standard_normal(n + 1)
        scores = level[entity] + 0.3 * rng.standard_normal(len(entity))
        old = entity < n
        for found, groups in ((by_entity, entity[old]), (by_answer, None)):
            threshold = conformal_threshold(scores[old], false_alarms, groups)
            found.append((scores[~old] >= threshold).mean())
    assert np.mean(by_entity) <= false_alarms + within(0, np.array(by_entity))
    assert np.mean(by_answer) > 1.3 * false_alarms


@pytest.mark.parametrize("false_alarms", [0.1, 0.3])
def test_ties_never_break_the_promise(false_alarms):
    """Scores of five values, the largest much larger: ties at the threshold are flagged."""
    rng, n = np.random.default_rng(2), 12
    chances = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    above = np.r_[np.cumsum(chances[::-1])[::-1], 0.0]  # P(score ≥ v)
    realised = np.array(
        [
            above[np.searchsorted(np.arange(5.0), conformal_threshold(draw, false_alarms))]
            for draw in rng.choice(5, p=chances, size=(DRAWS, n)).astype(float)
        ]
    )
    assert realised.mean() <= false_alarms


@given(st.lists(st.one_of(finite, tied), min_size=1, max_size=40), rates)
def test_it_is_the_order_statistic_of_split_conformal_prediction(scores, false_alarms):
    n = len(scores)
    place = ceil((n + 1) * (1 - Fraction(str(false_alarms))))
    if place > n:
        with pytest.raises(HQError, match="needs right answers about"):
            conformal_threshold(scores, false_alarms)
        return
    threshold = conformal_threshold(scores, false_alarms)
    kth = sorted(scores)[place - 1]
    assert threshold > kth
    assert np.nextafter(threshold, -np.inf) == kth
    assert (np.array(scores) >= threshold).sum() <= n - place
    # The step by which the guarantee is proven: among n + 1 exchangeable scores at most a share
    # ε lies above this rank.
    assert (n + 1 - place) <= false_alarms * (n + 1) + 1e-9


@pytest.mark.parametrize(("n", "false_alarms"), [(21, 0.05), (57, 0.1), (199, 0.1), (200, 0.2)])
def test_it_is_the_interval_of_mapie(n, false_alarms):
    """MAPIE's interval around a prediction of 0 ends at the largest score without an alarm."""
    scores, features = np.random.default_rng(n).random(n), np.zeros((n, 1))
    zero = DummyRegressor(strategy="constant", constant=0.0).fit(features, scores)
    split = SplitConformalRegressor(zero, confidence_level=1 - false_alarms, prefit=True)
    _, limits = split.conformalize(features, scores).predict_interval(features[:1])
    assert conformal_threshold(scores, false_alarms) == np.nextafter(limits[0, 1, 0], np.inf)


@given(st.lists(tied, min_size=20, max_size=60), st.integers(1, 6), rates)
def test_copies_of_an_entitys_answers_change_nothing(scores, copies, false_alarms):
    entities = np.arange(len(scores))
    alone = conformal_threshold(scores, false_alarms, entities)
    rng = np.random.default_rng(copies)
    repeats = rng.integers(1, copies + 1, len(scores))
    order = rng.permutation(repeats.sum())
    many = conformal_threshold(
        np.repeat(scores, repeats)[order], false_alarms, np.repeat(entities, repeats)[order]
    )
    assert many == alone == conformal_threshold(scores, false_alarms)


@given(st.lists(finite, min_size=20, max_size=40), st.integers(0, 2**32 - 1))
def test_a_lower_rate_takes_a_higher_threshold(scores, seed):
    entities = np.random.default_rng(seed).integers(0, 30, len(scores))
    enough = [r for r in (0.5, 0.3, 0.2, 0.1) if entities_needed(r) <= len(set(entities.tolist()))]
    found = [conformal_threshold(scores, rate, entities) for rate in enough]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("false_alarms", "needed"), [(0.5, 1), (0.2, 4), (0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3)]
)
def test_how_many_entities_a_promise_takes(false_alarms, needed):
    assert entities_needed(false_alarms) == needed
    assert np.isfinite(conformal_threshold(np.arange(float(needed)), false_alarms))
    require_enough(needed, false_alarms)
    with pytest.raises(HQError, match=f"needs right answers about {needed} entities"):
        conformal_threshold(np.arange(needed - 1.0), false_alarms)


def test_answers_are_no_substitute_for_entities():
    with pytest.raises(HQError, match="calibration has 3"):
        conformal_threshold(np.arange(90.0), 0.1, np.repeat([0, 1, 2], 30))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_rate_lies_between_0_and_1(rate):
    with pytest.raises(HQError, match="between 0 and 1"):
        conformal_threshold([1.0, 2.0], rate)


@pytest.mark.parametrize("scores", [[np.nan], [np.inf, 1.0], [[1.0]]])
def test_scores_must_be_finite(scores):
    with pytest.raises(HQError, match="finite"):
        conformal_threshold(scores, 0.5)


def test_each_score_has_an_entity():
    with pytest.raises(HQError, match="2 entities for 3 answers"):
        conformal_threshold([1.0, 2.0, 3.0], 0.5, np.array([0, 1]))


@pytest.mark.parametrize(("n", "false_alarms"), [(18, 0.1), (50, 0.2)])
def test_how_far_one_calibration_may_be_off(n, false_alarms):
    rng = np.random.default_rng(3)
    realised = norm.sf(
        [conformal_threshold(rng.standard_normal(n), false_alarms) for _ in range(DRAWS)]
    )
    bound = rate_of_calibration(n, false_alarms)
    assert bound > false_alarms
    assert (realised <= bound).mean() == pytest.approx(0.95, abs=0.02)


def test_a_calibration_too_small_has_no_rate():
    with pytest.raises(HQError, match="needs right answers"):
        rate_of_calibration(8, 0.1)


@given(st.lists(st.one_of(finite, tied), min_size=9, max_size=30), st.integers(0, 2**32 - 1), rates)
def test_it_is_the_quantile_of_the_weighted_distribution(scores, seed, false_alarms):
    """The definition of the paper: entities and infinity have the weight 1/(n + 1) each."""
    entities = np.random.default_rng(seed).integers(0, 12, len(scores))
    of_each = [
        [s for s, e in zip(scores, entities, strict=True) if e == name] for name in set(entities)
    ]
    n, wanted = len(of_each), 1 - Fraction(str(false_alarms))

    def below(q):
        return sum(Fraction(sum(s <= q for s in mine), len(mine)) for mine in of_each) / (n + 1)

    reached = [q for q in sorted(scores) if below(q) >= wanted]
    if reached:
        expected = np.nextafter(reached[0], np.inf)
        assert conformal_threshold(scores, false_alarms, entities) == expected
    else:
        with pytest.raises(HQError, match="needs right answers"):
            conformal_threshold(scores, false_alarms, entities)
