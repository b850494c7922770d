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


def smallest_c(Z: Float[np.ndarray, "n p"], y: Int[np.ndarray, " n"]) -> float:
    """Return the largest C at which every weight is zero: 1 / max_j |Σ_i z_ij (y_i − ȳ)|.

    Z is standardized. Raises HQError if no column varies with y.
    """
    gradient = float(np.abs((y - y.mean()).astype(Z.dtype) @ Z).max())
    if gradient == 0:
        raise HQError("No feature varies with the label: check that the traces are not constant.")
    return 1.0 / gradient


def l1_path(
    Z: Float[np.ndarray, "n p"],
    y: Int[np.ndarray, " n"],
    Cs: Sequence[float],
    max_nonzero: int | None = None,
) -> L1Path:
    """Fit each C in ascending order, warm-started from the previous solution.

    Z is standardized (copied unless it is float32 in Fortran order), y is 0 or 1. With
    `max_nonzero` the path ends after the first solution with more non-zero weights. The solver is
    proximal Newton with working sets (skglm, Bertrand et al. 2022). Raises HQError if a fit does
    not converge. The first call of a process compiles for about 8 s (see `warm_up`).
    """
    design = np.asfortranarray(Z, dtype=np.float32)
    signs = np.where(y == 1, 1, -1).astype(np.float32)
    w = np.zeros(design.shape[1] + 1, dtype=np.float32)  # the intercept is last
    fits: list[Float[np.ndarray, " p1"]] = []
    tolerances: list[float] = []
    ascending = sorted(Cs)
    for c in ascending:
        w, tolerance = _fit(design, signs, c, w)
        fits.append(w)
        tolerances.append(tolerance)
        if max_nonzero is not None and np.count_nonzero(w[:-1]) > max_nonzero:
            break
    stacked = np.stack(fits)
    fitted = np.array(ascending[: len(fits)])
    return L1Path(fitted, stacked[:, :-1], stacked[:, -1], np.array(tolerances))


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
