"""Bench `intervals`: how often 95% intervals contain the truth, in simulations with dependent rows.

`python -m harness.bench.intervals docs` writes the results to docs/coverage.csv, and the table of
docs/statistics.md.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.stats import norm

from harness.bench.base import BenchRow
from hq.stats.auroc import (
    auroc_difference_statistic,
    estimate_auroc,
    estimate_auroc_difference,
    grouped_auroc_statistic,
)
from hq.stats.intervals import (
    Estimate,
    Statistic,
    Weights,
    clopper_pearson,
    estimate_mean,
    estimate_rate,
)
from hq.stats.replicates import estimate_over_replicates
from hq.stats.thresholds import estimate_f1
from hq.storage.atomic import write_whole

DATA_FILE, TABLE_FILE = "coverage.csv", "statistics.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
_RUNS, _RESAMPLES = 1000, 1000
_LOWEST = 0.94  # lower coverage is marked in the table

# Rows per unit of `smollm2-facts`: 72 units, 1,494 rows, 20.7 effective units.
_STUDY = (
    *(136, 128, 122, 118, 90, 80, 78, 76, 62, 56, 46, 36, 34, 34, 28, 28, 22, 20),
    *(14,) * 4,
    *(12,) * 7,
    *(10,) * 2,
    *(8,) * 3,
    *(6,) * 6,
    *(4,) * 8,
    *(2,) * 24,
)
SIZES: dict[str, tuple[int, ...]] = {
    "study": _STUDY,
    "long tail": tuple(np.random.default_rng(0).geometric(0.3, 200).tolist()),
    "single rows": (1,) * 200,
}
"""Rows per unit: the default study's, a long tail (geometric, mean 3.3), and independent rows."""

CORRELATIONS = (0.0, 0.3, 0.6)
_RATES = (0.05, 0.1, 0.3, 0.5)
_SHIFT, _SHIFT_AFTER = 1.66, 1.45  # of the positives, in standard deviations: AUROC 0.88 and 0.85
_SPREAD, _MAKINGS = 0.1, 5  # of the shift after the change between checkpoints, and their number
_SHARED_NOISE = 0.9  # correlation of the noise of a row before and after
_THRESHOLD = 0.8

Interval = tuple[float, float]


class Design(NamedTuple):
    """Rows in units, and the correlation of the rows of a unit."""

    sizes: str
    correlation: float

    @property
    def units(self) -> Int[np.ndarray, " row"]:
        """The unit of each row."""
        sizes = SIZES[self.sizes]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def labels(self) -> Int[np.ndarray, " row"]:
        """The class of each row: alternating, so balanced within a unit of even size."""
        return np.arange(len(self.units)) % 2


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
    rows = coverage(designs(), runs, resamples=400)
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
    combinations: Sequence[tuple[Estimand, Design]], runs: int, resamples: int = _RESAMPLES
) -> list[Coverage]:
    """Simulate data sets, and count for each method how often its interval contains the truth.

    Args:
        combinations: Estimands with their designs.
        runs: Simulated data sets per combination; the seed of run r is r.
        resamples: Bootstrap resamples per data set; 0 to omit both bootstraps.
    """
    rows: list[Coverage] = []
    for estimand, design in combinations:
        truth = np.nan
        by_method: dict[str, list[Interval]] = {}
        for run in range(runs):
            rng = np.random.default_rng(run)
            data = estimand.simulate(design, rng)
            truth = data.truth  # equal for every run
            for method, interval in _intervals(data, resamples, rng):
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
    weights = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)
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


