import subprocess
import sys

import numpy as np
import pytest
from skglm.penalties import L1
from skglm.solvers import ProxNewton
from sklearn.linear_model import LogisticRegression

from hq.errors import HQError
from hq.neurons.features import standardise
from hq.neurons.space import NeuronSpace
from hq.probe.datafit import StableLogistic
from hq.probe.l1 import TOLERANCE, Columns, _Path, l1_path, l1_paths, objective, smallest_c
from hq.probe.matrix import InMemory, Streamed, standardised


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.lognormal(-7, 1, (200, 400)).astype(np.float32)
    logs = np.log(X)
    y = (logs[:, 3] + logs[:, 90] - logs[:, 200] + rng.logistic(size=200) > -7).astype(np.int64)
    return standardise(X).Z, y


@pytest.mark.parametrize("C", [0.05, 0.2, 1.0])
def test_the_objective_is_at_most_that_of_liblinear(problem, C):
    Z, y = problem
    path = l1_path(Z, y, [C])
    liblinear = LogisticRegression(
        solver="liblinear", l1_ratio=1, C=C, intercept_scaling=100.0, tol=1e-6, max_iter=10000
    ).fit(Z.astype(np.float64), y)
    value = objective(Z, y, path.coefs[0], path.intercepts[0], C)
    assert value <= objective(Z, y, liblinear.coef_[0], liblinear.intercept_[0], C) * (1 + 1e-4)


def test_the_optimality_conditions_hold_for_all_columns(problem):
    Z, y = problem
    path = l1_path(Z, y, [0.1])
    w, b = path.coefs[0].astype(np.float64), float(path.intercepts[0])
    residual = 1 / (1 + np.exp(-(Z @ w + b))) - y
    gradient = 0.1 * (Z.T @ residual)
    assert abs(0.1 * residual.sum()) < 5e-3
    assert np.abs(gradient).max() < 1 + 5e-3
    np.testing.assert_allclose(gradient[w != 0], -np.sign(w[w != 0]), atol=5e-3)


def test_a_warm_start_ends_where_a_cold_one_does(problem):
    Z, y = problem
    path = l1_path(Z, y, [0.4, 0.05, 0.1])
    assert path.Cs.tolist() == [0.05, 0.1, 0.4]
    for C, coef, intercept in zip(path.Cs, path.coefs, path.intercepts, strict=True):
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
    with_constants = Z.copy()
    with_constants[:, :300] = 0
    assert (l1_path(with_constants, y, [5.0]).coefs[:, :300] == 0).all()


def test_huge_outliers_stay_finite():
    """Margins beyond 88, where float32's exp overflows."""
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((100, 30)).astype(np.float32)
    y = (Z[:, 0] > 0).astype(np.int64)
    Z[:3, 0] = [-500.0, 300.0, -400.0]
    y[:3] = [1, 0, 0]
    assert np.isfinite(l1_path(Z, y, [0.1, 1.0]).coefs).all()


def test_features_that_do_not_vary_raise_an_error():
    with pytest.raises(HQError, match="No feature varies"):
        smallest_c(np.zeros((4, 3), dtype=np.float32), np.array([0, 1, 0, 1]))


def test_a_fit_that_does_not_converge_raises_an_error(problem, monkeypatch):
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


def test_a_path_records_the_tolerance_of_each_fit(problem, monkeypatch):
    assert l1_path(*problem, [0.1, 0.2]).tolerances.tolist() == [TOLERANCE] * 2
    # No float32 fit meets the first of these.
    monkeypatch.setattr("hq.probe.l1._TOLERANCES", (1e-12, 1e-2))
    assert l1_path(*problem, [0.1, 0.2]).tolerances.tolist() == [1e-2] * 2


@pytest.fixture(scope="module")
def parts(problem) -> list[np.ndarray]:
    """Overlapping parts of the rows, such as the training rows of several folds."""
    rng = np.random.default_rng(1)
    return [np.sort(rng.choice(200, size, replace=False)) for size in (160, 120, 160)]


