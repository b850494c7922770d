"""Quantities that bench `intervals` estimates, and data sets in which their truth is known."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from harness.bench.simulated import (
    FOLDS,
    SHIFT,
    SIZES,
    Design,
    area_by_unit,
    area_of,
    latent,
    of_rows,
)
from hq.stats.intervals import (
    Estimate,
    Statistic,
    Weights,
    estimate,
    estimate_mean,
    estimate_rate,
)
from hq.stats.paired import mcnemar
from hq.stats.replicates import estimate_over_replicates
from hq.stats.thresholds import estimate_f1

_RATES = (0.05, 0.1, 0.3, 0.5)
_SHIFT_AFTER = 1.45  # of the positives, in standard deviations: AUROC 0.85 instead of 0.88
_SPREAD, _MAKINGS = 0.1, 5  # of the shift after the change between checkpoints, and their number
_SHARED_NOISE = 0.9  # correlation of the noise of a row before and after
_THRESHOLD = 0.8


class Simulated(NamedTuple):
    """One simulated data set: hq's estimate, and the statistic as a function of unit weights."""

    truth: float
    estimate: Estimate
    statistic: Statistic
    jackknife: Float[np.ndarray, " unit"]  # the statistic without each unit


Simulate = Callable[[Design, np.random.Generator], Simulated]


class Estimand(NamedTuple):
    """A quantity that is estimated, and how data sets with a known truth are simulated."""

    name: str
    simulate: Simulate
    sizes: tuple[str, ...] = tuple(SIZES)  # the keys of SIZES for which it is simulated
    slowness: int = 1  # it gets this many times fewer data sets


def _simulated(truth: float, estimate: Estimate, statistic: Statistic) -> Simulated:
    return Simulated(truth, estimate, statistic, statistic(1 - np.eye(estimate.n)))


def _ratio(
    numerator: Float[np.ndarray, " unit"], denominator: Float[np.ndarray, " unit"]
) -> Statistic:
    """Return Σ numerator ÷ Σ denominator over weighted units."""

    def statistic(weights: Weights) -> Float[np.ndarray, " weightings"]:
        total = weights @ denominator
        ratio: Float[np.ndarray, " weightings"] = np.full(len(weights), np.nan)
        np.divide(weights @ numerator, total, out=ratio, where=total > 0)
        return ratio

    return statistic


def _simulate_auroc(by_class: bool, design: Design, rng: np.random.Generator) -> Simulated:
    labels, scores = design.labels, sum(latent(design, rng, by_class)) + SHIFT * design.labels
    statistic = area_by_unit([scores], labels, design.units)
    return _area(_true_auroc(by_class, design), design, statistic)


def _simulate_auroc_within_folds(design: Design, rng: np.random.Generator) -> Simulated:
    """Simulate scores of one probe per fold, which differ by constants."""
    scores = sum(latent(design, rng, by_class=True)) + SHIFT * design.labels
    scores += rng.standard_normal(FOLDS)[design.folds]
    statistic = area_by_unit([scores], design.labels, design.units, strata=design.folds)
    return _area(area_of(SHIFT), design, statistic)


def _area(truth: float, design: Design, statistic: Statistic) -> Simulated:
    """Return what `estimate_auroc` would, which sorts rows instead of counting by unit."""
    by_row = of_rows(statistic, design.units)
    area = estimate(by_row, len(design.units), design.units, "AUROC", "logit")
    return _simulated(truth, area, statistic)


def _true_auroc(by_class: bool, design: Design) -> float:
    """Return the expected AUROC: pairs within a unit differ less if both classes share its part."""
    across = area_of(SHIFT)
    if by_class:
        return across
    sizes, positives = np.bincount(design.units), np.bincount(design.units, design.labels)
    negatives = sizes - positives
    share = float(positives @ negatives / (positives.sum() * negatives.sum()))
    return (1 - share) * across + share * area_of(SHIFT / np.sqrt(1 - design.correlation))


def _before_and_after(
    design: Design, rng: np.random.Generator, makings: int = 1, spread: float = 0.0
) -> list[Float[np.ndarray, " row"]]:
    """Return scores before a change, and after it for each making, which differ by `spread`."""
    shared, own = latent(design, rng, by_class=True)
    shifts = np.full(makings, _SHIFT_AFTER)
    if spread:
        shifts = shifts + spread * rng.standard_normal(makings)
    scale = np.sqrt((1 - design.correlation) * (1 - _SHARED_NOISE**2))
    after = [
        shared
        + _SHARED_NOISE * own
        + scale * rng.standard_normal(len(design.units))
        + shift * design.labels
        for shift in shifts
    ]
    return [shared + own + SHIFT * design.labels, *after]


