"""The simulated levels of tests of two detectors, and the table of them in the documentation."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from harness.bench import BENCHES
from harness.bench.simulated import SHIFT, TABLE_FILE, Design, area_of, markers, write_results
from harness.bench.tests import (
    HYPOTHESES,
    LEVEL,
    MARGIN,
    NAME,
    POWER,
    Level,
    Promise,
    _detectors,
    bench_tests,
    combinations,
    levels,
    table,
)
from harness.experiments.detect.compare import MARGIN as MARGIN_OF_THE_TABLES
from hq.stats.auroc import auroc

DOCS = Path(__file__).parents[2] / "docs"
BY_TRUTH = {hypothesis.truth: hypothesis for hypothesis in HYPOTHESES}
RUNS = 80


def rejections(truth: str, design: Design, runs: int = RUNS) -> dict[str, Level]:
    return {row.test: row for row in levels([(BY_TRUTH[truth], design)], runs)}


def at_most(share: float, runs: int) -> int:
    """A count that is exceeded with a probability of 1 in 1,000."""
    return int(binom.ppf(0.999, runs, share))


def test_tests_of_units_keep_their_level_and_tests_of_rows_do_not():
    rows = rejections("two equal detectors", Design("facts", 0.3))
    for test, row in rows.items():
        if row.promise == Promise.LEVEL:
            assert row.rejected <= at_most(LEVEL, RUNS), row
        else:
            assert test in ("DeLong", "McNemar")
            assert row.rejected > 0.2 * RUNS
            assert not row.broken


def test_tests_of_rows_keep_their_level_for_independent_rows():
    rows = rejections("two equal detectors", Design("single rows", 0.0))
    assert {row.promise for row in rows.values()} == {Promise.LEVEL}
    assert all(row.rejected <= at_most(LEVEL, RUNS) for row in rows.values())


def test_holm_keeps_the_family_wise_error_that_single_tests_exceed():
    rows = rejections("four of six detectors equal the reference", Design("facts", 0.3), 40)
    assert rows["Holm"].rejected <= at_most(LEVEL, 40)
    assert rows["without correction"].rejected > rows["Holm"].rejected


def test_preserved_is_seldom_said_at_the_margin_and_often_without_a_change():
    design = Design("facts", 0.0)
    (at_margin,) = rejections(f"the AUROC falls by the margin, {MARGIN}", design).values()
    (equal,) = rejections("two equal precisions", design).values()
    assert at_margin.rejected <= at_most(LEVEL, RUNS)
    assert equal.rejected > 0.7 * RUNS
    assert MARGIN == MARGIN_OF_THE_TABLES


@pytest.mark.slow
@pytest.mark.parametrize("truth", BY_TRUTH)
def test_every_test_keeps_its_level(truth):
    """A probability of about 1 in 10,000 for each row to fail at a level of 6%."""
    for row in levels([c for c in combinations() if c[0].truth == truth], RUNS):
        if row.promise == Promise.LEVEL:
            assert row.rejected <= binom.ppf(1 - 1e-4, RUNS, 0.06), row


def test_detectors_have_their_areas_and_correlation():
    design, shifts = Design("facts", 0.3), (SHIFT, 1.0)
    runs = [_detectors(design, np.random.default_rng(run), shifts) for run in range(60)]
    for k, shift in enumerate(shifts):
        areas = np.array([auroc(scores[k], design.labels) for scores in runs])
        assert areas.mean() == pytest.approx(area_of(shift), abs=4 * areas.std() / np.sqrt(60))
    right = design.labels == 0
    correlations = [np.corrcoef(scores[:, right])[0, 1] for scores in runs]
    assert np.mean(correlations) == pytest.approx(0.5, abs=0.05)


def test_a_promise_is_broken_if_the_interval_excludes_it():
    row = Level("t", "h", "facts", 72, 1494, 0.0, Promise.LEVEL, 1000, 80)
    assert row.broken
    assert row.share == 0.08
    assert not row._replace(rejected=60).broken
    assert not row._replace(rejected=0).broken  # conservative
    assert not row._replace(promise=Promise.NONE).broken
    assert row._replace(promise=Promise.DETECTED).broken
    assert not row._replace(promise=Promise.DETECTED, rejected=int(POWER * 1000)).broken


def test_the_benchmark_reports_every_test_and_promise(monkeypatch):
    monkeypatch.setattr("harness.bench.tests._PILOTS", 2)
    assert BENCHES["tests"] is bench_tests
    rows = bench_tests(runs=1)
    assert len({row.name for row in rows}) == sum(len(h.tests) for h in HYPOTHESES)
    goals = {row.goal for row in rows}
    assert goals == {None, "<= 0.07", ">= 0.6"}


def test_the_table_of_the_documentation_is_that_of_the_data():
    begin, end = markers(NAME)
    document = (DOCS / TABLE_FILE).read_text(encoding="utf-8")
    assert document.split(begin)[1].split(end)[0].strip() == table(DOCS).strip()
    data = pl.read_csv(DOCS / f"{NAME}.csv")
    expected = {(h.truth, d.sizes, d.correlation) for h, d in combinations()}
    assert set(data.select("truth", "sizes", "correlation").iter_rows()) == expected
    assert data["runs"].min() >= 200


def test_data_and_table_are_written(tmp_path):
    chosen = (BY_TRUTH["scores do not depend on labels"], Design("single rows", 0.0))
    rows = levels([chosen], 3)
    begin, end = markers(NAME)
    (tmp_path / TABLE_FILE).write_text(f"{begin}\nold\n{end}\n", encoding="utf-8")
    write_results(tmp_path, NAME, rows, table)
    document = (tmp_path / TABLE_FILE).read_text(encoding="utf-8")
    assert document == f"{begin}\n{table(tmp_path)}{end}\n"
    assert "| scores do not depend on labels | permutation | single rows | 0 |" in document
    assert [Level(*row) for row in pl.read_csv(tmp_path / f"{NAME}.csv").iter_rows()] == rows
