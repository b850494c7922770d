"""The design of a study: its samples, their units, and classifiers that see only the text."""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.experiments.detect.power import effective_units
from harness.experiments.detect.tables import Design
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.probe.stacking import CrossFittedScores
from hq.probe.text import CHANCE, TEXT_CONTROLS, text_only
from hq.stats.auroc import estimate_auroc


def text_scores(samples: Sequence[Sample]) -> dict[str, CrossFittedScores]:
    """Return the decision values of the text-only controls, cross-fitted as the probes are."""
    rows = Rows(samples)
    questions, answers = [s.question for s in samples], [s.text for s in samples]
    k = int(rows.folds.max()) + 1
    scores = {
        name: CrossFittedScores(np.empty(len(samples)), np.full((k, len(samples)), np.nan))
        for name in TEXT_CONTROLS
    }
    for fold in range(k):
        of_fold = text_only(questions, answers, rows.y, np.flatnonzero(rows.folds != fold))
        for name, values in of_fold.items():
            test = rows.folds == fold
            scores[name].out_of_fold[test] = values[test]
        for other in range(fold):
            seen = np.flatnonzero((rows.folds != fold) & (rows.folds != other))
            for name, values in text_only(questions, answers, rows.y, seen).items():
                for held_out, of in ((other, fold), (fold, other)):
                    test = rows.folds == held_out
                    scores[name].calibration[of, test] = values[test]
    return scores


def design(
    samples: Sequence[Sample],
    balance: str,
    seed: int,
    texts: Mapping[str, CrossFittedScores] | None = None,
) -> Design:
    """Return the row of the samples: their balance, their units, and the text-only controls."""
    rows = Rows(samples)
    sizes = np.unique(rows.units, return_counts=True)[1]
    areas = {
        name: estimate_auroc(scores.out_of_fold, rows.y, rows.units, rows.folds)
        for name, scores in (texts or text_scores(samples)).items()
    }
    leaking = [f"{name} {area}" for name, area in areas.items() if abs(area.value - 0.5) > CHANCE]
    return Design(
        balance=balance,
        n=len(samples),
        answers=len({s.answer for s in samples}),
        relations=len({s.relation for s in samples}),
        units=len(sizes),
        effective_units=effective_units(rows.units.tolist()),
        largest_unit=float(sizes.max() / sizes.sum()),
        folds=int(rows.folds.max()) + 1,
        seed=seed,
        text_answer=areas["text-answer"],
        text_question=areas["text-question"],
        text_both=areas["text-both"],
        text_spelling=areas["text-spelling"],
        warning="; ".join(leaking),
    )
