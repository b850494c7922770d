"""What becomes of a promised false-alarm rate: thresholds by domain, and what they do held out.

A domain is a relation of the scenario, or all of it. A promise needs right calibration answers
about enough entities (`hq.stats.conformal`): a domain with fewer has no threshold of its own. An
entity
is a component of the samples: what questions link, directly or through others, counts as one.
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
from hq.stats.conformal import entities_needed, entity_rate, promised_threshold
from hq.stats.thresholds import match_quantile

TARGETS = (0.05, 0.1, 0.2)
"""False-alarm rates that the table's thresholds promise."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of a domain, as rows of the samples."""

    domain: str
    calibration: Int[np.ndarray, " calibration"]
    right: Int[np.ndarray, " right"]  # the right ones of the calibration split
    test_right: Int[np.ndarray, " test_right"]
    test_wrong: Int[np.ndarray, " test_wrong"]
    components: np.ndarray  # of all samples: which share an entity

    def threshold(self, scores: Float[np.ndarray, " n"], target: float) -> float:
        """The threshold that promises this rate, from the scores of all samples."""
        return promised_threshold(scores[self.right], target, self.components[self.right])

    def entities(self, rows: Int[np.ndarray, " row"]) -> int:
        """How many entities these rows are about."""
        return len(np.unique(self.components[rows]))

    def flagged(
        self, rows: Int[np.ndarray, " row"], scores: Float[np.ndarray, " n"], at: float, seed: int
    ) -> Estimate:
        """The share of these rows at or above a threshold, every entity weighing the same."""
        return entity_rate(scores[rows] >= at, seed, self.components[rows])


def domains(samples: Sequence[Sample], rows: Rows, target: float) -> Iterator[Answers]:
    """The domains whose calibration answers are enough for a promise of this rate; all first."""
    relations = sorted({sample.relation for sample in samples} - {ALL})
    for name in (ALL, *relations) if len(relations) > 1 else (ALL,):
        answers = answers_of(samples, rows, name)
        if answers.entities(answers.right) >= entities_needed(target):
            yield answers


def answers_of(samples: Sequence[Sample], rows: Rows, domain: str = ALL) -> Answers:
    """The answers of a domain: of a relation, or all."""
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
    """A row for each domain and rate; `before` and `after` score all samples, there and here."""
    for target in TARGETS:
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
    frozen, chosen = answers.threshold(before, target), answers.calibration
    moved = match_quantile(frozen, before[chosen], after[chosen])
    anew = answers.threshold(after, target)
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
        threshold_recalibrated=moved,
        false_alarms_recalibrated=answers.flagged(right, after, moved, seed),
        detected_recalibrated=answers.flagged(wrong, after, moved, seed),
        threshold_anew=anew,
        false_alarms_anew=answers.flagged(right, after, anew, seed),
        detected_anew=answers.flagged(wrong, after, anew, seed),
    )
