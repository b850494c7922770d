import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hq.errors import HQError
from hq.neurons.features import standardise
from hq.probe.l1 import TOLERANCE, l1_path, objective, smallest_c


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.lognormal(-7, 1, (200, 400)).astype(np.float32)
    logs = np.log(X)
    y = (logs[:, 3] + logs[:, 90] - logs[:, 200] + rng.logistic(size=200) > -7).astype(np.int64)
    return standardise(X).Z, y


@pytest.mark.parametrize("C", [0.05, 0.2, 1.0])
def test_the_objective_is_liblinears_or_lower(problem, C):
    Z, y = problem
    path = l1_path(Z, y, [C])
    theirs = LogisticRegression(
        solver="liblinear", l1_ratio=1, C=C, intercept_scaling=100.0, tol=1e-8, max_iter=1000
    ).fit(Z.astype(np.float64), y)
    ours = objective(Z, y, path.coefs[0], path.intercepts[0], C)
    best = objective(Z, y, theirs.coef_[0], theirs.intercept_[0], C)
    assert ours <= best * (1 + 1e-4)


def test_the_optimality_conditions_hold(problem):
    Z, y = problem
    path = l1_path(Z, y, [0.1])
    w, b = path.coefs[0].astype(np.float64), float(path.intercepts[0])
    residual = 1 / (1 + np.exp(-(Z @ w + b))) - y
    pull = 0.1 * (Z.T @ residual)
    assert abs(0.1 * residual.sum()) < 5e-3
    assert np.abs(pull).max() < 1 + 5e-3
    np.testing.assert_allclose(pull[w != 0], -np.sign(w[w != 0]), atol=5e-3)


def test_a_warm_start_ends_where_a_cold_one_does(problem):
    Z, y = problem
    path = l1_path(Z, y, [0.4, 0.05, 0.1])
    assert path.Cs.tolist() == [0.05, 0.1, 0.4]
    for C, coef, intercept, _ in zip(*path, strict=True):
        cold = l1_path(Z, y, [C])
        assert objective(Z, y, coef, intercept, C) == pytest.approx(
            objective(Z, y, cold.coefs[0], cold.intercepts[0], C), rel=1e-5
        )


def test_nothing_is_selected_up_to_the_smallest_c(problem):
    Z, y = problem
    c = smallest_c(Z, y)
    below, above = l1_path(Z, y, [0.99 * c, 1.05 * c]).n_nonzero
    assert below == 0
    assert above >= 1


def test_the_path_ends_after_the_first_fit_over_the_cap(problem):
    Z, y = problem
    Cs = [0.05, 0.1, 0.5, 2.0, 5.0]
    full, cut = l1_path(Z, y, Cs), l1_path(Z, y, Cs, max_nonzero=20)
    over = int(np.argmax(full.n_nonzero > 20))
    assert 0 < over < len(Cs) - 1
    np.testing.assert_array_equal(cut.n_nonzero, full.n_nonzero[: over + 1])


def test_labels_may_be_small_unsigned_integers(problem):
    Z, y = problem
    np.testing.assert_array_equal(
        l1_path(Z, y.astype(np.uint8), [0.1]).coefs, l1_path(Z, y, [0.1]).coefs
    )


def test_constant_columns_are_never_selected(problem):
    Z, y = problem
    holed = Z.copy()
    holed[:, :300] = 0
    assert (l1_path(holed, y, [5.0]).coefs[:, :300] == 0).all()


def test_huge_outliers_stay_finite():
    """Margins beyond 88, where float32's exp overflows."""
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((100, 30)).astype(np.float32)
    y = (Z[:, 0] > 0).astype(np.int64)
    Z[:3, 0] = [-500.0, 300.0, -400.0]
    y[:3] = [1, 0, 0]
    assert np.isfinite(l1_path(Z, y, [0.1, 1.0]).coefs).all()


def test_features_without_any_signal_are_refused():
    with pytest.raises(HQError, match="No feature varies"):
        smallest_c(np.zeros((4, 3), dtype=np.float32), np.array([0, 1, 0, 1]))


def test_a_fit_that_does_not_converge_is_refused(problem, monkeypatch):
    monkeypatch.setattr("hq.probe.l1._MAX_ITERATIONS", 1)
    with pytest.raises(HQError, match=r"does not converge at C = 2: .* lower max_fraction"):
        l1_path(*problem, [2.0])


def test_importing_is_light():
    code = (
        "import sys, hq.probe.identify, hq.probe.controls, hq.stats.thresholds;"
        "print([m for m in ('skglm', 'numba', 'sklearn') if m in sys.modules])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert loaded.stdout.strip() == "[]"


def test_a_path_tells_the_tolerance_that_each_fit_met(problem, monkeypatch):
    assert l1_path(*problem, [0.1, 0.2]).tolerances.tolist() == [TOLERANCE] * 2
    # No float32 fit meets the first of these.
    monkeypatch.setattr("hq.probe.l1._TOLERANCES", (1e-12, 1e-2))
    assert l1_path(*problem, [0.1, 0.2]).tolerances.tolist() == [1e-2] * 2
