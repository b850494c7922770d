"""Thresholds of split conformal prediction compared with MAPIE's."""

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor

from hq.stats.conformal import conformal_threshold, entities_needed

regression = pytest.importorskip("mapie.regression")


@pytest.mark.parametrize("n", [21, 40, 57, 200])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_with_one_answer_per_entity_it_is_mapies_quantile(n, rate):
    """Around a prediction of 0, half of MAPIE's interval is the conformal quantile of |score|."""
    scores = np.random.default_rng(n).lognormal(0, 1, n)
    assert n >= entities_needed(rate)
    nothing = DummyRegressor(strategy="constant", constant=0.0).fit(np.zeros((1, 1)), [0.0])
    mapie = regression.SplitConformalRegressor(
        nothing, confidence_level=1 - rate, conformity_score="absolute", prefit=True
    )
    mapie.conformalize(np.zeros((n, 1)), scores)
    _, intervals = mapie.predict_interval(np.zeros((1, 1)))
    upper = float(intervals[0, 1, 0])
    assert conformal_threshold(scores, rate) == np.nextafter(upper, np.inf)
    assert upper in scores
