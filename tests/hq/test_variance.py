"""Shares of the variance between levels, against scipy and an additive design."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import f_oneway

from hq.errors import HQError
from hq.stats.variance import share_between


def test_it_agrees_with_the_f_statistic():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 4, 50)
    values = rng.standard_normal(50) + levels
    share = share_between(values, levels.astype(str))
    F = f_oneway(*(values[levels == level] for level in range(4))).statistic
    assert share == pytest.approx(3 * F / (3 * F + 46))  # η² = df1·F / (df1·F + df2)


def test_shares_of_an_additive_balanced_design_add_up_to_one():
    design = np.array(list(product(range(2), range(3), range(5))))
    effects = np.array([0.0, 1.0]), np.array([0.0, 2.0, 5.0]), np.arange(5) ** 1.5
    values = sum(effect[level] for effect, level in zip(effects, design.T, strict=True))
    shares = [share_between(values, level) for level in design.T]
    assert sum(shares) == pytest.approx(1)
    variances = [effect.var() for effect in effects]
    assert shares == pytest.approx([v / sum(variances) for v in variances])


def test_equal_values_have_no_variance_to_share():
    assert share_between(np.full(6, 0.1) + 0.2, np.arange(6) % 2) == 0


@pytest.mark.parametrize("levels", [np.array([]), np.arange(3)])
def test_each_value_needs_a_level(levels):
    with pytest.raises(HQError, match="one level per value"):
        share_between(np.zeros(2), levels)