def _latent(
    design: Design, rng: np.random.Generator, by_class: bool
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Return the parts of unit and row of standard normal scores, without the shift of a class.

    Rows of a unit share their part; if `by_class`, only rows of the same class do.
    """
    units, rho = design.units, design.correlation
    of_unit = rng.standard_normal((len(SIZES[design.sizes]), 2))
    shared = of_unit[units, design.labels if by_class else 0]
    return np.sqrt(rho) * shared, np.sqrt(1 - rho) * rng.standard_normal(len(units))


def _simulate_auroc(by_class: bool, design: Design, rng: np.random.Generator) -> Simulated:
    units, labels = design.units, design.labels
    shared, own = _latent(design, rng, by_class)
    scores = shared + own + _SHIFT * labels
    return _simulated(
        _true_auroc(by_class, design),
        estimate_auroc(scores, labels, units),
        grouped_auroc_statistic(scores, labels, units),
    )


def _true_auroc(by_class: bool, design: Design) -> float:
    """Return the expected AUROC: pairs within a unit differ less if both classes share its part."""
    across = float(norm.cdf(_SHIFT / np.sqrt(2)))
    if by_class:
        return across
    sizes, positives = np.bincount(design.units), np.bincount(design.units, design.labels)
    negatives = sizes - positives
    share = float(positives @ negatives / (positives.sum() * negatives.sum()))
    within = float(norm.cdf(_SHIFT / np.sqrt(2 * (1 - design.correlation))))
    return (1 - share) * across + share * within


def _simulate_difference(design: Design, rng: np.random.Generator) -> Simulated:
    units, labels = design.units, design.labels
    shared, own = _latent(design, rng, by_class=True)
    fresh = np.sqrt(1 - design.correlation) * rng.standard_normal(len(units))
    before = shared + own + _SHIFT * labels
    noise = _SHARED_NOISE * own + np.sqrt(1 - _SHARED_NOISE**2) * fresh
    after = shared + noise + _SHIFT_AFTER * labels
    first, second = (grouped_auroc_statistic(s, labels, units) for s in (after, before))
    return _simulated(
        float(norm.cdf(_SHIFT_AFTER / np.sqrt(2)) - norm.cdf(_SHIFT / np.sqrt(2))),
        estimate_auroc_difference(after, before, labels, units),
        lambda weights: first(weights) - second(weights),
    )


def _simulate_makings(design: Design, rng: np.random.Generator) -> Simulated:
    """Simulate the change at several checkpoints, which differ in the shift of the positives."""
    units, labels = design.units, design.labels
    shared, own = _latent(design, rng, by_class=True)
    shifts = _SHIFT_AFTER + _SPREAD * rng.standard_normal(_MAKINGS)
    scale = np.sqrt((1 - design.correlation) * (1 - _SHARED_NOISE**2))
    after = [
        shared + _SHARED_NOISE * own + scale * rng.standard_normal(len(units)) + shift * labels
        for shift in shifts
    ]
    before = shared + own + _SHIFT * labels
    first, *others = (grouped_auroc_statistic(s, labels, units) for s in (before, *after))
    over = estimate_over_replicates(
        [auroc_difference_statistic(s, before, labels) for s in after], len(units), units
    )
    return _simulated(
        float(norm.cdf(_SHIFT_AFTER / np.sqrt(2 + _SPREAD**2)) - norm.cdf(_SHIFT / np.sqrt(2))),
        over.mean,
        lambda weights: sum(other(weights) for other in others) / _MAKINGS - first(weights),
    )


def _simulate_f1(design: Design, rng: np.random.Generator) -> Simulated:
    units, labels = design.units, design.labels
    shared, own = _latent(design, rng, by_class=True)
    scores = shared + own + _SHIFT * labels
    called = scores >= _THRESHOLD
    hits, calls = np.bincount(units, called & (labels == 1)), np.bincount(units, called + labels)
    detected, alarms, share = norm.sf(_THRESHOLD - _SHIFT), norm.sf(_THRESHOLD), labels.mean()
    return _simulated(
        float(2 * share * detected / (share + share * detected + (1 - share) * alarms)),
        estimate_f1(scores, labels, _THRESHOLD, units),
        _ratio(2 * hits, calls),
    )


def _simulate_mean(design: Design, rng: np.random.Generator) -> Simulated:
    units = design.units
    values = np.add(*_latent(design, rng, by_class=False))
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
    Estimand("difference of AUROCs", _simulate_difference),
    Estimand(f"mean difference over {_MAKINGS} checkpoints", _simulate_makings, ("study",)),
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


def write_coverage(folder: Path, rows: Sequence[Coverage]) -> None:
    """Write the data, and the table between the markers of the documentation."""
    frame = pl.DataFrame(rows, schema=list(Coverage._fields), orient="row")
    write_whole(folder / DATA_FILE, frame.write_csv())
    document = (folder / TABLE_FILE).read_text(encoding="utf-8")
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    write_whole(folder / TABLE_FILE, f"{before}{BEGIN}\n{table(folder)}{END}{after}")


def table(folder: Path) -> str:
    """Return the Markdown table of the data in a folder, and a sentence on the lowest coverage."""
    frame = pl.read_csv(folder / DATA_FILE)
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
    summary = (
        f"{len(own)} combinations of {own[0].runs} simulated data sets each. hq's intervals cover "
        f"the truth in {np.mean([r.covered / r.runs for r in own]):.1%} of all runs; below "
        f"{_LOWEST:.0%} (\\*) in {len(low_rows)} combinations, the percentile bootstrap in "
        f"{sum(r.covered / r.runs < _LOWEST for r in rows if r.method == 'percentile')}."
    )
    if missing:
        summary += f" Not simulated yet: {len(missing)} combinations, from {missing[0]} on."
    return "\n".join([summary, "", *lines, ""])


def _coverage_of(combination: tuple[Estimand, Design]) -> list[Coverage]:
    return coverage([combination], _RUNS)


if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        found = [row for rows in pool.map(_coverage_of, designs()) for row in rows]
    write_coverage(Path(sys.argv[1]), found)
