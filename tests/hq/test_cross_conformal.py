"""The promise of a threshold that is set on cross-fitted scores, in a simulation of new units.

The set for use is fitted on all responses, and its threshold is set on out-of-fold scores, which
are of other probes. No theorem bounds the rate of false alarms by the promised one then, so it is
simulated, as is the rate that the tables state. `pytest -s` prints the figures.
"""

from typing import NamedTuple

import numpy as np
import pytest
from jaxtyping import Float, Int

from hq.neurons.features import Features
from hq.neurons.neuron_set import ModelIdentity
from hq.probe.cross_fit import CrossFit, cross_fit
from hq.stats.conformal import conformal_threshold

MODEL = ModelIdentity(name="tiny", fingerprint="abc", architecture="Llama", n_layers=2, d_ff=30)
PLANTED, EFFECT = 6, 0.8
UNITS, NEW_UNITS, RUNS, FOLDS = 60, 1000, 20, 4


class Simulated(NamedTuple):
    features: Features
    y: Int[np.ndarray, " n"]
    units: Int[np.ndarray, " n"]


def simulate(rng: np.random.Generator, units: int) -> Simulated:
    """Draw units of 1 to many responses, which share a part of every feature."""
    unit = np.repeat(np.arange(units), rng.geometric(0.25, units))
    p = MODEL.n_neurons
    logs = 0.5 * rng.standard_normal((units, p))[unit] + rng.standard_normal((len(unit), p))
    odds = EFFECT * logs[:, :PLANTED].sum(axis=1)
    y = (odds + rng.logistic(size=len(unit)) > 0).astype(np.int64)
    values = np.exp(logs / 2 - 5).astype(np.float32)
    return Simulated(Features(values, "sum", "answer", MODEL, "fp16"), y, unit)


def false_alarms(flags: Int[np.ndarray, " n"], units: Int[np.ndarray, " n"]) -> float:
    """Share of flagged right answers; units have equal weights."""
    _, unit = np.unique(units, return_inverse=True)
    return float(np.mean(np.bincount(unit, flags) / np.bincount(unit)))


def threshold(
    scores: Float[np.ndarray, " n"], of: Simulated, promised: float, rows: Int[np.ndarray, " m"]
) -> float:
    right = rows[of.y[rows] == 0]
    return conformal_threshold(scores[right], promised, of.units[right])


def rate_on_new_units(of: Simulated, probes: CrossFit, folds, new: Simulated, promised) -> float:
    centred = probes.scores(of.features, folds) - probes.means(of.features, folds)[folds]
    at = threshold(centred, of, promised, np.arange(len(of.y)))
    at += probes.neurons.score(of.features).mean()
    right = new.y == 0
    return false_alarms(probes.neurons.score(new.features)[right] >= at, new.units[right])


def rate_of_the_tables(of: Simulated, probes: CrossFit, folds, promised) -> float:
    scores, calibration = (
        probes.scores(of.features, folds),
        probes.calibration_scores(of.features, folds),
    )
    thresholds = [
        threshold(calibration[fold], of, promised, np.flatnonzero(folds != fold))
        for fold in range(FOLDS)
    ]
    thresholds += probes.means(of.features, folds)
    right = of.y == 0
    return false_alarms((scores >= np.array(thresholds)[folds])[right], of.units[right])


@pytest.fixture(scope="module")
def rates() -> dict[tuple[str, float], Float[np.ndarray, " run"]]:
    rng = np.random.default_rng(0)
    found: dict[tuple[str, float], list[float]] = {}
    for _ in range(RUNS):
        of, new = simulate(rng, UNITS), simulate(rng, NEW_UNITS)
        folds = of.units % FOLDS
        probes, _ = cross_fit(of.features, of.y, of.units, folds, repeats=1, max_fraction=0.5)
        for promised in (0.1, 0.2):
            values = (
                ("new units", rate_on_new_units(of, probes, folds, new, promised)),
                ("tables", rate_of_the_tables(of, probes, folds, promised)),
            )
            for name, value in values:
                found.setdefault((name, promised), []).append(value)
    return {key: np.array(values) for key, values in found.items()}


@pytest.mark.parametrize("promised", [0.1, 0.2])
@pytest.mark.parametrize("name", ["new units", "tables"])
def test_the_mean_rate_of_false_alarms_is_near_the_promise(rates, name, promised):
    """Within three binomial standard errors of all calibration units.

    The threshold is one of the scores, so the rate may be lower by one unit of them.
    """
    of = rates[name, promised]
    margin = 3 * np.sqrt(promised * (1 - promised) / (RUNS * UNITS))
    print(
        f"\n{name}: promised {promised:g}, mean {of.mean():.4f} over {RUNS} runs (standard error "
        f"{of.std(ddof=1) / np.sqrt(RUNS):.4f}), margin {margin:.4f}"
    )
    assert promised - margin - 1 / (UNITS + 1) < of.mean() < promised + margin
