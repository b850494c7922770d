"""Verdicts on a monitor whose scores drifted in a known way."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm

from hq.errors import HQError
from hq.monitor.drift import (
    LEAST_UNITS,
    Margins,
    MonitoredAnswers,
    MonitorReference,
    Verdict,
    measure_drift,
    require_enough,
)
from hq.stats.auroc import auroc, estimate_auroc
from hq.stats.conformal import conformal_threshold
from hq.stats.equivalence import decide
from hq.stats.intervals import combined_interval, estimate_rate

PROMISED = 0.1


def answers(rng, units, per_unit=2):
    """Scores that are higher by 1.5 for hallucinated answers, and share a part in their unit."""
    unit = np.repeat(np.arange(units), per_unit)
    y = np.arange(len(unit)) % 2
    scores = 1.5 * y + 0.4 * rng.standard_normal(units)[unit] + 0.9 * rng.standard_normal(len(unit))
    return scores, y, unit


def monitor(seed=0, units=400, promised=PROMISED):
    """The reference of a monitor, and its threshold."""
    scores, y, unit = answers(np.random.default_rng((seed, 0)), units)
    threshold = conformal_threshold(scores[y == 0], promised, unit[y == 0])
    known = MonitoredAnswers(scores, scores >= threshold, unit, y)
    reference = MonitorReference(
        promised=promised,
        calibrated=units,
        scores=scores,
        flagged=estimate_rate(known.flags, unit),
        auroc=estimate_auroc(scores, y, unit),
        answers=known,
    )
    return reference, threshold


def new_answers(threshold, change=lambda scores, y: (scores, y), seed=0, units=600):
    scores, y, unit = answers(np.random.default_rng((seed, 1)), units)
    scores, y = change(scores, y)
    return MonitoredAnswers(scores, scores >= threshold, 10_000 + unit, y)


def shifted(scores, y):
    return scores + 0.8, y


def rescaled(scores, y):
    return 2 * scores, y


def half_flipped(scores, y):
    return scores, np.where(np.arange(len(y)) // 2 % 2, y, 1 - y)


def with_noise(scores, y):
    return scores + 1.5 * np.random.default_rng(9).standard_normal(len(y)), y


WIDE = Margins(auroc=0.06, rate=0.08)


@pytest.mark.parametrize(
    ("change", "labelled", "unlabelled"),
    [
        (lambda scores, y: (scores, y), Verdict.OK, Verdict.OK),
        (shifted, Verdict.THRESHOLD_STALE, Verdict.THRESHOLD_STALE),
        (rescaled, Verdict.THRESHOLD_STALE, Verdict.THRESHOLD_STALE),
        (half_flipped, Verdict.SCORER_DEGRADED, Verdict.OK),  # which no score shows
        (with_noise, Verdict.SCORER_DEGRADED, Verdict.OK),
    ],
    ids=["none", "shift", "scale", "labels", "noise"],
)
def test_known_drift_of_other_answers(change, labelled, unlabelled):
    reference, threshold = monitor()
    new = new_answers(threshold, change)
    drift = measure_drift(reference, new, WIDE)
    assert drift.verdict is labelled, drift
    assert drift.auroc.value == auroc(new.scores, new.labels)
    blind = measure_drift(reference, replace(new, labels=None), WIDE)
    assert blind.verdict is unlabelled, blind
    assert (blind.auroc, blind.false_alarms, blind.calibration_slope) == (None, None, None)
    assert (blind.shift, blind.flagged_change) == (drift.shift, drift.flagged_change)
    moved = change in (shifted, rescaled, with_noise)
    assert (drift.shift.ks_p <= 0.01) == (drift.shift.psi > 0.05) == moved


def paired(change, seed=0, units=400):
    reference, threshold = monitor(seed, units)
    known = reference.answers
    scores, y = change(known.scores, known.labels)
    new = replace(known, scores=scores, flags=scores >= threshold, labels=y)
    return replace(reference, paired=True), new


def test_on_the_same_answers_a_monotone_change_is_no_loss_of_auroc():
    drift = measure_drift(*paired(shifted), Margins())
    assert drift.auroc_change.difference.value == 0
    assert drift.verdict is Verdict.THRESHOLD_STALE
    assert drift.false_alarms.value > 2 * PROMISED
    same = measure_drift(*paired(lambda scores, y: (scores, y)), Margins())
    assert same.verdict is Verdict.OK
    assert (same.shift.psi, same.shift.ks, same.shift.ks_p) == (0, 0, 1)
    assert same.calibration_error == same.calibration_error_reference


def test_pairing_decides_with_fewer_answers():
    noise = 0.1 * np.random.default_rng(1).standard_normal(500)
    drift = measure_drift(*paired(lambda scores, y: (scores + noise, y), units=250), Margins())
    assert drift.verdict is Verdict.OK
    reference, threshold = monitor(units=250)
    separate = measure_drift(reference, new_answers(threshold, units=250), Margins())
    assert separate.verdict is Verdict.INCONCLUSIVE
    assert separate.sentence.startswith("inconclusive (")


def test_a_higher_auroc_is_no_fault():
    drift = measure_drift(*paired(lambda scores, y: (scores + 0.5 * y, y)), Margins(rate=0.05))
    assert drift.auroc_change.difference.low > 0.02
    assert drift.verdict is Verdict.OK


def test_more_units_are_enough_for_a_verdict():
    """With the stated number of units and the same values, both differences are decided."""
    reference, threshold = monitor()
    reference, margins = replace(reference, answers=None), Margins(auroc=0.06)
    drift = measure_drift(reference, new_answers(threshold, units=80), margins)
    assert drift.verdict is Verdict.INCONCLUSIVE
    assert drift.more is not None
    assert drift.more > 0
    assert f"about {drift.more:,} more units needed" in drift.sentence
    decided = [
        measure_drift(reference, new_answers(threshold, seed=s, units=80 + drift.more), margins)
        for s in range(10)
    ]
    assert sum(d.verdict is not Verdict.INCONCLUSIVE for d in decided) > 4


def test_units_cannot_make_up_for_a_small_reference():
    reference, threshold = monitor(units=40)
    drift = measure_drift(reference, new_answers(threshold, units=600), Margins(auroc=0.005))
    assert (drift.verdict, drift.more) == (Verdict.INCONCLUSIVE, None)
    assert "alone would not decide" in drift.sentence


def test_the_number_of_units_with_a_fixed_part_of_the_variance():
    """Of N units: t·√(fixed + v·n/N) < margin, at the smallest such N."""
    new, fixed, n, margin = 0.03**2, 0.01**2, 50, 0.03
    difference = combined_interval(0.0, n, [(new, 1e9), (fixed, 1e9)])
    needed = decide(difference, margin, fixed / (new + fixed)).n_needed
    t = norm.ppf(0.95)
    assert t * np.sqrt(fixed + new * n / needed) < margin
    assert t * np.sqrt(fixed + new * n / (needed - 1)) >= margin
    assert decide(difference, 0.01 * t, fixed / (new + fixed)).n_needed is None


def share_of(verdict, cases):
    return np.mean([case.verdict is verdict for case in cases])


def test_a_threshold_that_keeps_its_promise_is_rarely_stale():
    """In 5% of data sets or fewer, though a calibration on 60 units has a rate of its own."""
    runs, cases = 80, []
    for seed in range(runs):
        reference, threshold = monitor(seed, units=60)
        reference = replace(reference, answers=None)  # as in a bundle: no p-values
        new = new_answers(threshold, seed=seed, units=200)
        cases.append(measure_drift(reference, new, Margins(auroc=1.0)))
    stale = share_of(Verdict.THRESHOLD_STALE, cases)
    assert stale <= binom.ppf(0.99, runs, 0.05) / runs
    too_certain = [  # without the variance over calibrations
        case.false_alarms.low > PROMISED or case.false_alarms.high < PROMISED for case in cases
    ]
    assert np.mean(too_certain) > 0.1


def test_a_rate_at_the_margin_is_rarely_ok():
    """TOST keeps its size: at most 5% of thresholds with a rate of promised + margin are ok."""
    runs, cases = 80, []
    spread = float(np.hypot(0.4, 0.9))
    exact = spread * norm.isf(PROMISED + 0.05)  # the rate of right answers is 0.15
    for seed in range(runs):
        reference, _ = monitor(seed, units=400)
        reference = replace(reference, answers=None)
        new = new_answers(exact, seed=seed, units=200)
        cases.append(measure_drift(reference, new, Margins(auroc=1.0)))
    assert share_of(Verdict.OK, cases) <= binom.ppf(0.99, runs, 0.05) / runs
    assert share_of(Verdict.THRESHOLD_STALE, cases) > 0.3


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(40), "There are no hallucinated answers among the 40 new ones"),
        (np.arange(40) < 4, "new hallucinated answers are about 4 independent units"),
        (np.arange(40) >= 4, "new right answers are about 4 independent units"),
    ],
)
def test_too_few_units_of_a_label_are_an_error(labels, words):
    with pytest.raises(HQError, match=words):
        require_enough(np.arange(40), labels.astype(int))
    require_enough(np.arange(40))
    with pytest.raises(
        HQError, match=f"are about 9 independent units, and drift needs {LEAST_UNITS}"
    ):
        require_enough(np.arange(40) % 9)
