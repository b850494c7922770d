import numpy as np
import pytest

from harness.bench import BENCHES, l1_large
from harness.bench.correlated import Solution, objectives, write_design
from harness.bench.memory import Peak, with_peak
from hq.probe.l1 import objective, warm_up
from tests.hq.streamed_fit import number_kept


def test_l1_large_has_its_rows_at_a_small_size(monkeypatch):
    """In this process: a new one imports the packages of every bench."""
    assert BENCHES["l1-large"] is l1_large.bench_l1_large
    monkeypatch.setattr(l1_large, "with_peak", lambda _, work, *args: Peak(work(*args), 1.0))
    rows = {row.name: row for row in l1_large.bench_l1_large(n=120, sizes=[3000])}
    assert {
        "hq_s_3k",
        "hq_memory_over_matrix_3k",
        "speedup_over_skglm_3k",
        "memory_over_skglm_3k",
        "speedup_over_pybiglasso_3k",
        "objective_gap_relative_3k",
    } <= set(rows)
    assert rows["objective_gap_relative_3k"].ok


def test_a_design_has_correlated_groups_and_depends_on_a_few_columns(tmp_path):
    design = write_design(tmp_path / "design.npy", seed=0, n=2000, p=256)
    X = design.matrix
    assert X.shape == (2000, 256)
    assert X.dtype == np.float32
    assert X.flags.f_contiguous
    correlation = np.corrcoef(X, rowvar=False)
    group = np.arange(256) // 16
    same = (group[:, None] == group) & ~np.eye(256, dtype=bool)
    assert correlation[same].mean() == pytest.approx(0.6, abs=0.03)
    assert np.abs(correlation[group[:, None] != group]).mean() < 0.03
    shift = X[design.y == 1].mean(axis=0) - X[design.y == 0].mean(axis=0)
    truth = np.linspace(0, 255, 8).astype(int)
    assert np.abs(shift[truth]).min() > 0.2


def test_the_objective_of_a_file_is_that_in_memory(tmp_path):
    design = write_design(tmp_path / "design.npy", seed=1, n=60, p=20)
    Z = design.standardised(np.arange(20))
    coef = np.zeros(20)
    coef[[2, 7]] = 0.5, -0.25
    (value,) = objectives(design, [0.3], [Solution(np.array([2, 7]), coef[[2, 7]], 0.1)])
    assert value == pytest.approx(objective(Z, design.y, coef, 0.1, 0.3), rel=1e-12)


def test_memory_of_a_fit_out_of_core_is_a_fraction_of_the_matrix(tmp_path):
    design = write_design(tmp_path / "design.npy", seed=2, n=400, p=200_000)
    peak = with_peak(warm_up, number_kept, design.path, design.y)
    assert peak.result > 2
    assert 0 < peak.mib < design.matrix.nbytes / 2**20 / 3


def test_memory_of_a_copy_is_found(tmp_path):
    np.save(tmp_path / "zeros.npy", np.ones(2**23))
    peak = with_peak(int, np.load, tmp_path / "zeros.npy")
    assert peak.mib > 60
