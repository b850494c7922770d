"""L1-penalized logistic regression along a path of C.

min over w, b of C · Σ_i log(1 + exp(−y_i (x_i·w + b))) + ‖w‖₁, with the intercept b unpenalized:
the objective of scikit-learn's LogisticRegression(l1_ratio=1). skglm minimizes it divided by C·n,
so its alpha is 1 / (C·n).
"""

import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from hq.errors import HQError

SOLVER = "skglm.ProxNewton"
# Largest violation of the optimality conditions, relative to the L1 weight alpha. The looser values
# are tried where the rounding noise of float32 exceeds the first; `L1Path.tolerances` records which
# one each fit met.
TOLERANCE = 1e-3
_TOLERANCES = (TOLERANCE, 1e-2, 1e-1)
_MAX_ITERATIONS = 50
# Weights with a smaller absolute value are set to 0.
_ZERO = 1e-8
_WORKING = 250  # columns with the largest gradients that a fit sees
_BLOCK = 4096  # columns of which moments are computed at a time
_LOW = 1e-2  # a smaller share of the mean square loses digits in float32
_CONSTANT = 1e-12  # a smaller share of the mean square is rounding, and the column constant
_CHUNK = 4  # values of C between two checks of all columns


class L1Path(NamedTuple):
    """Solutions along increasing C."""

    Cs: Float[np.ndarray, " c"]
    coefs: Float[np.ndarray, "c p"]
    intercepts: Float[np.ndarray, " c"]
    tolerances: Float[np.ndarray, " c"]  # met by each fit: TOLERANCE, unless it did not converge

    @property
    def n_nonzero(self) -> Int[np.ndarray, " c"]:
        """Number of non-zero weights of each solution."""
        counts: Int[np.ndarray, " c"] = np.count_nonzero(self.coefs, axis=1)
        return counts


class Columns(NamedTuple):
    """Standardised columns of some rows of a matrix, computed only where they are needed.

    Entry (i, j) is (X[rows[i], j] − mean[j]) / scale[j]. Folds of one matrix share X, so no fold
    copies it.
    """

    X: Float[np.ndarray, "n p"]  # float32; Fortran order is fastest
    rows: Int[np.ndarray, " m"]
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]

    @classmethod
    def of(cls, Z: Float[np.ndarray, "m p"]) -> "Columns":
        """The columns of a matrix that is standardised already (copied unless float32, Fortran)."""
        m, p = Z.shape
        design = np.asfortranarray(Z, dtype=np.float32)
        return cls(design, np.arange(m), np.zeros(p, np.float32), np.ones(p, np.float32))

    @classmethod
    def parts(
        cls, Z: Float[np.ndarray, "n p"], parts: "Sequence[Int[np.ndarray, ' m']]"
    ) -> "list[Columns]":
        """The columns of several parts of the rows, each standardised by its own rows.

        Moments of all parts are computed in one pass over Z. The columns of Z must have a mean near
        0 and a variance near 1, so that float32 sums are accurate; those that vary little within
        some part are summed again in float64. A column that is constant in a part is zero there.
        """
        member = np.zeros((len(parts), len(Z)), dtype=np.float32)
        for part, rows in zip(member, parts, strict=True):
            part[rows] = 1 / len(rows)
        mean, square = (np.empty((len(parts), Z.shape[1])) for _ in range(2))
        for start in range(0, Z.shape[1], _BLOCK):
            block = Z[:, start : start + _BLOCK]
            mean[:, start : start + _BLOCK] = member @ block
            square[:, start : start + _BLOCK] = member @ (block * block)
        low = np.flatnonzero((square - mean**2 < _LOW * square).any(axis=0))
        for i, rows in enumerate(parts):
            values = Z[np.ix_(rows, low)].astype(np.float64)
            mean[i, low], square[i, low] = values.mean(axis=0), (values**2).mean(axis=0)
        variance = square - mean**2
        with np.errstate(invalid="ignore"):
            scale = np.where(variance > _CONSTANT * square, np.sqrt(variance), np.inf)
        of_parts = zip(parts, mean.astype(np.float32), scale.astype(np.float32), strict=True)
        return [cls(Z, rows, m, s) for rows, m, s in of_parts]

    def dense(self, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "m k"]:
        """These columns as an array, float32 in Fortran order."""
        values = self.X[np.ix_(self.rows, columns)].astype(np.float64)
        values = (values - self.mean[columns]) / self.scale[columns]
        return np.asfortranarray(values, dtype=np.float32)


def smallest_c(Z: Float[np.ndarray, "m p"] | Columns, y: Int[np.ndarray, " m"]) -> float:
    """Return the largest C at which every weight is zero: 1 / max_j |Σ_i z_ij (y_i − ȳ)|.

    Z is standardized. Raises HQError if no column varies with y.
    """
    columns = Z if isinstance(Z, Columns) else Columns.of(Z)
    (gradients,) = _gradients([columns], [(y - y.mean())[:, None]])
    if not gradients.any():
        raise HQError("No feature varies with the label: check that the traces are not constant.")
    return 1.0 / float(gradients.max())