def test_parts_are_standardised_by_their_own_rows(problem, parts):
    """One column varies little in a part, so that its float32 moments would be inaccurate."""
    Z = problem[0].copy(order="F")
    Z[parts[0], 7] = 1.5 + 1e-3 * Z[parts[0], 7]
    for rows, columns in zip(parts, Columns.parts(Z, parts), strict=True):
        expected = standardise(Z[rows])
        np.testing.assert_allclose(columns.dense(np.arange(400)), expected.Z, atol=2e-4)
        np.testing.assert_allclose(columns.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(columns.scale, expected.scale, rtol=1e-4)


def test_a_column_that_is_constant_in_one_part_is_zero_there(problem):
    Z, y = problem[0].copy(order="F"), problem[1]
    halves = [np.arange(100), np.arange(100, 200)]
    Z[:100, 3], Z[100:, 3] = 1.7, Z[100:, 3] + 2 * y[100:]
    constant, varying = Columns.parts(Z, halves)
    assert not constant.dense(np.array([3])).any()
    assert varying.dense(np.array([3])).std() == pytest.approx(1, abs=1e-5)
    paths = l1_paths([constant, varying], [y[half] for half in halves], [[1.0], [1.0]])
    assert paths[0].coefs[0, 3] == 0
    assert paths[1].coefs[0, 3] > 0


def test_paths_of_several_problems_equal_single_fits(problem, parts):
    """Each has its own labels, values of C and end."""
    Z, y = problem
    columns, labels = Columns.parts(Z, parts), [y[rows] for rows in parts]
    labels[2] = 1 - labels[2]
    Cs = [[0.05, 0.1, 0.4], [0.3], np.geomspace(0.02, 5, 11).tolist()]
    paths = l1_paths(columns, labels, Cs, max_nonzero=40)
    assert [len(path.Cs) for path in paths[:2]] == [3, 1]
    assert 4 < len(paths[2].Cs) < 11
    for rows, of_part, path in zip(parts, labels, paths, strict=True):
        standardised = standardise(Z[rows]).Z
        for i, C in enumerate(path.Cs):
            alone = l1_path(standardised, of_part, [C])
            assert objective(
                standardised, of_part, path.coef(i), path.intercepts[i], C
            ) == pytest.approx(
                objective(standardised, of_part, alone.coefs[0], alone.intercepts[0], C), rel=1e-5
            )
            assert path.tolerances[i] == TOLERANCE


def test_columns_outside_of_the_first_working_set_are_found():
    """600 columns carry a common factor, and 20 weak ones matter once it is in the model."""
    rng = np.random.default_rng(2)
    n, factor_columns, weak = 300, 600, 20
    factor = rng.standard_normal(n)
    effects = rng.standard_normal((n, weak))
    X = np.hstack(
        [factor[:, None] + 0.5 * rng.standard_normal((n, factor_columns)), effects]
    ).astype(np.float32)
    odds = 3 * factor + 0.8 * effects.sum(axis=1)
    y = (odds + rng.logistic(size=n) > 0).astype(np.int64)
    Z = standardise(X).Z
    first = np.abs(Z.T @ (y - y.mean()))
    assert (first[-weak:] < np.sort(first)[-250]).all()  # none among the first working columns
    path = l1_path(Z, y, [0.2])
    coef, intercept = path.coef(0), path.intercepts[0]
    assert (coef[-weak:] != 0).sum() >= weak / 2
    residual = 1 / (1 + np.exp(-(Z @ coef + intercept))) - y
    assert 0.2 * np.abs(Z.T @ residual).max() < 1 + 2 * TOLERANCE


@pytest.fixture
def correlated() -> tuple[np.ndarray, np.ndarray]:
    """600 columns in groups of 12 with a correlation of 0.7, and labels that depend on 4."""
    rng = np.random.default_rng(5)
    factors = rng.standard_normal((150, 50)).repeat(12, axis=1)
    X = np.sqrt(0.7) * factors + np.sqrt(0.3) * rng.standard_normal((150, 600))
    odds = 1.5 * (X[:, 5] - X[:, 200] + X[:, 370] - X[:, 590])
    return X.astype(np.float32), (odds + rng.logistic(size=150) > 0).astype(np.int64)


def by_skglm(Z: np.ndarray, y: np.ndarray, C: float) -> tuple[np.ndarray, float]:
    """Weights and intercept of a fit on all columns in memory, with a tenth of the tolerance."""
    alpha = 1 / (C * len(y))
    solver = ProxNewton(tol=TOLERANCE / 10 * alpha, max_iter=50, max_pn_iter=50, fit_intercept=True)
    start = np.zeros(Z.shape[1] + 1, dtype=np.float32)
    signs = np.where(y == 1, 1, -1).astype(np.float32)
    w, _, _ = solver.solve(Z, signs, StableLogistic(), L1(alpha), start, 0 * signs)
    return w[:-1], float(w[-1])


@pytest.mark.parametrize("working", [2, 250])
def test_a_path_out_of_core_has_the_objectives_of_skglm(correlated, monkeypatch, working):
    """With two working columns, almost every column of a solution enters as a violator."""
    X, y = correlated
    accepted = []
    accept = _Path.accept
    monkeypatch.setattr("hq.probe.l1._WORKING", working)
    monkeypatch.setattr("hq.probe.matrix._NARROW", 64)
    monkeypatch.setattr(
        _Path,
        "accept",
        lambda path: (accepted.append([s.violates for s in path._seen]), accept(path)),
    )
    (columns,) = Columns.parts(Streamed([np.asfortranarray(X)]), [np.arange(150)])
    Z = standardise(X).Z
    Cs = (smallest_c(columns, y) * np.geomspace(1.1, 8, 8)).tolist()
    path = l1_path(columns, y, Cs)
    assert path.n_nonzero[-1] > 20
    assert any(map(any, accepted)) == (working == 2)
    for i, C in enumerate(Cs):
        found = objective(Z, y, path.coef(i), path.intercepts[i], C)
        assert found / objective(Z, y, *by_skglm(Z, y, C), C) - 1 <= 1e-6


def test_streamed_features_have_the_values_of_those_in_memory(problem):
    rng = np.random.default_rng(3)
    X = rng.lognormal(-7, 1, (50, 9000)).astype(np.float32)
    X[:, [0, 8500]] = 0.25  # constant
    arrays = [X[:20], X[20:]]
    whole, streamed = InMemory(standardise(X).Z), Streamed(arrays)
    assert streamed.shape == whole.shape == (50, 9000)
    blocks = list(streamed.blocks())
    assert len(blocks) == 2
    by_column = list(Streamed([np.asfortranarray(a) for a in arrays]).blocks())
    assert len(by_column) > 2
    np.testing.assert_array_equal(
        np.hstack([b for _, b in by_column]), np.hstack([b for _, b in blocks])
    )
    np.testing.assert_array_equal(np.hstack([b for _, b in blocks]), next(whole.blocks())[1])
    rows, columns = np.array([3, 19, 20, 49]), np.array([0, 17, 8500, 8999])
    np.testing.assert_array_equal(streamed.take(rows, columns), whole.take(rows, columns))
    for one, other in zip(streamed.moments, standardise(X)[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_streamed_fits_are_those_in_memory(problem, parts, monkeypatch):
    """Blocks of 64 columns, so that the largest gradients come from several of them."""
    monkeypatch.setattr("hq.probe.matrix._WIDTH", 64)
    Z, y = problem
    X = np.exp(Z.astype(np.float64)).astype(np.float32)
    whole = Columns.parts(standardise(X).Z, parts)
    streamed = Columns.parts(Streamed([X[:90], X[90:]]), parts)
    labels = [y[rows] for rows in parts]
    Cs = [np.geomspace(0.02, 2, 9).tolist()] * len(parts)
    for columns, of_part, one, other in zip(
        whole,
        labels,
        l1_paths(whole, labels, Cs, max_nonzero=40),
        l1_paths(streamed, labels, Cs, max_nonzero=40),
        strict=True,
    ):
        np.testing.assert_array_equal(one.Cs, other.Cs)
        design = columns.dense(np.arange(400))
        for i, C in enumerate(one.Cs):
            assert objective(
                design, of_part, other.coef(i), other.intercepts[i], C
            ) == pytest.approx(
                objective(design, of_part, one.coef(i), one.intercepts[i], C), rel=1e-6
            )
    assert smallest_c(streamed[0], labels[0]) == pytest.approx(
        smallest_c(whole[0], labels[0]), rel=1e-6
    )


def test_features_larger_than_the_limit_are_streamed(problem, monkeypatch):
    X = np.random.default_rng(4).lognormal(size=(30, 12)).astype(np.float32)
    space = NeuronSpace.of_widths([5, 7])
    whole = standardised([X, X], space)
    monkeypatch.setattr("hq.probe.matrix.IN_MEMORY", 4 * 60 * 12 - 1)
    streamed = standardised([X, X], space)
    assert isinstance(whole[0], InMemory)
    assert isinstance(streamed[0], Streamed)
    for one, other in zip(whole[1:], streamed[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    X[4, 6] = np.nan
    with pytest.raises(HQError, match=r"NaN or infinite, the first in row 4 at neuron \(1, 1\)"):
        standardised([X], space)
