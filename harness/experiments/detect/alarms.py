"""Promised false-alarm rates: thresholds per domain, and their rates on held-out answers.

A domain is one relation of the scenario, or `all`. A promise needs right calibration answers about
enough entities (`hq.stats.conformal`): a domain with fewer has no threshold. An entity is a
component of the samples: entities that questions link, directly or not, count as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.detect.tables import Alarm
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.monitor.bundle import ALL
from hq.stats.bootstrap import Estimate
from hq.stats.conformal import conformal_threshold, entities_needed, entity_rate
from hq.stats.thresholds import match_quantile

FALSE_ALARM_RATES = (0.05, 0.1, 0.2)
"""False-alarm rates that the thresholds of the table promise."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a domain, as rows of the samples."""

    domain: str
    calibration: Int[np.ndarray, " calibration"]
    right: Int[np.ndarray, " right"]  # the right ones of the calibration split
    test_right: Int[np.ndarray, " test_right"]
    test_wrong: Int[np.ndarray, " test_wrong"]
    components: np.ndarray  # of all samples; samples of one component share entities

    def threshold(self, scores: Float[np.ndarray, " n"], target: float) -> float:
        """Return the threshold that promises this rate, given the scores of all samples."""
        return conformal_threshold(scores[self.right], target, self.components[self.right])

    def entities(self, rows: Int[np.ndarray, " row"]) -> int:
        """Return the number of entities of these rows."""
        return len(np.unique(self.components[rows]))

    def flagged(
        self, rows: Int[np.ndarray, " row"], scores: Float[np.ndarray, " n"], at: float, seed: int
    ) -> Estimate:
        """Return the share of these rows at or above a threshold; entities have equal weights."""
        return entity_rate(scores[rows] >= at, seed, self.components[rows])


def domains(samples: Sequence[Sample], rows: Rows, target: float) -> Iterator[Answers]:
    """Yield the domains with enough calibration answers to promise this rate, `all` first."""
    relations = sorted({sample.relation for sample in samples} - {ALL})
    for name in (ALL, *relations) if len(relations) > 1 else (ALL,):
        answers = answers_of(samples, rows, name)
        if answers.entities(answers.right) >= entities_needed(target):
            yield answers


def answers_of(samples: Sequence[Sample], rows: Rows, domain: str = ALL) -> Answers:
    """Return the answers of a domain: of one relation, or all."""
    member = np.array([domain in (ALL, sample.relation) for sample in samples])
    calibration, test = (split[member[split]] for split in (rows.calibration, rows.test))
    return Answers(
        domain=domain,
        calibration=calibration,
        right=calibration[rows.y[calibration] == 0],
        test_right=test[rows.y[test] == 0],
        test_wrong=test[rows.y[test] == 1],
        components=rows.components,
    )


def alarms(
    samples: Sequence[Sample],
    rows: Rows,
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " n"],
    precision: str,
    seed: int,
) -> Iterator[Alarm]:
    """Yield a row per domain and rate.

    `before` and `after` are scores of all samples at FP16 and at `precision`.
    """
    for target in FALSE_ALARM_RATES:
        for answers in domains(samples, rows, target):
            if len(answers.test_right) and len(answers.test_wrong):
                yield _alarm(answers, target, before, after, precision, seed)


def _alarm(
    answers: Answers,
    target: float,
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " n"],
    precision: str,
    seed: int,
) -> Alarm:
    frozen, rows = answers.threshold(before, target), answers.calibration
    transferred = match_quantile(frozen, before[rows], after[rows])
    recalibrated = answers.threshold(after, target)
    right, wrong = answers.test_right, answers.test_wrong
    return Alarm(
        precision=precision,
        domain=answers.domain,
        promised=target,
        needed=entities_needed(target),
        calibrated=answers.entities(answers.right),
        n=len(right),
        entities=answers.entities(right),
        hallucinated=len(wrong),
        hallucinated_entities=answers.entities(wrong),
        seed=seed,
        threshold=frozen,
        false_alarms=answers.flagged(right, after, frozen, seed),
        detected=answers.flagged(wrong, after, frozen, seed),
        threshold_recalibrated=transferred,
        false_alarms_recalibrated=answers.flagged(right, after, transferred, seed),
        detected_recalibrated=answers.flagged(wrong, after, transferred, seed),
        threshold_anew=recalibrated,
        false_alarms_anew=answers.flagged(right, after, recalibrated, seed),
        detected_anew=answers.flagged(wrong, after, recalibrated, seed),
    )
