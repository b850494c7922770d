"""The drift of cross-fitted probes on the answers that they were fitted on, at another precision.

Each answer is scored by the probe of its fold, which has not seen it, at the reference and at the
other precision. The threshold of a fold is set on right answers of other folds at the reference.
"""

from collections.abc import Sequence

from harness.stages.alarms import Scores, domain_of
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.monitor.drift import MonitoredAnswers, MonitorReference
from hq.stats.auroc import estimate_auroc
from hq.stats.intervals import estimate_rate


def paired_reference(
    samples: Sequence[Sample], rows: Rows, scores: Scores, promised: float
) -> MonitorReference:
    """Return what the probes did at the reference, out of fold."""
    answers = answers_at(samples, rows, scores, scores, promised)
    return MonitorReference(
        promised=promised,
        calibrated=domain_of(samples, rows).calibrated(),
        scores=answers.scores,
        flagged=estimate_rate(answers.flags, rows.units),
        auroc=estimate_auroc(answers.scores, rows.y, rows.units, rows.folds),
        answers=answers,
        paired=True,
    )


def answers_at(
    samples: Sequence[Sample],
    rows: Rows,
    reference: Scores,
    scores: Scores,
    promised: float,
    labelled: bool = True,
) -> MonitoredAnswers:
    """Return the answers with scores at a precision, flagged by the reference's thresholds."""
    thresholds = domain_of(samples, rows).thresholds(reference, promised)
    return MonitoredAnswers(
        scores=scores.out_of_fold,
        flags=scores.flags(thresholds, rows.folds),
        units=rows.units,
        labels=rows.y if labelled else None,
        strata=rows.folds,
    )


def separate_reference(
    samples: Sequence[Sample], rows: Rows, scores: Scores, promised: float
) -> tuple[MonitorReference, float]:
    """Return what the set for use is expected to do on other answers, and its threshold.

    As in a bundle, the out-of-fold scores are moved to the mean of the set for use.
    """
    domain = domain_of(samples, rows)
    threshold = domain.threshold(scores, promised)
    values = scores.out_of_fold - scores.means[rows.folds] + scores.mean
    answers = MonitoredAnswers(values, values >= threshold, rows.units, rows.y)
    reference = MonitorReference(
        promised=promised,
        calibrated=domain.units(domain.right),
        scores=values,
        flagged=estimate_rate(answers.flags, rows.units),
        auroc=estimate_auroc(scores.out_of_fold, rows.y, rows.units, rows.folds),
        answers=answers,
    )
    return reference, threshold
