"""L1-penalized logistic regression along a path of C.

min over w, b of C · Σ_i log(1 + exp(−y_i (x_i·w + b))) + ‖w‖₁, with the intercept b unpenalized:
the objective of scikit-learn's LogisticRegression(l1_ratio=1). skglm minimizes it divided by C·n,
so its alpha is 1 / (C·n).
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from hq.errors import HQError
from hq.probe.matrix import InMemory, Matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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


@dataclass(frozen=True)
class L1Path:
    """Solutions along increasing C; their weights are stored without the zeros."""

    Cs: Float[np.ndarray, " c"]
    weights: "csr_array"  # [c, p], float32
    intercepts: Float[np.ndarray, " c"]
    tolerances: Float[np.ndarray, " c"]  # met by each fit: TOLERANCE, unless it did not converge

    @property
    def coefs(self) -> Float[np.ndarray, "c p"]:
        """The weights as an array, zeros included."""
        dense: Float[np.ndarray, "c p"] = self.weights.toarray()
        return dense

    def coef(self, c: int) -> Float[np.ndarray, " p"]:
        """The weights of one solution, zeros included."""
        dense: Float[np.ndarray, " p"] = self.weights[[c]].toarray()[0]
        return dense

    @property
    def n_nonzero(self) -> Int[np.ndarray, " c"]:
        """Number of non-zero weights of each solution."""
        return np.diff(self.weights.indptr)

    @property
    def n_positive(self) -> Int[np.ndarray, " c"]:
        """Number of positive weights of each solution."""
        positive: Int[np.ndarray, " c"] = (self.weights > 0).sum(axis=1)
        return positive

    def kept(self, chosen: Bool[np.ndarray, " c"]) -> "L1Path":
        """The chosen solutions."""
        parts = self.Cs, self.weights, self.intercepts, self.tolerances
        return L1Path(*(part[chosen] for part in parts))


class Columns(NamedTuple):
    """Standardised columns of some rows of a matrix, computed only where they are needed.

    Entry (i, j) is (X[rows[i], j] − mean[j]) / scale[j]. Folds of one matrix share X, so no fold
    copies it.
    """

    X: Matrix
    rows: Int[np.ndarray, " m"]
    mean: Float[np.ndarray, " p"]
    scale: Float[np.ndarray, " p"]

    @classmethod
    def of(cls, Z: Float[np.ndarray, "m p"]) -> "Columns":
        """The columns of a matrix that is standardised already (copied unless float32, Fortran)."""
        m, p = Z.shape
        return cls(InMemory(Z), np.arange(m), np.zeros(p, np.float32), np.ones(p, np.float32))

    @classmethod
    def parts(
        cls, Z: "Float[np.ndarray, 'n p'] | Matrix", parts: "Sequence[Int[np.ndarray, ' m']]"
    ) -> "list[Columns]":
        """The columns of several parts of the rows, each standardised by its own rows.

        Moments of all parts are computed in one pass over Z. The columns of Z must have a mean near
        0 and a variance near 1, so that float32 sums are accurate; those that vary little within
        some part are summed again in float64. A column that is constant in a part is zero there.
        """
        X = InMemory(Z) if isinstance(Z, np.ndarray) else Z
        n, p = X.shape
        member = np.zeros((len(parts), n), dtype=np.float32)
        for part, rows in zip(member, parts, strict=True):
            part[rows] = 1 / len(rows)
        mean, square = (np.empty((len(parts), p)) for _ in range(2))
        for at, block in X.blocks(_BLOCK):
            mean[:, at] = member @ block
            square[:, at] = member @ (block * block)
        low = np.flatnonzero((square - mean**2 < _LOW * square).any(axis=0))
        for i, rows in enumerate(parts):
            values = X.take(rows, low).astype(np.float64)
            mean[i, low], square[i, low] = values.mean(axis=0), (values**2).mean(axis=0)
        variance = square - mean**2
        with np.errstate(invalid="ignore"):
            scale = np.where(variance > _CONSTANT * square, np.sqrt(variance), np.inf)
        of_parts = zip(parts, mean.astype(np.float32), scale.astype(np.float32), strict=True)
        return [cls(X, rows, m, s) for rows, m, s in of_parts]

    def dense(self, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "m k"]:
        """These columns as an array, float32 in Fortran order."""
        values = self.X.take(self.rows, columns).astype(np.float64)
        values = (values - self.mean[columns]) / self.scale[columns]
        return np.asfortranarray(values, dtype=np.float32)


def smallest_c(Z: Float[np.ndarray, "m p"] | Columns, y: Int[np.ndarray, " m"]) -> float:
    """Return the largest C at which every weight is zero: 1 / max_j |Σ_i z_ij (y_i − ȳ)|.

    Z is standardized. Raises HQError if no column varies with y.
    """
    columns = Z if isinstance(Z, Columns) else Columns.of(Z)
    residual = (y - y.mean())[:, None]
    largest = max(float(of.max()) for _, (of,) in _gradients([columns], [residual]))
    if not largest:
        raise HQError("No feature varies with the label: check that the traces are not constant.")
    return 1.0 / largest


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
    paths = [
        _Path(columns, y, sorted(of_problem), max_nonzero)
        for columns, y, of_problem in zip(parts, labels, Cs, strict=True)
    ]
    _pass([(path, path.start()) for path in paths])
    while unfinished := [path for path in paths if not path.finished]:
        _pass([(path, path.propose()) for path in unfinished])
    return [path.result() for path in paths]


def _pass(proposals: "Sequence[tuple[_Path, Float[np.ndarray, 'm c']]]") -> None:
    """Show every column's gradients at proposed solutions to their paths: one pass over X."""
    paths = [path for path, _ in proposals]
    gradients = _gradients([path.columns for path in paths], [r for _, r in proposals])
    for at, of_block in gradients:
        for path, of_path in zip(paths, of_block, strict=True):
            path.see(at, of_path)
    for path in paths:
        path.accept()


