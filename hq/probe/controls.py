"""Controls for an AUROC: random neurons, matched neurons, and probes on other features.

Random neurons alone are a weak control, because H-Neurons lie in certain layers and are not small.
Matched neurons have the block and the magnitude of the chosen ones.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.errors import HQError
from hq.neurons.space import NeuronSpace
from hq.stats.auroc import auroc
from hq.stats.intervals import Estimate

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# A normal distribution's standard deviation over its median absolute deviation.
_SD_PER_MAD = 1.4826


class Control(NamedTuple):
    """AUROC on the test rows of probes that were fitted on draws of neurons."""

    estimate: Estimate  # mean over draws, and the interval that contains 95% of them; n = draws
    per_draw: Float[np.ndarray, " draws"]  # AUROC of each
    decisions: Float[np.ndarray, "draws n"]  # decision value of each test row


def random_neurons(
    k: int, p: int, draws: int, seed: int, exclude: Iterable[int] = ()
) -> Int[np.ndarray, "draws k"]:
    """Draw k different neurons out of p without those in `exclude`, `draws` times: flat indices."""
    pool = np.setdiff1d(np.arange(p), np.fromiter(exclude, dtype=np.int64))
    if len(pool) < k:
        raise HQError(f"Only {len(pool)} neurons are left to draw {k} from: exclude fewer.")
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(pool, size=k, replace=False) for _ in range(draws)])


def outliers(magnitudes: Float[np.ndarray, " p"], cutoff: float = 6.0) -> Bool[np.ndarray, " p"]:
    """Which neurons are super-neurons: log magnitude `cutoff` robust deviations above the median.

    The robust deviation is 1.4826 times the median absolute deviation, over neurons that are not
    silent.
    """
    extreme: Bool[np.ndarray, " p"] = np.zeros(len(magnitudes), dtype=bool)
    active = magnitudes > 0
    if not active.any():
        return extreme
    logs = np.log(magnitudes[active].astype(np.float64))
    middle = np.median(logs)
    extreme[active] = logs - middle > cutoff * _SD_PER_MAD * np.median(np.abs(logs - middle))
    return extreme


def matched_neurons(
    chosen: Int[np.ndarray, " k"],
    magnitudes: Float[np.ndarray, " p"],
    space: NeuronSpace,
    draws: int,
    seed: int,
    caliper: float = 0.2,
    nearest: int = 5,
    exclude: Sequence[int] | Int[np.ndarray, " m"] = (),
) -> Int[np.ndarray, "draws k"]:
    """Draw, for each chosen neuron, a random neuron of its block with a similar magnitude.

    Candidates have a mean contribution (`magnitudes`) within `caliper` of the chosen neuron's, as a
    difference of logarithms; if there is none, the `nearest` few are the candidates. Chosen neurons
    and those in `exclude` are never drawn, and super-neurons only for a super-neuron. The neurons
    of a draw are all different, and column j of the result matches `chosen[j]`. `magnitude_ratio`
    measures how close the match is.

    Raises HQError if a block has too few neurons.
    """
    logs = _logs(magnitudes)
    extreme = outliers(magnitudes)
    taken = np.zeros(len(magnitudes), dtype=bool)
    taken[chosen] = True
    taken[np.asarray(exclude, dtype=np.int64)] = True
    candidates = [
        _nearest_first(int(flat), logs, space, ~taken & (~extreme | extreme[flat]))
        for flat in chosen
    ]
    near = [int((distances <= caliper).sum()) for _, distances in candidates]
    # Neurons with the fewest candidates draw first, so that no other takes their only near match.
    order = np.argsort(near, kind="stable")
    drawn = np.empty((draws, len(chosen)), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for row in drawn:
        free = np.ones(len(magnitudes), dtype=bool)
        for j in order:
            neurons, distances = candidates[j]
            left = free[neurons]
            pool = neurons[left][: int((distances[left] <= caliper).sum()) or nearest]
            if pool.size == 0:
                raise HQError(
                    f"Layer {space.locate(chosen[j]).layer} has too few neurons to match the "
                    "chosen ones: choose fewer of them."
                )
            row[j] = rng.choice(pool)
            free[row[j]] = False
    return drawn


def magnitude_ratio(
    neurons: Int[np.ndarray, "*draws k"],
    chosen: Int[np.ndarray, " h"],
    magnitudes: Float[np.ndarray, " p"],
) -> float:
    """Geometric mean magnitude of the neurons, divided by that of the chosen ones."""
    logs = _logs(magnitudes)
    return float(np.exp(logs[neurons].mean() - logs[chosen].mean()))


def _logs(magnitudes: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Logarithms; those of silent neurons are equal, and far below all others."""
    logs: Float[np.ndarray, " p"] = np.log(
        np.maximum(magnitudes.astype(np.float64), np.finfo(float).tiny)
    )
    return logs


def _nearest_first(
    flat: int, logs: Float[np.ndarray, " p"], space: NeuronSpace, allowed: Bool[np.ndarray, " p"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Allowed neurons of the same block with their |log ratio| of magnitude, ascending."""
    block = space.slices[int(space.block_of(flat))]
    neurons = block.start + np.flatnonzero(allowed[block])
    distances = np.abs(logs[neurons] - logs[flat])
    order = np.argsort(distances, kind="stable")
    return neurons[order], distances[order]


def fit_draws(
    X: Float[np.ndarray, "m p"], y: Int[np.ndarray, " m"], draws: Int[np.ndarray, "draws k"]
) -> "list[Pipeline]":
    """One ridge probe per draw of neurons."""
    return [ridge_probe(X[:, draw], y) for draw in draws]


def read_control(
    probes: "Sequence[Pipeline]",
    draws: Int[np.ndarray, "draws k"],
    X: Float[np.ndarray, "n p"],
    y: Int[np.ndarray, " n"],
) -> Control:
    """AUROC of each draw's probe on these rows."""
    decisions = np.stack(
        [
            probe.decision_function(X[:, draw].astype(np.float64))
            for probe, draw in zip(probes, draws, strict=True)
        ]
    )
    per_draw = np.array([auroc(row, y) for row in decisions])
    return Control(Estimate.of_draws(per_draw), per_draw, decisions)


def ridge_probe(features: Float[np.ndarray, "m q"], y: Int[np.ndarray, " m"]) -> "Pipeline":
    """Logistic regression with scikit-learn's default L2 penalty, on standardised features.

    Baselines use it too: answer length, token entropy and relation, one column each.

    Raises HQError if the labels have one class only.
    """
    # scikit-learn takes a second to import: only a fit pays for it. With few features, this solver
    # is many times faster than the default.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) < 2:
        raise HQError("The labels contain one class only: a probe needs right and wrong answers.")
    with warnings.catch_warnings():
        # Where features tell nothing, rounding can end its line search; it then runs lbfgs itself,
        # whose own warnings remain.
        warnings.filterwarnings("ignore", "Line search of Newton solver")
        return make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky")).fit(
            features.astype(np.float64), y
        )
