"""Bench `intervals`: how often 95% intervals contain the truth, in simulations with dependent rows.

`python -m harness.bench.intervals docs [RUNS]` writes the results to docs/coverage.csv, and the
table of docs/statistics.md.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.stats import norm

from harness.bench.base import BenchRow
from harness.bench.simulated import (
    CORRELATIONS,
    FOLDS,
    SHIFT,
    SIZES,
    Design,
    area_by_unit,
    area_of,
    latent,
    of_rows,
    write_results,
)
from hq.stats.intervals import (
    Estimate,
    Statistic,
    Weights,
    clopper_pearson,
    estimate,
    estimate_mean,
    estimate_rate,
)
from hq.stats.paired import mcnemar
from hq.stats.replicates import estimate_over_replicates
from hq.stats.thresholds import estimate_f1

NAME = "coverage"
_RESAMPLES = 1000
_LOWEST = 0.94  # lower coverage is marked in the table

_RATES = (0.05, 0.1, 0.3, 0.5)
_SHIFT_AFTER = 1.45  # of the positives, in standard deviations: AUROC 0.85 instead of 0.88
_SPREAD, _MAKINGS = 0.1, 5  # of the shift after the change between checkpoints, and their number
_SHARED_NOISE = 0.9  # correlation of the noise of a row before and after
_THRESHOLD = 0.8

Interval = tuple[float, float]


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


class Coverage(NamedTuple):
    """How the intervals of one method compare with the truth."""

    estimand: str
    sizes: str
    units: int
    rows: int
    correlation: float
    method: str
    runs: int
    covered: int
    below: int  # runs in which the truth is below the interval
    above: int  # runs in which the truth is above the interval
    width: float  # mean


def bench_intervals(runs: int = 100) -> list[BenchRow]:
    """Measure the mean coverage of each estimand over unit sizes and correlations.

    Takes about 2 minutes.

    Args:
        runs: Simulated data sets per combination.
    """
    rows = coverage(designs(), runs, bootstrapped=runs // 5, resamples=400)
    return [
        BenchRow(
            name=estimand.name,
            value=_mean_share(rows, estimand.name, "hq"),
            unit="",
            goal=">= 0.93",
            note=f"share of 95% intervals with the truth; lowest combination "
            f"{min(_shares(rows, estimand.name, 'hq')):.3f}; percentile bootstrap "
            f"{_mean_share(rows, estimand.name, 'percentile'):.3f}",
        )
        for estimand in ESTIMANDS
    ]


def designs() -> list[tuple[Estimand, Design]]:
    """Return all combinations; independent rows have no correlation, and one weight each."""
    return [
        (estimand, Design(sizes, correlation))
        for estimand in ESTIMANDS
        for sizes in estimand.sizes
        for correlation in CORRELATIONS
        if sizes != "single rows" or (correlation == 0 and "equal units" not in estimand.name)
    ]


def coverage(
    combinations: Sequence[tuple[Estimand, Design]],
    runs: int,
    bootstrapped: int = 0,
    resamples: int = _RESAMPLES,
) -> list[Coverage]:
    """Simulate data sets, and count for each method how often its interval contains the truth.

    Args:
        combinations: Estimands with their designs.
        runs: Simulated data sets per combination; the seed of run r is r.
        bootstrapped: How many of them get the intervals of both bootstraps, which take most time.
        resamples: Bootstrap resamples per data set.
    """
    rows: list[Coverage] = []
    for estimand, design in combinations:
        truth = np.nan
        by_method: dict[str, list[Interval]] = {}
        for run in range(runs // estimand.slowness):
            rng = np.random.default_rng(run)
            data = estimand.simulate(design, rng)
            truth = data.truth  # equal for every run
            for method, interval in _intervals(data, resamples * (run < bootstrapped), rng):
                by_method.setdefault(method, []).append(interval)
        rows += [_row(estimand, design, truth, *item) for item in by_method.items()]
    return rows


def _row(
    estimand: Estimand, design: Design, truth: float, method: str, intervals: Sequence[Interval]
) -> Coverage:
    low, high = np.array(intervals).T
    return Coverage(
        estimand=estimand.name,
        sizes=design.sizes,
        units=len(SIZES[design.sizes]),
        rows=len(design.units),
        correlation=design.correlation,
        method=method,
        runs=len(intervals),
        covered=int(((low <= truth) & (truth <= high)).sum()),
        below=int((truth < low).sum()),
        above=int((truth > high).sum()),
        width=float(f"{(high - low).mean():.4g}"),
    )


def _intervals(
    data: Simulated, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[str, Interval]]:
    """Yield the interval of each method: hq's, normal, percentile bootstrap and BCa."""
    value, units = data.estimate.value, len(data.jackknife)
    yield "hq", (data.estimate.low, data.estimate.high)
    deviations = data.jackknife.mean() - data.jackknife
    half = float(norm.ppf(0.975) * np.sqrt((units - 1) / units * (deviations**2).sum()))
    yield "normal", (value - half, value + half)
    if not resamples:
        return
    chosen = rng.integers(units, size=(resamples, units)) + units * np.arange(resamples)[:, None]
    weights = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(float)
    draws = data.statistic(weights)
    draws = draws[~np.isnan(draws)]
    yield "percentile", _quantiles(draws, np.array([0.025, 0.975]))
    yield "BCa", _quantiles(draws, _bca_levels(value, draws, deviations))