def l1_path(
    Z: Float[np.ndarray, "m p"] | Columns,
    y: Int[np.ndarray, " m"],
    Cs: Sequence[float],
    max_nonzero: int | None = None,
) -> L1Path:
    """Fit each C in ascending order: `l1_paths` of one problem.

    Z is an array of standardised features (copied unless it is float32 in Fortran order), or
    columns that are standardised where they are needed.
    """
    columns = Z if isinstance(Z, Columns) else Columns.of(Z)
    return l1_paths([columns], [y], [Cs], max_nonzero)[0]


def l1_paths(
    parts: Sequence[Columns],
    labels: Sequence[Int[np.ndarray, " m"]],
    Cs: Sequence[Sequence[float]],
    max_nonzero: int | None = None,
) -> list[L1Path]:
    """Fit the paths of several problems, which are parts of the rows of one matrix.

    Each C is fitted in ascending order, warm-started from the previous solution, by proximal Newton
    (skglm, Bertrand et al. 2022) on the few hundred columns with the largest gradients. The
    optimality conditions of all columns are then checked, for several C of all problems in one
    matrix product. Columns that violate them are added, and the C is fitted again, so the solution
    is that of the full problem (Tibshirani et al. 2012, "Strong rules for discarding predictors in
    lasso-type problems", section 7). This is fast for up to about 100 non-zero weights; with
    several hundred, a fit of all columns is faster. Raises HQError if a fit does not converge. The
    first call of a process compiles for about 8 s (see `warm_up`).

    Args:
        parts: The columns of each problem, all of one matrix.
        labels: Labels of each problem, 0 or 1.
        Cs: The values of C of each problem, in any order.
        max_nonzero: A path ends after the first solution with more non-zero weights.
    """
    centred = [(y - y.mean())[:, None] for y in labels]
    paths = [
        _Path(columns, y, sorted(of_problem), max_nonzero, gradient[:, 0])
        for columns, y, of_problem, gradient in zip(
            parts, labels, Cs, _gradients(parts, centred), strict=True
        )
    ]
    while unfinished := [path for path in paths if not path.finished]:
        residuals = [path.propose() for path in unfinished]
        gradients = _gradients([path.columns for path in unfinished], residuals)
        for path, of_path in zip(unfinished, gradients, strict=True):
            path.accept(of_path)
    return [path.result() for path in paths]


def _gradients(
    parts: Sequence[Columns], residuals: Sequence[Float[np.ndarray, "m c"]]
) -> list[Float[np.ndarray, "p c"]]:
    """Return |inner product| of every column with each residual vector, for each problem."""
    widths = [r.shape[1] for r in residuals]
    X = parts[0].X
    spread = np.zeros((len(X), sum(widths)), dtype=np.float32, order="F")
    ends = np.cumsum(widths)
    for columns, r, end in zip(parts, residuals, ends, strict=True):
        spread[columns.rows, end - r.shape[1] : end] = r
    products = X.T @ spread
    gradients = []
    for columns, r, end in zip(parts, residuals, ends, strict=True):
        of_part = products[:, end - r.shape[1] : end]
        of_part -= np.outer(columns.mean, r.sum(axis=0))
        gradients.append(np.abs(of_part / columns.scale[:, None]))
    return gradients


