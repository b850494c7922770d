"""Rows of table `alarms`: promised false-alarm rates, and those of cross-fitted decisions.

How thresholds are set and transferred is in `harness.stages.alarms`.
"""

from collections.abc import Iterator, Sequence

from harness.experiments.detect.tables import Alarm
from harness.stages.alarms import DomainAnswers, Scores, domains
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.stats.conformal import entities_needed

FALSE_ALARM_RATES = (0.05, 0.1, 0.2)
"""False-alarm rates that the thresholds of the table promise."""


def alarms(
    samples: Sequence[Sample], rows: Rows, before: Scores, after: Scores, precision: str
) -> Iterator[Alarm]:
    """Yield a row per domain and rate; `before` are the scores at the reference."""
    for target in FALSE_ALARM_RATES:
        for domain in domains(samples, rows, target):
            yield _alarm(domain, target, before, after, precision)


def _alarm(
    domain: DomainAnswers, target: float, before: Scores, after: Scores, precision: str
) -> Alarm:
    folds = domain.rows.folds
    thresholds = domain.thresholds(before, target)
    frozen = after.flags(thresholds, folds)
    transferred = after.flags(before.transfer(thresholds, after, folds), folds)
    recalibrated = after.flags(domain.thresholds(after, target), folds)
    right, wrong = domain.right, domain.wrong
    return Alarm(
        precision=precision,
        domain=domain.name,
        promised=target,
        needed=entities_needed(target),
        calibrated=domain.calibrated(),
        n=len(right),
        units=domain.units(right),
        hallucinated=len(wrong),
        hallucinated_units=domain.units(wrong),
        threshold=domain.threshold(before, target),
        false_alarms=domain.rate(right, frozen),
        detected=domain.rate(wrong, frozen),
        false_alarms_transferred=domain.rate(right, transferred),
        detected_transferred=domain.rate(wrong, transferred),
        threshold_recalibrated=domain.threshold(after, target),
        false_alarms_recalibrated=domain.rate(right, recalibrated),
        detected_recalibrated=domain.rate(wrong, recalibrated),
    )