def _quantiles(draws: Float[np.ndarray, " draw"], levels: Float[np.ndarray, " two"]) -> Interval:
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def _bca_levels(
    value: float, draws: Float[np.ndarray, " draw"], deviations: Float[np.ndarray, " unit"]
) -> Float[np.ndarray, " two"]:
    """Return the quantiles of the bias-corrected and accelerated bootstrap (Efron 1987)."""
    spread = (deviations**2).sum() ** 1.5
    acceleration = (deviations**3).sum() / (6 * spread) if spread > 0 else 0.0
    below = (draws < value).sum() + (draws == value).sum() / 2
    bias = norm.ppf((below + 0.5) / (len(draws) + 1))
    shifted = bias + norm.ppf([0.025, 0.975])
    levels: Float[np.ndarray, " two"] = norm.cdf(bias + shifted / (1 - acceleration * shifted))
    return levels


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


def _shares(rows: Sequence[Coverage], estimand: str, method: str) -> list[float]:
    return [r.covered / r.runs for r in rows if (r.estimand, r.method) == (estimand, method)]


def _mean_share(rows: Sequence[Coverage], estimand: str, method: str) -> float:
    return float(np.mean(_shares(rows, estimand, method)))


def table(folder: Path) -> str:
    """Return the Markdown table of the data in a folder, and a sentence on the lowest coverage."""
    frame = pl.read_csv(folder / f"{NAME}.csv")
    rows = [Coverage(*values) for values in frame.iter_rows()]
    share = {(*r[:2], r.correlation, r.method): r.covered / r.runs for r in rows}
    own = [row for row in rows if row.method == "hq"]
    lines = [
        "| estimand | units | correlation | hq: coverage | truth below, above | mean width "
        "| percentile | BCa | normal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in own:
        low, high = clopper_pearson(row.covered, row.runs)
        mark = "\\*" if row.covered / row.runs < _LOWEST else ""
        others = (
            f"{share[*row[:2], row.correlation, m]:.3f}" for m in ("percentile", "BCa", "normal")
        )
        cells = [
            row.estimand,
            row.sizes,
            f"{row.correlation:g}",
            f"{row.covered / row.runs:.3f}{mark} [{low:.3f}, {high:.3f}]",
            f"{row.below / row.runs:.3f}, {row.above / row.runs:.3f}",
            f"{row.width:.3f}",
            *others,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    done = {(row.estimand, row.sizes, row.correlation) for row in own}
    missing = [
        f"{estimand.name} ({design.sizes}, {design.correlation:g})"
        for estimand, design in designs()
        if (estimand.name, *design) not in done
    ]
    low_rows = [row for row in own if row.covered / row.runs < _LOWEST]
    bootstrap = [row for row in rows if row.method == "percentile"]
    summary = (
        f"{len(own)} combinations of {own[0].runs} simulated data sets each "
        f"({bootstrap[0].runs} for both bootstraps). hq's intervals cover "
        f"the truth in {np.mean([r.covered / r.runs for r in own]):.1%} of all runs; below "
        f"{_LOWEST:.0%} (\\*) in {len(low_rows)} combinations, the percentile bootstrap in "
        f"{sum(r.covered / r.runs < _LOWEST for r in bootstrap)}."
    )
    if missing:
        summary += f" Not simulated yet: {len(missing)} combinations, from {missing[0]} on."
    return "\n".join([summary, "", *lines, ""])


def _coverage_of(runs: int, combination: tuple[Estimand, Design]) -> list[Coverage]:
    return coverage([combination], runs, bootstrapped=runs // 5)


def main(folder: str, runs: str = "1000") -> None:
    """Simulate on all cores, and write the data and the table of the documentation."""
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(_coverage_of, int(runs)), designs())
        rows = [row for rows in results for row in rows]
    write_results(Path(folder), NAME, rows, table)


if __name__ == "__main__":
    main(*sys.argv[1:])