def _simulate_difference(design: Design, rng: np.random.Generator) -> Simulated:
    before, after = _before_and_after(design, rng)
    statistic = area_by_unit([after, before], design.labels, design.units, (1, -1))
    by_row = of_rows(statistic, design.units)
    difference = estimate(by_row, len(design.units), design.units, "difference of AUROCs")
    return _simulated(area_of(_SHIFT_AFTER) - area_of(SHIFT), difference, statistic)


def _simulate_accuracies(design: Design, rng: np.random.Generator) -> Simulated:
    units, labels = design.units, design.labels
    before, after = ((scores >= _THRESHOLD) == labels for scores in _before_and_after(design, rng))
    change = np.bincount(units, after) - np.bincount(units, before)
    detected = norm.sf(_THRESHOLD - _SHIFT_AFTER) - norm.sf(_THRESHOLD - SHIFT)
    return _simulated(
        float(labels.mean() * detected),
        mcnemar(after, before, units).difference,
        _ratio(change, np.bincount(units)),
    )


def _simulate_makings(design: Design, rng: np.random.Generator) -> Simulated:
    """Simulate the change at several checkpoints, which differ in the shift of the positives."""
    units, labels = design.units, design.labels
    before, *after = _before_and_after(design, rng, _MAKINGS, _SPREAD)
    changes = [area_by_unit([scores, before], labels, units, (1, -1)) for scores in after]
    over = estimate_over_replicates(
        [of_rows(change, units) for change in changes], len(units), units
    )
    return _simulated(
        area_of(_SHIFT_AFTER / np.sqrt(1 + _SPREAD**2 / 2)) - area_of(SHIFT),
        over.mean,
        lambda weights: np.mean([change(weights) for change in changes], axis=0),
    )


def _simulate_f1(design: Design, rng: np.random.Generator) -> Simulated:
    units, labels = design.units, design.labels
    shared, own = latent(design, rng, by_class=True)
    scores = shared + own + SHIFT * labels
    called = scores >= _THRESHOLD
    hits, calls = np.bincount(units, called & (labels == 1)), np.bincount(units, called + labels)
    detected, alarms, share = norm.sf(_THRESHOLD - SHIFT), norm.sf(_THRESHOLD), labels.mean()
    return _simulated(
        float(2 * share * detected / (share + share * detected + (1 - share) * alarms)),
        estimate_f1(scores, labels, _THRESHOLD, units),
        _ratio(2 * hits, calls),
    )


def _simulate_mean(design: Design, rng: np.random.Generator) -> Simulated:
    units = design.units
    values = np.add(*latent(design, rng, by_class=False))
    return _simulated(
        0.0, estimate_mean(values, units), _ratio(np.bincount(units, values), np.bincount(units))
    )


def _simulate_rate(
    rate: float, equal_units: bool, design: Design, rng: np.random.Generator
) -> Simulated:
    """Simulate a beta-binomial: units differ in their rate, as far as the correlation says."""
    units, rho = design.units, design.correlation
    sizes = np.bincount(units)
    of_unit = np.full(len(sizes), rate)
    if rho > 0:
        concentration = (1 - rho) / rho
        of_unit = rng.beta(rate * concentration, (1 - rate) * concentration, len(sizes))
    values = (rng.random(len(units)) < of_unit[units]).astype(float)
    hits = np.bincount(units, values)
    statistic = _ratio(hits / sizes, np.ones(len(sizes))) if equal_units else _ratio(hits, sizes)
    return _simulated(rate, estimate_rate(values, units, equal_units), statistic)


ESTIMANDS = (
    Estimand("AUROC, units shift all scores", partial(_simulate_auroc, False)),
    Estimand("AUROC, units shift each class", partial(_simulate_auroc, True)),
    Estimand("AUROC within folds", _simulate_auroc_within_folds),
    Estimand("difference of AUROCs", _simulate_difference),
    Estimand("difference of accuracies", _simulate_accuracies),
    Estimand(
        f"mean difference over {_MAKINGS} checkpoints", _simulate_makings, ("knowledge", "facts"), 4
    ),
    Estimand("F1", _simulate_f1),
    Estimand("mean", _simulate_mean),
    *(
        Estimand(
            f"rate {rate:g}{', equal units' if equal else ''}", partial(_simulate_rate, rate, equal)
        )
        for equal in (False, True)
        for rate in _RATES
    ),
)