class _Path:
    """The solutions of one problem, on a working set of columns that grows where it must."""

    def __init__(
        self,
        columns: Columns,
        y: Int[np.ndarray, " m"],
        Cs: Sequence[float],
        max_nonzero: int | None,
        gradient: Float[np.ndarray, " p"],
    ) -> None:
        self.columns = columns
        self._signs = np.where(y == 1, 1, -1).astype(np.float32)
        self._Cs = Cs
        self._max_nonzero = max_nonzero
        self._gradient = gradient  # at the last accepted solution
        self._fits: list[Float[np.ndarray, " p1"]] = []
        self._tolerances: list[float] = []
        self._proposed: list[tuple[Float[np.ndarray, " p1"], float]] = []
        self._working = np.zeros(0, dtype=np.int64)
        self._added = np.zeros(0, dtype=np.int64)  # columns that the last fit lacked

    @property
    def finished(self) -> bool:
        """Whether all C are fitted, or the last solution has too many weights."""
        return len(self._fits) == len(self._Cs) or (
            bool(self._fits) and self._is_over(self._fits[-1])
        )

    def propose(self) -> Float[np.ndarray, "m c"]:
        """Fit the next few C on the working set, and return the residuals of each."""
        last = self._fits[-1] if self._fits else np.zeros(len(self._gradient) + 1, np.float32)
        count = min(_WORKING, len(self._gradient))
        largest = np.argpartition(self._gradient, -count)[-count:]
        used = np.flatnonzero(last[:-1])
        self._working = np.unique(np.concatenate([largest, used, self._added]))
        design = self.columns.dense(self._working)
        start = np.append(last[self._working], last[-1])
        self._proposed = []
        residuals = []
        for C in self._Cs[len(self._fits) : len(self._fits) + _CHUNK]:
            start, tolerance = _fit(design, self._signs, C, start)
            self._proposed.append((start, tolerance))
            residuals.append(self._signs * expit(-self._signs * _decision(design, start)))
            if self._is_over(start):
                break
        return np.stack(residuals, axis=1)

    def accept(self, gradients: Float[np.ndarray, "p c"]) -> None:
        """Keep the proposed solutions up to the first that violates an optimality condition."""
        Cs = self._Cs[len(self._fits) : len(self._fits) + len(self._proposed)]
        bounds = [(1 + tolerance) / C for (_, tolerance), C in zip(self._proposed, Cs, strict=True)]
        beyond = gradients > np.array(bounds)
        beyond[self._working] = False
        wrong = beyond.any(axis=0)
        count = int(wrong.argmax()) if wrong.any() else len(self._proposed)
        for weights, tolerance in self._proposed[:count]:
            fit = np.zeros(len(self._gradient) + 1, dtype=np.float32)
            fit[self._working], fit[-1] = weights[:-1], weights[-1]
            self._fits.append(fit)
            self._tolerances.append(tolerance)
        missing = np.flatnonzero(beyond[:, count]) if wrong.any() else self._added[:0]
        # Added columns are kept while a C is repeated, so that the working set only grows.
        self._added = missing if count else np.concatenate([self._added, missing])
        if count:
            self._gradient = gradients[:, count - 1]

    def result(self) -> L1Path:
        """Return the accepted solutions."""
        stacked = np.stack(self._fits)
        Cs = np.array(self._Cs[: len(self._fits)])
        return L1Path(Cs, stacked[:, :-1], stacked[:, -1], np.array(self._tolerances))

    def _is_over(self, weights: Float[np.ndarray, " k1"]) -> bool:
        limit = self._max_nonzero
        return limit is not None and int(np.count_nonzero(weights[:-1])) > limit


def objective(
    Z: Float[np.ndarray, "n p"],
    y: Int[np.ndarray, " n"],
    coef: Float[np.ndarray, " p"],
    intercept: float,
    C: float,
) -> float:
    """Return C · Σ log-loss + ‖w‖₁ of a solution, in float64."""
    used = np.flatnonzero(coef)
    decision = Z[:, used].astype(np.float64) @ coef[used].astype(np.float64) + intercept
    loss = np.logaddexp(0, np.where(y == 1, -decision, decision)).sum()
    return float(C * loss + np.abs(coef).sum(dtype=np.float64))


def warm_up() -> float:
    """Compile the solver for this process on a small problem, and return the seconds it took.

    numba cannot cache it on disk: its cache keys contain the address of skglm's jitclasses, which
    differs between processes.
    """
    rng = np.random.default_rng(0)
    Z = rng.standard_normal((64, 16), dtype=np.float32)
    start = time.perf_counter()
    l1_path(Z, (Z[:, 0] > 0).astype(np.int64), [1.0])
    return time.perf_counter() - start


def _fit(
    Z: Float[np.ndarray, "n p"],
    signs: Float[np.ndarray, " n"],
    C: float,
    start: Float[np.ndarray, " p1"],
) -> tuple[Float[np.ndarray, " p1"], float]:
    """Return the weights with the intercept last, and the tolerance met; HQError if none is met."""
    # skglm and numba take seconds to import, so only a fit imports them.
    from skglm.penalties import L1
    from skglm.solvers import ProxNewton
    from sklearn.exceptions import ConvergenceWarning

    from hq.probe.datafit import StableLogistic

    alpha = 1.0 / (C * len(signs))
    w: Float[np.ndarray, " p1"] = start
    for tolerance in _TOLERANCES:
        solver = ProxNewton(
            tol=tolerance * alpha, max_iter=_MAX_ITERATIONS, max_pn_iter=50, fit_intercept=True
        )
        with warnings.catch_warnings():
            # Convergence is checked below, by the violation that the solver returns.
            warnings.simplefilter("ignore", ConvergenceWarning)
            w, _, violation = solver.solve(
                Z, signs, StableLogistic(), L1(alpha), w.copy(), _decision(Z, w)
            )
        if violation <= tolerance * alpha:
            w[:-1][np.abs(w[:-1]) < _ZERO] = 0
            return w, tolerance
    raise HQError(
        f"The L1 fit does not converge at C = {C:g}: collect more samples, or lower max_fraction, "
        "which ends the path sooner."
    )


def _decision(Z: Float[np.ndarray, "n p"], w: Float[np.ndarray, " p1"]) -> Float[np.ndarray, " n"]:
    """Return Z·w + b, summed in float64 so that errors do not accumulate along a path."""
    used = np.flatnonzero(w[:-1])
    decision = Z[:, used].astype(np.float64) @ w[used] + w[-1]
    return np.asarray(decision, dtype=np.float32)
