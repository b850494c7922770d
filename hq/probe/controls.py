"""Controls beside every AUROC: random neurons, matched neurons, and baselines without neurons.

Random neurons alone are a weak control, as H-Neurons sit in certain layers and are not small;
matched ones share the layer and the magnitude.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.errors import HQError
from hq.stats.bootstrap import Estimate, auroc

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# A normal distribution's standard deviation over its median absolute deviation.
_SD_PER_MAD = 1.4826


class Control(NamedTuple):
    """What probes on random draws of neurons reach on the test rows."""

    estimate: Estimate  # mean over draws, and the interval that holds 95% of the draws; n = draws
    per_draw: Float[np.ndarray, " draws"]  # AUROC of each
    decisions: Float[np.ndarray, "draws n"]  # decision value of each test row


def random_neurons(
    k: int, p: int, draws: int, seed: int, exclude: Iterable[int] = ()
) -> Int[np.ndarray, "draws k"]:
    """Flat indices of k different neurons out of p, `draws` times, none of `exclude` among them."""
    pool = np.setdiff1d(np.arange(p), np.fromiter(exclude, dtype=np.int64))
    if len(pool) < k:
        raise HQError(f"Only {len(pool)} neurons are left to draw {k} from: exclude fewer.")
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(pool, size=k, replace=False) for _ in range(draws)])


def outliers(magnitudes: Float[np.ndarray, " p"], cutoff: float = 6.0) -> Bool[np.ndarray, " p"]:
    """Super-neurons: those whose log magnitude is over `cutoff` robust deviations above the median.

    Robust deviation: 1.4826 times the median absolute deviation, over the neurons that are not
    silent. `np.flatnonzero` of it goes into `random_neurons(exclude=…)`.
    """
    found: Bool[np.ndarray, " p"] = np.zeros(len(magnitudes), dtype=bool)
    active = magnitudes > 0
    if not active.any():
        return found
    logs = np.log(magnitudes[active].astype(np.float64))
    middle = np.median(logs)
    found[active] = logs - middle > cutoff * _SD_PER_MAD * np.median(np.abs(logs - middle))
    return found


def matched_neurons(
    chosen: Int[np.ndarray, " k"],
    magnitudes: Float[np.ndarray, " p"],
    d_ff: int,
    draws: int,
    seed: int,
    caliper: float = 0.2,
    nearest: int = 5,
    exclude: Sequence[int] | Int[np.ndarray, " m"] = (),
) -> Int[np.ndarray, "draws k"]:
    """For each chosen neuron a random one of its layer and magnitude; all different in a draw.

    Candidates are those whose mean contribution (`magnitudes`) lies within `caliper` of the chosen
    one's, as a difference of logarithms; where there is none, the `nearest` few, however far. None
    is a chosen one or one of `exclude`, nor a super-neuron unless the chosen neuron is one itself.
    `magnitude_ratio` tells how near the match is.
    Column j of the result matches `chosen[j]`. HQError if a layer has too few neurons left.
    """
    logs = _logs(magnitudes)
    extreme = outliers(magnitudes)
    taken = np.zeros(len(magnitudes), dtype=bool)
    taken[chosen] = True
    taken[np.asarray(exclude, dtype=np.int64)] = True
    candidates = [
        _nearest_first(int(flat), logs, d_ff, ~taken & (~extreme | extreme[flat]))
        for flat in chosen
    ]
    near = [int((distances <= caliper).sum()) for _, distances in candidates]
    # Those with the least choice draw first, so that no other takes their only near match.
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
                    f"Layer {chosen[j] // d_ff} has too few neurons to match the chosen ones: "
                    "choose fewer of them."
                )
            row[j] = rng.choice(pool)
            free[row[j]] = False
    return drawn


def magnitude_ratio(
    neurons: Int[np.ndarray, "*draws k"],
    chosen: Int[np.ndarray, " h"],
    magnitudes: Float[np.ndarray, " p"],
) -> float:
    """Geometric mean of the neurons' magnitudes ÷ that of the chosen ones."""
    logs = _logs(magnitudes)
    return float(np.exp(logs[neurons].mean() - logs[chosen].mean()))


def _logs(magnitudes: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """Logarithms; those of silent neurons are equal, and far from all others."""
    logs: Float[np.ndarray, " p"] = np.log(
        np.maximum(magnitudes.astype(np.float64), np.finfo(float).tiny)
    )
    return logs


def _nearest_first(
    flat: int, logs: Float[np.ndarray, " p"], d_ff: int, allowed: Bool[np.ndarray, " p"]
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Allowed neurons of the same layer with their |log ratio| of magnitude, ascending."""
    start = flat // d_ff * d_ff
    neurons = start + np.flatnonzero(allowed[start : start + d_ff])
    distances = np.abs(logs[neurons] - logs[flat])
    order = np.argsort(distances, kind="stable")
    return neurons[order], distances[order]


def control_auroc(
    X_train: Float[np.ndarray, "m p"],
    y_train: Int[np.ndarray, " m"],
    X_test: Float[np.ndarray, "n p"],
    y_test: Int[np.ndarray, " n"],
    draws: Int[np.ndarray, "draws k"],
    seed: int,
) -> Control:
    """AUROC on the test rows of a ridge probe fitted on the training rows, for each draw."""
    return read_control(fit_draws(X_train, y_train, draws), draws, X_test, y_test, seed)


def fit_draws(
    X: Float[np.ndarray, "m p"], y: Int[np.ndarray, " m"], draws: Int[np.ndarray, "draws k"]
) -> "list[Pipeline]":
    """A ridge probe for each draw of neurons."""
    return [ridge_probe(X[:, draw], y) for draw in draws]


def read_control(
    probes: "Sequence[Pipeline]",
    draws: Int[np.ndarray, "draws k"],
    X: Float[np.ndarray, "n p"],
    y: Int[np.ndarray, " n"],
    seed: int,
) -> Control:
    """What the draws' probes reach on some rows."""
    decisions = np.stack(
        [
            probe.decision_function(X[:, draw].astype(np.float64))
            for probe, draw in zip(probes, draws, strict=True)
        ]
    )
    per_draw = np.array([auroc(row, y) for row in decisions])
    return Control(Estimate.of_draws(per_draw, seed), per_draw, decisions)


def ridge_probe(features: Float[np.ndarray, "m q"], y: Int[np.ndarray, " m"]) -> "Pipeline":
    """Logistic regression with scikit-learn's default L2 penalty, on standardised features.

    Also the baselines' probe: answer length, token entropy, relation (one column each).
    """
    # scikit-learn takes a second to import: only a fit pays for it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) < 2:
        raise HQError("The labels hold one class only: a probe needs right and wrong answers.")
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(
        features.astype(np.float64), y
    )
