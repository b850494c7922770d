"""The simulated coverage of intervals, and the table of it in the documentation."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from harness.bench import BENCHES
from harness.bench.estimands import ESTIMANDS
from harness.bench.intervals import (
    NAME,
    Coverage,
    bench_intervals,
    coverage,
    designs,
    table,
)
from harness.bench.simulated import (
    CORRELATIONS,
    SHIFT,
    SIZES,
    TABLE_FILE,
    Design,
    area_by_unit,
    latent,
    markers,
    of_rows,
    write_results,
)
from harness.tables.files import read_table
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import estimate

DOCS = Path(__file__).parents[2] / "docs"
BY_NAME = {estimand.name: estimand for estimand in ESTIMANDS}
RUNS = 150


def by_method(name: str, design: Design, runs: int, bootstrapped: int = 0) -> dict[str, Coverage]:
    rows = coverage([(BY_NAME[name], design)], runs, bootstrapped, resamples=200)
    return {row.method: row for row in rows}


def test_the_interval_covers_the_truth_at_the_sizes_of_the_study():
    """A probability of 0.1% to fail if the coverage is 95%."""
    rows = by_method("AUROC within folds", Design("facts", 0.3), RUNS)
    assert rows["hq"].covered >= binom.ppf(0.001, RUNS, 0.95)
    assert rows["normal"].covered < rows["hq"].covered
    assert rows["hq"].covered + rows["hq"].below + rows["hq"].above == RUNS


def test_checkpoints_that_differ_are_covered_and_units_alone_miss_them():
    rows = by_method("mean difference over 5 checkpoints", Design("facts", 0.0), 240)
    runs = rows["hq"].runs  # a part of them, as each has five checkpoints
    assert runs == 60
    assert rows["hq"].covered >= binom.ppf(0.001, runs, 0.93)
    assert rows["normal"].covered < 0.75 * runs


def test_rare_positives_in_large_units_are_covered_and_the_bootstraps_miss_them():
    rows = by_method("rate 0.05", Design("facts", 0.6), RUNS, RUNS)
    assert list(rows) == ["hq", "normal", "percentile", "BCa"]
    assert rows["hq"].covered >= binom.ppf(0.001, RUNS, 0.95)
    for method in ("normal", "percentile", "BCa"):
        assert rows[method].covered < 0.9 * RUNS
        assert rows[method].above > rows[method].below


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_every_interval_keeps_its_level(name):
    """Each combination has a probability of about 1 in 10,000 to fail if it covers 94%."""
    combinations = [(e, design) for e, design in designs() if e.name == name]
    for row in coverage(combinations, RUNS):
        if row.method == "hq":
            assert row.covered >= binom.ppf(1e-4, row.runs, 0.94), row


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_the_simulated_data_have_the_stated_truth(name, correlation):
    count = 20 if "checkpoints" in name else 80  # it takes several times as long
    runs = [
        BY_NAME[name].simulate(Design("facts", correlation), np.random.default_rng(run))
        for run in range(count)
    ]
    values = np.array([run.estimate.value for run in runs])
    assert values.mean() == pytest.approx(runs[0].truth, abs=4 * values.std() / np.sqrt(count))
    for run in runs[:3]:
        everything = np.ones((1, run.estimate.n))
        assert run.statistic(everything)[0] == pytest.approx(run.estimate.value)


@pytest.mark.parametrize("study", ["knowledge", "facts"])
def test_units_have_the_sizes_of_the_study(study):
    (row,) = read_table(DOCS.parent / "results" / f"smollm2-{study}", "design").to_dicts()
    sizes = np.array(SIZES[study])
    assert (row["units"], row["n"]) == (len(sizes), sizes.sum())
    assert row["effective_units"] == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum(), rel=1e-4)
    assert row["largest_unit"] == pytest.approx(sizes.max() / sizes.sum(), rel=1e-4)
    assert row["folds"] == len(np.unique(Design(study, 0.0).folds))


@pytest.mark.parametrize("sizes", ["facts", "single rows"])
def test_counts_by_unit_have_the_estimates_of_the_library(sizes):
    design, rng = Design(sizes, 0.3), np.random.default_rng(1)
    labels, units, folds = design.labels, design.units, design.folds
    before, after = (sum(latent(design, rng, True)) + SHIFT * labels for _ in range(2))
    area = of_rows(area_by_unit([before], labels, units, strata=folds), units)
    own, expected = (
        estimate(area, len(units), units, scale="logit"),
        estimate_auroc(before, labels, units, folds),
    )
    assert own.model_dump() == pytest.approx(expected.model_dump())
    change = of_rows(area_by_unit([after, before], labels, units, (1, -1)), units)
    own, expected = (
        estimate(change, len(units), units),
        estimate_auroc_difference(after, before, labels, units),
    )
    assert own.model_dump() == pytest.approx(expected.model_dump())


@pytest.mark.parametrize("name", ["AUROC, units shift all scores", "mean", "rate 0.3"])
def test_the_correlation_is_that_of_the_design(name):
    """The standard error grows with the correlation within units, as large units count once."""
    errors = []
    for correlation in CORRELATIONS:
        design = Design("facts", correlation)
        data = [BY_NAME[name].simulate(design, np.random.default_rng(run)) for run in range(40)]
        errors.append(np.std([run.estimate.value for run in data]))
    assert errors == sorted(errors)
    if name == "mean":  # var = (1 − ρ) / n + ρ · Σm² / n²
        sizes = np.array(SIZES["facts"])
        share = (sizes**2).sum() / sizes.sum() ** 2
        expected = [np.sqrt((1 - r) / sizes.sum() + r * share) for r in CORRELATIONS]
        assert errors == pytest.approx(expected, rel=0.35)


def test_the_benchmark_reports_every_estimand():
    assert BENCHES["intervals"] is bench_intervals
    rows = bench_intervals(runs=2)
    assert [row.name for row in rows] == list(BY_NAME)
    assert all(0 <= row.value <= 1 for row in rows)


def test_the_table_of_the_documentation_is_that_of_the_data():
    begin, end = markers(NAME)
    document = (DOCS / TABLE_FILE).read_text(encoding="utf-8")
    assert document.split(begin)[1].split(end)[0].strip() == table(DOCS).strip()
    data = pl.read_csv(DOCS / f"{NAME}.csv")
    combinations = {(e.name, design.sizes, design.correlation) for e, design in designs()}
    assert set(data.select("estimand", "sizes", "correlation").iter_rows()) == combinations
    own = data.filter(pl.col("method") == "hq")
    assert own["runs"].min() >= 50


def test_data_and_table_are_written(tmp_path):
    rows = coverage([(BY_NAME["mean"], Design("single rows", 0.0))], 5, 4, resamples=20)
    begin, end = markers(NAME)
    (tmp_path / TABLE_FILE).write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    write_results(tmp_path, NAME, rows, table)
    document = (tmp_path / TABLE_FILE).read_text(encoding="utf-8")
    assert document == f"before\n{begin}\n{table(tmp_path)}{end}\nafter\n"
    assert "| mean | single rows | 0 |" in document
    assert f"Not simulated yet: {len(designs()) - 1} combinations" in document
    assert [Coverage(*row) for row in pl.read_csv(tmp_path / f"{NAME}.csv").iter_rows()] == rows
