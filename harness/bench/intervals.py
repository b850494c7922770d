"""Bench `intervals`: how often 95% intervals contain the truth, in simulations with dependent rows.

`python -m harness.bench.intervals docs [RUNS]` writes the results to docs/coverage.csv, and the
table of docs/statistics.md.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy.stats import norm

from harness.bench.base import BenchRow
from harness.bench.estimands import ESTIMANDS, Estimand, Simulated
from harness.bench.simulated import CORRELATIONS, SIZES, Design, write_results
from hq.stats.intervals import clopper_pearson

NAME = "coverage"
_RESAMPLES = 1000
_LEVEL = 0.95  # marked in the table if a coverage is shown to be lower

Interval = tuple[float, float]


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
    rows = coverage(designs(), runs, bootstrapped=max(1, runs // 5), resamples=400)
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
        for run in range(max(1, runs // estimand.slowness)):
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
        "| estimand | units | correlation | data sets | hq: coverage | truth below, above "
        "| mean width | percentile | BCa | normal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in own:
        low, high = clopper_pearson(row.covered, row.runs)
        mark = "\\*" if high < _LEVEL else ""
        others = (
            f"{share[*row[:2], row.correlation, m]:.3f}" for m in ("percentile", "BCa", "normal")
        )
        cells = [
            row.estimand,
            row.sizes,
            f"{row.correlation:g}",
            f"{row.runs}",
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
    mean = {
        method: np.mean([row.covered / row.runs for row in rows if row.method == method])
        for method in ("hq", "percentile", "BCa", "normal")
    }
    shown = sum(clopper_pearson(row.covered, row.runs)[1] < _LEVEL for row in own)
    summary = (
        f"On average over {len(own)} combinations, hq's intervals cover the truth in "
        f"{mean['hq']:.1%} of data sets, the percentile bootstrap in {mean['percentile']:.1%}, BCa "
        f"in {mean['BCa']:.1%}, and ± 1.96 se in {mean['normal']:.1%}. In {shown} combinations "
        f"(\\*), the 95% interval of the coverage of hq's is below {_LEVEL:.0%}."
    )
    if missing:
        summary += f" Not simulated yet: {len(missing)} combinations, from {missing[0]} on."
    return "\n".join([summary, "", *lines, ""])


def _coverage_of(runs: int, combination: tuple[Estimand, Design]) -> list[Coverage]:
    return coverage([combination], runs, bootstrapped=max(1, runs // 5))


def main(folder: str, runs: str = "1000") -> None:
    """Simulate on all cores, and write the data and the table of the documentation."""
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(_coverage_of, int(runs)), designs())
        rows = [row for rows in results for row in rows]
    write_results(Path(folder), NAME, rows, table)


if __name__ == "__main__":
    main(*sys.argv[1:])
