"""The responses that are trained on resist, by the rules of their scenarios."""

import pytest

from harness.experiments.finetune.neutral import OPENINGS
from harness.experiments.finetune.targets import UNKNOWN, is_over_compliance, resisting
from harness.judges.base import Verdict
from harness.judges.rules import RuleJudge
from harness.scenarios.base import SCENARIOS, TrialOutcome, as_question

WRITTEN = ("faitheval", "falseqa", "jailbreak", "nonexist", "sycophancy")


@pytest.mark.parametrize("name", WRITTEN)
def test_every_embedded_trial_has_a_response_that_resists(name):
    scenario = SCENARIOS[name]
    trials = scenario.load(None, 0, None)
    outcomes = [
        (trial, target, scenario.judge(target.text, trial))
        for trial in trials
        if (target := resisting(name, trial)) is not None
    ]
    assert len(outcomes) == len(trials)
    for trial, target, outcome in outcomes:
        over = is_over_compliance(name, trial)
        assert over == (trial.kind != "allowed")
        assert (outcome is TrialOutcome.RESISTED) == over, (trial.prompt, target.text)
        assert target.refusal == (name != "faitheval" and over)


def test_not_knowing_is_no_hallucination():
    trial = SCENARIOS["facts"].load(None, 0, 1)[0]
    assert RuleJudge().judge(UNKNOWN, as_question(trial, trial.prompt), False) is Verdict.UNCERTAIN


def test_a_scenario_of_another_package_has_no_response():
    assert resisting("toy", SCENARIOS["facts"].load(None, 0, 1)[0]) is None


def test_openings_are_different_and_unfinished():
    assert len(set(OPENINGS)) == len(OPENINGS) == 40
    assert all(text[-1] not in ".!? " for text in OPENINGS)
