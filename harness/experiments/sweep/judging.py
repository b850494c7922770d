"""Judging a sweep's responses: what was said to a trial once is judged once, however often said."""

from collections.abc import Callable, Sequence

import numpy as np

from harness.experiments.sweep.asking import AskedTrial
from harness.experiments.sweep.rates import JudgedSweep
from harness.judges.phrases import REFUSAL
from harness.judges.text import normalise
from harness.scenarios.base import Trial, TrialOutcome
from harness.stages.respond import GreedyResponse


class TrialJudge:
    """The judge of a scenario, for its trials."""

    def __init__(
        self, judge: Callable[[str, Trial, bool], TrialOutcome], trials: Sequence[AskedTrial]
    ) -> None:
        self._judge = judge
        self._trials = [one.trial for one in trials]
        self._known: dict[tuple[str, str, bool], TrialOutcome] = {}

    def judged(
        self, replies: Sequence[Sequence[GreedyResponse]], plain: Sequence[GreedyResponse]
    ) -> JudgedSweep:
        """What became of the trials, [alpha, trial]; `plain` are the responses at α = 1."""
        return JudgedSweep(
            outcomes=np.array([list(map(self._outcome, row, self._trials)) for row in replies]),
            refused=np.array([[_refuses(reply) for reply in row] for row in replies]),
            changed=np.array(
                [[r.text != p.text for r, p in zip(row, plain, strict=True)] for row in replies]
            ),
            tokens=np.array([[len(reply.ids) for reply in row] for row in replies], dtype=float),
        )

    def _outcome(self, reply: GreedyResponse, trial: Trial) -> TrialOutcome:
        key = trial.id, reply.text, reply.truncated
        if key not in self._known:
            self._known[key] = self._judge(reply.text, trial, reply.truncated)
        return self._known[key]


def _refuses(reply: GreedyResponse) -> bool:
    return REFUSAL.search(normalise(reply.text)) is not None