def _gradients(
    parts: Sequence[Columns], residuals: Sequence[Float[np.ndarray, "m c"]]
) -> Iterator[tuple[slice, list[Float[np.ndarray, "b c"]]]]:
    """Yield |inner product| of columns with each residual vector, for each problem, by block."""
    widths = [r.shape[1] for r in residuals]
    X = parts[0].X
    spread = np.zeros((X.shape[0], sum(widths)), dtype=np.float32, order="F")
    ends = np.cumsum(widths)
    for columns, r, end in zip(parts, residuals, ends, strict=True):
        spread[columns.rows, end - r.shape[1] : end] = r
    for at, block in X.blocks():
        products = block.T @ spread
        gradients = []
        for columns, r, end in zip(parts, residuals, ends, strict=True):
            of_part = products[:, end - r.shape[1] : end]
            of_part -= np.outer(columns.mean[at], r.sum(axis=0))
            gradients.append(np.abs(of_part / columns.scale[at, None]))
        yield at, gradients


class _Fit(NamedTuple):
    """A solution on its working set; all other weights are zero."""

    working: Int[np.ndarray, " k"]
    weights: Float[np.ndarray, " k1"]  # with the intercept last
    tolerance: float

    @property
    def used(self) -> Int[np.ndarray, " u"]:
        """The columns with a non-zero weight, ascending."""
        return self.working[np.flatnonzero(self.weights[:-1])]

    def on(self, working: Int[np.ndarray, " k"]) -> Float[np.ndarray, " k1"]:
        """Its weights on another working set, which contains the used columns."""
        weights = np.zeros(len(working) + 1, dtype=np.float32)
        weights[np.searchsorted(working, self.used)] = self.weights[:-1][self.weights[:-1] != 0]
        weights[-1] = self.weights[-1]
        return weights


