"""`hq plan` of detect: the smallest change of the AUROC that a study can show."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student_t

from harness.experiments.detect.power import (
    REFERENCES,
    effective_units,
    expected_change,
)
from harness.stages.samples import read_samples
from harness.tables.files import read_table
from hq.stats.intervals import Estimate, smallest_detectable

ROOT = Path(__file__).parents[2]


def spread_of(half_width: float, units: float) -> float:
    """Return c from the half-width of the 95% interval of a change: the inverse of its use."""
    return half_width / float(student_t.ppf(0.975, max(units - 1, 1.0))) * float(np.sqrt(units))


def power_of(hq, *arguments):
    return json.loads(hq("plan", *arguments, "--json").out)["power"]


def test_before_a_run_it_follows_from_the_quota(tiny_study, hq):
    (row,) = power_of(hq, tiny_study)
    reference = REFERENCES["text"]
    assert (row["precision"], row["basis"], row["samples"]) == ("nf4", "quota", 120)
    assert row["effective_units"] == pytest.approx(120 * reference.units_per_sample)
    assert row["change"] == pytest.approx(expected_change(reference.c, row["effective_units"]))
    shown = " ".join(hq("plan", tiny_study).out.split())
    assert (
        "Smallest change of the AUROC from FP16 that at most 120 samples in "
        f"{row['effective_units']:.0f} effective units show with 80% power: nf4 "
        f"{row['change']:.3f} (if samples have as many units and the scores change as at nf4 in "
        "the study smollm2-knowledge)."
    ) in shown
    assert not list(Path("cache/store").glob("*"))


def test_more_pairs_show_a_smaller_change_until_the_questions_are_used_up(tiny_study, hq):
    few, more, most = (
        power_of(hq, tiny_study, "--set", f"sampling.quota={quota}")[0] for quota in (20, 80, 9999)
    )
    assert few["change"] > 1.9 * more["change"]  # a quarter of the units, twice the spread
    assert 300 < most["samples"] < 400  # those that are not reserved


def test_after_sampling_it_follows_from_the_units(finished, tiny_study, hq, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    row, other = power_of(hq, tiny_study, "--precisions", "nf4,int8")
    samples = read_samples(finished / "runs" / "tiny" / "samples.jsonl")
    units = effective_units([sample.unit for sample in samples])
    assert (row["precision"], row["basis"]) == ("nf4", "scores")
    assert (other["precision"], other["basis"]) == ("int8", "samples")
    assert row["effective_units"] == other["effective_units"] == pytest.approx(units)
    assert other["samples"] == len(samples)
    assert other["change"] == pytest.approx(expected_change(REFERENCES["text"].c, units))


def test_after_a_run_it_is_that_of_the_table(finished, tiny_study, hq, monkeypatch):
    monkeypatch.setenv("HQ_CACHE", str(finished / "cache"))
    (row,) = power_of(hq, tiny_study)
    run = finished / "runs" / "tiny"
    assert row["change"] == pytest.approx(read_table(run, "detection")["detectable"][1], rel=1e-4)
    assert row["effective_units"] == pytest.approx(
        read_table(run, "design")["effective_units"][0], rel=1e-4
    )
    shown = " ".join(hq("plan", tiny_study).out.split())
    assert f"show with 80% power: nf4 {row['change']:.3f} (by its scores)." in shown


def test_other_experiments_and_fp16_alone_state_none(tiny_study, hq):
    assert power_of(hq, tiny_study, "-e", "survival", "--precisions", "int8,nf4") == []
    assert power_of(hq, tiny_study, "--precisions", "fp16") == []
    assert "80% power" not in hq("plan", tiny_study, "--precisions", "fp16").out


def test_effective_units():
    assert effective_units(["a", "b", "c"]) == 3
    assert effective_units(["a"] * 4 + ["b"]) == pytest.approx(25 / 17)


def test_the_expected_change_is_the_tables_at_the_same_spread():
    half_width, units = 0.016, 20.7
    df = units - 1
    c = spread_of(half_width, units)
    se = c / units**0.5
    change = Estimate(value=0.1, low=0.1 - half_width, high=0.1 + half_width, n=72, se=se, df=df)
    assert change.interval(0.95)[1] == pytest.approx(change.high)
    assert expected_change(c, units) == pytest.approx(smallest_detectable(change))


@pytest.mark.parametrize("balance", REFERENCES)
def test_the_constants_are_those_of_the_committed_studies(balance):
    reference = REFERENCES[balance]
    folder = ROOT / "results" / reference.study
    detection = read_table(folder, "detection")
    (nf4,) = (row for row in detection.iter_rows(named=True) if row["precision"] == "nf4")
    (design,) = read_table(folder, "design").iter_rows(named=True)
    units, n = design["effective_units"], design["n"]
    assert design["balance"] == balance
    assert reference.units_per_sample == pytest.approx(units / n, rel=0.3)
    half_width = (nf4["auroc_change_high"] - nf4["auroc_change_low"]) / 2
    assert reference.c == pytest.approx(spread_of(half_width, units), rel=0.3)
    assert expected_change(reference.c, units) == pytest.approx(nf4["detectable"], rel=0.35)
