"""Promised false-alarm rates as a study reports them: domains, thresholds and rates."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from harness.experiments.detect.alarms import FALSE_ALARM_RATES, alarms
from harness.stages.alarms import Scores, domain_of, domains, require_calibration
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.errors import HQError
from hq.monitor.bundle import ALL
from hq.stats.conformal import conformal_threshold

FOLDS = 5


def study(relations=("capital", "symbol"), units=60, per_unit=1):
    """Units with as many answers each, alternately right and hallucinated, by relation and fold."""
    return [
        Sample(
            id=f"{number:03d}.{copy}",
            relation=relations[number // 2 % len(relations)],
            question=f"What is {number}?",
            text="a",
            answer=f"a{number}",
            hallucinated=bool(number % 2),
            unit=f"u{number:03d}",
            fold=number // 2 // len(relations) % FOLDS,
            prompt_ids=(1,),
            response_ids=(2,),
        )
        for number in range(units)
        for copy in range(per_unit)
    ]


def scored(samples, seed=0):
    """Scores of one probe: higher by 1 for hallucinated answers."""
    rng = np.random.default_rng(seed)
    return of_one_probe(samples, rng.standard_normal(len(samples)) + Rows(samples).y)


def of_one_probe(samples, values):
    folds = Rows(samples).folds
    calibration = np.where(folds == np.arange(FOLDS)[:, None], np.nan, values)
    return Scores(np.asarray(values, dtype=float), calibration, np.zeros(FOLDS), 0.0)


def mapped(scores, function):
    return Scores(
        function(scores.out_of_fold), function(scores.calibration), scores.means, scores.mean
    )


def recalibrated(domain, scores, target):
    return scores.flags(domain.thresholds(scores, target), domain.rows.folds)


def frozen(domain, before, after, target):
    return after.flags(domain.thresholds(before, target), domain.rows.folds)


def transferred(domain, before, after, target):
    folds = domain.rows.folds
    return after.flags(before.transfer(domain.thresholds(before, target), after, folds), folds)


def rows_of(samples, before, after, precision="nf4"):
    return [*alarms(samples, Rows(samples), before, after, precision)]


def test_a_domain_has_a_row_if_it_has_enough_units():
    samples = study()
    rows = rows_of(samples, *2 * (scored(samples),))
    # 30 right units, 24 outside of a fold, 12 of each relation: 0.05 needs 19, 0.1 9, and 0.2 4.
    assert [(r.promised, r.domain, r.needed, r.calibrated) for r in rows] == [
        (0.05, ALL, 19, 24),
        (0.1, ALL, 9, 24),
        (0.1, "capital", 9, 12),
        (0.1, "symbol", 9, 12),
        (0.2, ALL, 4, 24),
        (0.2, "capital", 4, 12),
        (0.2, "symbol", 4, 12),
    ]
    assert {r.precision for r in rows} == {"nf4"}
    assert [(r.n, r.units, r.hallucinated, r.hallucinated_units) for r in rows[:3]] == [
        (30, 30, 30, 30),
        (30, 30, 30, 30),
        (15, 15, 15, 15),
    ]


def test_calibrated_units_are_the_fewest_outside_of_a_fold():
    samples = [s for s in study() if s.hallucinated or s.fold or s.relation == "capital"]
    symbol, whole = (domain_of(samples, Rows(samples), name) for name in ("symbol", ALL))
    assert symbol.calibrated() == 9  # fold 0 has none of the 12, each other fold has 3
    assert whole.calibrated() == 27 - 6


def test_many_answers_of_a_unit_are_not_many_units():
    samples = study(units=20, per_unit=5)
    assert [d.name for d in domains(samples, Rows(samples), 0.2)] == [ALL, "capital", "symbol"]
    assert [d.name for d in domains(samples, Rows(samples), 0.11)] == []
    domain = domain_of(samples, Rows(samples))
    assert (len(domain.right), domain.units(domain.right), domain.calibrated()) == (50, 10, 8)


def test_too_few_units_for_a_promise_are_an_error():
    samples = study(units=20)
    require_calibration(samples, Rows(samples), 0.2)
    words = r"0\.1 needs right answers in 9 units outside of each fold, and there are 8: .* 1/9 "
    with pytest.raises(HQError, match=words):
        require_calibration(samples, Rows(samples), 0.1)


def test_one_relation_is_all():
    samples = study(relations=("triviaqa",))
    assert [d.name for d in domains(samples, Rows(samples), 0.2)] == [ALL]


def test_a_relation_named_all_is_not_a_domain_of_its_own():
    samples = study(relations=(ALL, "symbol", "capital"))
    names = [d.name for d in domains(samples, Rows(samples), 0.2)]
    assert names == [ALL, "capital", "symbol"]
    assert domain_of(samples, Rows(samples)).member.all()


def test_a_domain_without_two_hallucinated_units_has_no_row():
    samples = [s for s in study() if s.relation != "symbol" or not s.hallucinated or s.unit < "u01"]
    assert Counter(s.hallucinated for s in samples if s.relation == "symbol") == {
        False: 15,
        True: 2,
    }
    assert "symbol" in {d.name for d in domains(samples, Rows(samples), 0.2)}
    fewer = [s for s in samples if s.id != "003.0"]
    assert "symbol" not in {row.domain for row in rows_of(fewer, *2 * (scored(fewer),))}


def flagged(samples, before, after, target):
    domain = domain_of(samples, Rows(samples))
    return [
        recalibrated(domain, after, target),
        frozen(domain, before, after, target),
        transferred(domain, before, after, target),
    ]


@pytest.mark.parametrize("target", FALSE_ALARM_RATES)
def test_flags_of_a_fold_do_not_depend_on_its_own_labels(target):
    samples = study()
    held_out = Rows(samples).folds == 0
    flipped = [
        s.model_copy(update={"hallucinated": not s.hallucinated}) if s.fold == 0 else s
        for s in samples
    ]
    before, after = scored(samples, 1), scored(samples, 2)
    ours, theirs = (flagged(of, before, after, target) for of in (samples, flipped))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one[held_out], other[held_out])
    assert any(flags[held_out].any() for flags in ours)


def test_flags_of_a_fold_depend_on_labels_of_other_folds():
    samples = study()
    flipped = [s.model_copy(update={"hallucinated": not s.hallucinated}) for s in samples]
    scores = scored(samples)
    assert (
        flagged(samples, scores, scores, 0.2)[0] != flagged(flipped, scores, scores, 0.2)[0]
    ).any()


def test_thresholds_are_set_on_the_scores_without_both_folds():
    samples = study()
    rows, scores = Rows(samples), scored(samples)
    domain = domain_of(samples, rows)
    right = domain.right[rows.folds[domain.right] != 2]
    expected = conformal_threshold(scores.calibration[2, right], 0.1)
    flags = recalibrated(domain, scores, 0.1)
    fold = rows.folds == 2
    np.testing.assert_array_equal(flags[fold], scores.out_of_fold[fold] >= expected)
    # Out-of-fold scores of other folds are by probes that were fitted on fold 2.
    others = np.where(fold, scores.out_of_fold, scores.out_of_fold + 100)
    assert (recalibrated(domain, replace(scores, out_of_fold=others), 0.1) == flags)[fold].all()
    raised = scores.calibration.copy()
    raised[2] += 100
    assert not recalibrated(domain, replace(scores, calibration=raised), 0.1)[fold].any()
    # The threshold for use is set on the out-of-fold scores of all right answers.
    row = next(r for r in rows_of(samples, scores, scores) if r.promised == 0.1)
    assert row.threshold == conformal_threshold(scores.out_of_fold[rows.y == 0], 0.1)


def test_rates_are_shares_of_right_and_of_hallucinated_answers():
    samples = study()
    rows, before, after = Rows(samples), scored(samples, 1), scored(samples, 2)
    for row in rows_of(samples, before, after):
        domain = domain_of(samples, rows, row.domain)
        kinds = {
            "recalibrated": recalibrated(domain, after, row.promised),
            "transferred": transferred(domain, before, after, row.promised),
            "": frozen(domain, before, after, row.promised),
        }
        for kind, flags in kinds.items():
            suffix = f"_{kind}" if kind else ""
            for name, rows_of_label in (("false_alarms", domain.right), ("detected", domain.wrong)):
                rate = getattr(row, name + suffix)
                assert rate.value == pytest.approx(flags[rows_of_label].mean()), (row.domain, kind)
                assert 0 <= rate.low <= rate.value <= rate.high <= 1
                assert rate.n == len(rows_of_label)


def test_units_have_equal_weights_in_the_rates():
    samples = study(units=60)
    first = samples[0]
    copies = [first.model_copy(update={"id": f"copy {n}"}) for n in range(29)]
    high = np.array([1.0 * (s.unit == first.unit) for s in [*samples, *copies]])
    scores = of_one_probe([*samples, *copies], high + np.linspace(0, 0.5, len(high)))
    rows = Rows([*samples, *copies])
    flags = high == 1
    domain = domain_of([*samples, *copies], rows)
    rate = domain.rate(domain.right, flags)
    assert rate.value == pytest.approx(1 / 30)  # not 30 of 59 answers
    assert rate.n == 30
    row = rows_of([*samples, *copies], scores, scores)[0]
    assert (row.n, row.units) == (59, 30)
    np.testing.assert_allclose(
        row.false_alarms.value,
        domain.rate(domain.right, recalibrated(domain, scores, row.promised)).value,
    )


def test_at_the_reference_the_three_kinds_of_thresholds_agree():
    samples = study()
    scores = scored(samples)
    for row in rows_of(samples, scores, scores, "fp16"):
        assert row.threshold == row.threshold_recalibrated
        assert row.false_alarms == row.false_alarms_recalibrated == row.false_alarms_transferred
        assert row.detected == row.detected_recalibrated == row.detected_transferred


def test_transfer_undoes_a_linear_drift_and_recalibration_any_rising_one():
    samples = study()
    before = scored(samples)
    at_reference = rows_of(samples, before, before)
    linear, bent = mapped(before, lambda x: 3 * x + 1), mapped(before, np.exp)
    for after, kinds in ((linear, ("transferred", "recalibrated")), (bent, ("recalibrated",))):
        drifted = rows_of(samples, before, after)
        for row, expected in zip(drifted, at_reference, strict=True):
            for kind in kinds:
                assert getattr(row, f"false_alarms_{kind}") == expected.false_alarms
                assert getattr(row, f"detected_{kind}") == expected.detected
        assert any(
            row.false_alarms != expected.false_alarms
            for row, expected in zip(drifted, at_reference, strict=True)
        )
    # Labels of the drifted scores are not used for the transfer.
    domain = domain_of(samples, Rows(samples))
    unlabelled = transferred(domain, before, linear, 0.1)
    assert unlabelled.tolist() == recalibrated(domain, before, 0.1).tolist()


def test_a_shift_of_each_probes_scores_is_undone():
    """Quantization shifts the scores of every probe by another constant."""
    samples = study()
    before = scored(samples)
    folds = Rows(samples).folds
    shifts = np.array([0.0, 2.0, -1.0, 3.0, -2.0])
    after = Scores(before.out_of_fold + shifts[folds], before.calibration, shifts, 5.0)
    pairs = zip(rows_of(samples, before, before), rows_of(samples, before, after), strict=True)
    for expected, row in pairs:
        assert row.false_alarms_recalibrated == expected.false_alarms
        assert row.detected_recalibrated == expected.detected
        assert row.false_alarms_transferred == expected.false_alarms
        assert row.threshold_recalibrated == pytest.approx(expected.threshold + 5)


def test_rates_keep_the_promise_on_average():
    """Many studies with scores of one probe, for which the promise is exact."""
    samples = study()
    kept = [d.name for rate in (0.1, 0.2) for d in domains(samples, Rows(samples), rate)]
    assert kept == [ALL, "capital", "symbol"] * 2
    realised, promised, calibrated = [], [], []
    for seed in range(150):
        scores = scored(samples, seed)
        rows = rows_of(samples, scores, scores)
        realised.append([row.false_alarms.value for row in rows])
        promised = np.array([row.promised for row in rows])
        calibrated = np.array([row.calibrated for row in rows])
    mean, spread = np.mean(realised, axis=0), 4 * np.std(realised, axis=0) / np.sqrt(150)
    assert (mean <= promised + spread).all()
    assert (mean >= promised - 1 / (calibrated + 1) - spread).all()


def test_targets_are_rates():
    assert all(0 < target < 1 for target in FALSE_ALARM_RATES)
    assert list(FALSE_ALARM_RATES) == sorted(set(FALSE_ALARM_RATES))
