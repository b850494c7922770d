"""Promised false-alarm rates as a study reports them: which domains, which thresholds, what rates."""

import numpy as np
import pytest

from harness.experiments.detect.alarms import FALSE_ALARM_RATES, alarms, answers_of, domains
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.monitor.bundle import ALL

PER_SPLIT = {"train": 2, "calibration": 24, "test": 40}


def study(relations=("capital", "symbol"), per_entity=1):
    """Entities with as many answers each, alternately right and hallucinated, by relation."""
    return [
        Sample(
            id=f"{split}{entity}.{copy}",
            relation=relations[entity // 2 % len(relations)],
            split=split,
            component=f"{split}{entity}",
            hallucinated=bool(entity % 2),
            text="a",
            prompt_ids=(1,),
            response_ids=(2,),
        )
        for split, count in PER_SPLIT.items()
        for entity in range(count)
        for copy in range(per_entity)
    ]


def scored(samples, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(len(samples)) + [float(s.hallucinated) for s in samples]


def test_a_domain_has_a_row_where_its_entities_suffice():
    samples = study()
    rows = [*alarms(samples, Rows(samples), *2 * (scored(samples),), "nf4", 3)]
    # 12 right calibration entities, 6 of each relation: 0.05 takes 19, 0.1 takes 9, 0.2 takes 4.
    assert [(r.promised, r.domain, r.needed, r.calibrated) for r in rows] == [
        (0.1, ALL, 9, 12),
        (0.2, ALL, 4, 12),
        (0.2, "capital", 4, 6),
        (0.2, "symbol", 4, 6),
    ]
    assert {(r.precision, r.seed) for r in rows} == {("nf4", 3)}
    assert [(r.n, r.entities, r.hallucinated) for r in rows[1:3]] == [(20, 20, 20), (10, 10, 10)]


def test_many_answers_of_an_entity_do_not_suffice():
    samples = study(per_entity=5)
    found = {d.domain: d for d in domains(samples, Rows(samples), 0.1)}
    assert set(found) == {ALL}
    assert (len(found[ALL].right), found[ALL].entities(found[ALL].right)) == (60, 12)


def test_one_relation_is_all():
    samples = study(relations=("triviaqa",))
    assert [d.domain for d in domains(samples, Rows(samples), 0.2)] == [ALL]


def test_a_relation_called_all_is_not_taken_for_all():
    samples = study(relations=(ALL, "symbol", "capital"))
    names = [d.domain for d in domains(samples, Rows(samples), 0.2)]
    assert names == [ALL, "capital", "symbol"]
    whole = answers_of(samples, Rows(samples))
    assert len(whole.calibration) == PER_SPLIT["calibration"]


def test_rates_are_of_the_right_and_of_the_hallucinated_answers_of_the_test_split():
    samples = study()
    before, after = scored(samples, 1), scored(samples, 2)
    row = next(iter(alarms(samples, Rows(samples), before, after, "nf4", 0)))
    right, wrong = (
        np.array([s.split == "test" and s.hallucinated is label for s in samples])
        for label in (False, True)
    )
    for threshold, false_alarms, detected in (
        (row.threshold, row.false_alarms, row.detected),
        (row.threshold_recalibrated, row.false_alarms_recalibrated, row.detected_recalibrated),
        (row.threshold_anew, row.false_alarms_anew, row.detected_anew),
    ):
        assert false_alarms.value == pytest.approx((after[right] >= threshold).mean())
        assert detected.value == pytest.approx((after[wrong] >= threshold).mean())
        assert false_alarms.low <= false_alarms.value <= false_alarms.high
        assert false_alarms.n == 20


def test_at_the_reference_the_three_thresholds_are_one():
    samples = study()
    before = scored(samples)
    for row in alarms(samples, Rows(samples), before, before, "fp16", 0):
        assert row.threshold == row.threshold_anew
        assert row.threshold_recalibrated == pytest.approx(row.threshold, abs=1e-9)
        assert row.false_alarms == row.false_alarms_anew == row.false_alarms_recalibrated


def test_moving_undoes_a_linear_drift_and_setting_anew_any_rising_one():
    samples = study()
    before = scored(samples)
    linear, bent = 3 * before + 1, np.exp(before)
    for after, names in ((linear, ("recalibrated", "anew")), (bent, ("anew",))):
        drifted = [*alarms(samples, Rows(samples), before, after, "nf4", 0)]
        for row, at_home in zip(
            drifted, alarms(samples, Rows(samples), before, before, "fp16", 0), strict=True
        ):
            for name in names:
                assert getattr(row, f"false_alarms_{name}") == at_home.false_alarms
                assert getattr(row, f"detected_{name}") == at_home.detected
    assert any(row.false_alarms.value > row.promised for row in drifted)


def test_calibrations_keep_the_promise_on_average():
    """The whole way, over many studies: each with calibration and test entities of its own."""
    samples = study()
    rows = Rows(samples)
    realised = np.array(
        [
            [r.false_alarms.value for r in alarms(samples, rows, *2 * (scored(samples, s),), "", 0)]
            for s in range(250)
        ]
    )
    promised = np.array([0.1, 0.2, 0.2, 0.2])
    spread = 4 * realised.std(axis=0) / np.sqrt(len(realised))
    assert (realised.mean(axis=0) <= promised + spread).all()
    assert (realised.mean(axis=0) >= promised - 1 / np.array([13, 13, 7, 7]) - spread).all()


def test_no_test_answer_of_a_kind_is_no_row():
    samples = [s for s in study() if s.split != "test" or s.relation != "symbol" or s.hallucinated]
    found = [*alarms(samples, Rows(samples), *2 * (scored(samples),), "nf4", 0)]
    assert "symbol" not in {row.domain for row in found}
    assert "symbol" in {d.domain for d in domains(samples, Rows(samples), 0.2)}


def test_targets_are_rates():
    assert all(0 < target < 1 for target in FALSE_ALARM_RATES)
    assert list(FALSE_ALARM_RATES) == sorted(set(FALSE_ALARM_RATES))
