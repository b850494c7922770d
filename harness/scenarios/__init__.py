"""Scenarios and prompt forms: what a model is asked, and how an outcome is decided.

How text is normalised and answers are judged is in `harness.judges`. This module registers every
built-in scenario; packages add theirs with `SCENARIOS.add`.
"""

from harness.scenarios.base import SCENARIOS, Scenario, Trial, TrialOutcome
from harness.scenarios.facts.questions import FACTS
from harness.scenarios.faitheval import FAITHEVAL
from harness.scenarios.falseqa import FALSEQA
from harness.scenarios.jailbreak import JAILBREAK
from harness.scenarios.knowledge.questions import KNOWLEDGE
from harness.scenarios.nonexist import NONEXIST
from harness.scenarios.qa import BIOASQ, NQ, TRIVIAQA
from harness.scenarios.questions import QuestionSet, load_questions
from harness.scenarios.sycophancy import SYCOPHANCY

for _scenario in (
    FACTS,
    KNOWLEDGE,
    TRIVIAQA,
    NQ,
    BIOASQ,
    FAITHEVAL,
    FALSEQA,
    JAILBREAK,
    NONEXIST,
    SYCOPHANCY,
):
    SCENARIOS.add(_scenario.name, _scenario)

__all__ = ["SCENARIOS", "QuestionSet", "Scenario", "Trial", "TrialOutcome", "load_questions"]
