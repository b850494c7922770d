"""Controls beside every AUROC: random neurons, matched neurons, and baselines without neurons.

Random neurons alone are a weak control, as H-Neurons sit in certain layers and are not small;
matched ones share the layer and the magnitude.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hq.errors import HQError
from hq.stats import Estimate, auroc

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
    nearest: int = 64,
) -> Int[np.ndarray, "draws k"]:
    """For each chosen neuron a random one of its layer and magnitude; all different in a draw.

    Candidates are the `nearest` by rank of mean contribution (`magnitudes`) within the layer,
    without the chosen ones, and without super-neurons unless the chosen neuron is one itself.
    Column j of the result matches `chosen[j]`. HQError if a layer has too few neurons left.
    """
    extreme = outliers(magnitudes)
    taken = np.isin(np.arange(len(magnitudes)), chosen)
    pools = [
        _nearest_in_layer(int(flat), magnitudes, d_ff, ~taken & (~extreme | extreme[flat]), nearest)
        for flat in chosen
    ]
    rng = np.random.default_rng(seed)
    return np.stack([_draw_different(pools, rng) for _ in range(draws)])


def _nearest_in_layer(
    flat: int,
    magnitudes: Float[np.ndarray, " p"],
    d_ff: int,
    allowed: Bool[np.ndarray, " p"],
    nearest: int,
) -> Int[np.ndarray, " m"]:
    """Allowed neurons of the same layer, by distance in rank of magnitude, the nearest first."""
    start = flat // d_ff * d_ff
    layer = slice(start, start + d_ff)
    ranks = np.argsort(np.argsort(magnitudes[layer], kind="stable"), kind="stable")
    candidates = np.flatnonzero(allowed[layer])
    distance = np.abs(ranks[candidates] - ranks[flat - start])
    return start + candidates[np.argsort(distance, kind="stable")[:nearest]]


def _draw_different(
    pools: list[Int[np.ndarray, " m"]], rng: np.random.Generator
) -> Int[np.ndarray, " k"]:
    drawn: list[int] = []
    for pool in pools:
        free = np.setdiff1d(pool, drawn)
        if free.size == 0:
            raise HQError(
                "A layer has too few neurons to match the chosen ones: raise the number of nearest "
                "candidates, or choose fewer neurons."
            )
        drawn.append(int(rng.choice(free)))
    return np.array(drawn, dtype=np.int64)


def control_auroc(
    X_train: Float[np.ndarray, "m p"],
    y_train: Int[np.ndarray, " m"],
    X_test: Float[np.ndarray, "n p"],
    y_test: Int[np.ndarray, " n"],
    draws: Int[np.ndarray, "draws k"],
    seed: int,
) -> Control:
    """AUROC on the test rows of a ridge probe fitted on the training rows, for each draw."""
    decisions = np.stack(
        [
            ridge_probe(X_train[:, d], y_train).decision_function(X_test[:, d].astype(np.float64))
            for d in draws
        ]
    )
    per_draw = np.array([auroc(row, y_test) for row in decisions])
    low, high = np.quantile(per_draw, [0.025, 0.975])
    estimate = Estimate(
        value=float(per_draw.mean()), low=float(low), high=float(high), n=len(draws), seed=seed
    )
    return Control(estimate, per_draw, decisions)


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