class _Path:
    """The solutions of one problem, on a working set of columns that grows where it must."""

    def __init__(
        self,
        columns: Columns,
        y: Int[np.ndarray, " m"],
        Cs: Sequence[float],
        max_nonzero: int | None,
    ) -> None:
        self.columns = columns
        self._y = y
        self._signs = np.where(y == 1, 1, -1).astype(np.float32)
        self._Cs = Cs
        self._max_nonzero = max_nonzero
        self._largest = np.zeros(0, dtype=np.int64)  # by gradient, at the last accepted solution
        self._fits: list[_Fit] = []
        self._proposed: list[_Fit] = []
        self._bounds = np.zeros(0)
        self._working = np.zeros(0, dtype=np.int64)
        self._added = np.zeros(0, dtype=np.int64)  # columns that the last fit lacked
        self._seen: list[_Seen] = []

    @property
    def finished(self) -> bool:
        """Whether all C are fitted, or the last solution has too many weights."""
        return len(self._fits) == len(self._Cs) or (
            bool(self._fits) and self._is_over(self._fits[-1].weights)
        )

    def start(self) -> Float[np.ndarray, "m 1"]:
        """Return the residuals without weights, whose gradients the first working set is from."""
        self._bounds, self._seen = np.array([np.inf]), [_Seen()]
        centred: Float[np.ndarray, "m 1"] = (self._y - self._y.mean())[:, None]
        return centred

    def propose(self) -> Float[np.ndarray, "m c"]:
        """Fit the next few C on the working set, and return the residuals of each."""
        none = np.zeros(0, dtype=np.int64)
        last = self._fits[-1] if self._fits else _Fit(none, np.zeros(1, np.float32), 0.0)
        self._working = np.unique(np.concatenate([self._largest, last.used, self._added]))
        design = self.columns.dense(self._working)
        start = last.on(self._working)
        self._proposed = []
        residuals = []
        Cs = self._Cs[len(self._fits) : len(self._fits) + _CHUNK]
        for C in Cs:
            start, tolerance = _fit(design, self._signs, C, start)
            self._proposed.append(_Fit(self._working, start, tolerance))
            residuals.append(self._signs * expit(-self._signs * _decision(design, start)))
            if self._is_over(start):
                break
        fits = zip(self._proposed, Cs, strict=False)
        self._bounds = np.array([(1 + fit.tolerance) / C for fit, C in fits])
        self._seen = [_Seen() for _ in self._proposed]
        return np.stack(residuals, axis=1)

    def see(self, at: slice, gradients: Float[np.ndarray, "b c"]) -> None:
        """Note the largest gradients of a block of columns, and those out of bounds."""
        inside = self._working[(self._working >= at.start) & (self._working < at.stop)] - at.start
        beyond = gradients > self._bounds
        beyond[inside] = False
        for seen, of_c, out in zip(self._seen, gradients.T, beyond.T, strict=True):
            seen.add(at.start, of_c, np.flatnonzero(out))

    def accept(self) -> None:
        """Keep the proposed solutions up to the first that violates an optimality condition."""
        count = next((i for i, s in enumerate(self._seen) if s.violates), len(self._seen))
        self._fits += self._proposed[:count]
        missing = self._seen[count].beyond if count < len(self._seen) else self._added[:0]
        # Added columns are kept while a C is repeated, so that the working set only grows.
        self._added = missing if count else np.concatenate([self._added, missing])
        if count:
            self._largest = self._seen[count - 1].largest

    def result(self) -> L1Path:
        """Return the accepted solutions."""
        from scipy.sparse import csr_array

        used = [fit.used for fit in self._fits]
        values = [fit.weights[:-1][fit.weights[:-1] != 0] for fit in self._fits]
        ends = np.cumsum([0, *map(len, used)])
        shape = (len(self._fits), self.columns.X.shape[1])
        parts = np.concatenate(values), np.concatenate(used), ends
        return L1Path(
            np.array(self._Cs[: len(self._fits)]),
            csr_array(parts, shape=shape),
            np.array([fit.weights[-1] for fit in self._fits]),
            np.array([fit.tolerance for fit in self._fits]),
        )

    def _is_over(self, weights: Float[np.ndarray, " k1"]) -> bool:
        limit = self._max_nonzero
        return limit is not None and int(np.count_nonzero(weights[:-1])) > limit


class _Seen:
    """What a pass over the columns found at one solution."""

    def __init__(self) -> None:
        self.largest = np.zeros(0, dtype=np.int64)  # columns with the largest gradients
        self._values = np.zeros(0, dtype=np.float32)
        self._beyond: list[Int[np.ndarray, " v"]] = []

    @property
    def beyond(self) -> Int[np.ndarray, " v"]:
        """Columns outside of the working set whose gradients are out of bounds."""
        return np.concatenate([self.largest[:0], *self._beyond])

    @property
    def violates(self) -> bool:
        """Whether there are any."""
        return any(map(len, self._beyond))

    def add(
        self, start: int, gradients: Float[np.ndarray, " b"], beyond: Int[np.ndarray, " v"]
    ) -> None:
        """Add a block of columns."""
        self._beyond.append(beyond + start)
        values = np.concatenate([self._values, gradients])
        columns = np.concatenate([self.largest, start + np.arange(len(gradients))])
        count = min(_WORKING, len(values))
        kept = np.argpartition(values, -count)[-count:]
        self.largest, self._values = columns[kept], values[kept]


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
