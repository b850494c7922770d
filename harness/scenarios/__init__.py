"""Questions to ask a model. Importing this package registers every scenario."""

from harness.judges.base import Question
from harness.scenarios import (
    facts,
    faitheval,
    falseqa,
    hallucination,
    jailbreak,
    nonexist,
    qa,
    sycophancy,
)
from harness.scenarios.base import SCENARIOS, Questions, load, register
from harness.scenarios.trials import BEHAVIOURS, Behaviour, Outcome, Trial

__all__ = [
    "BEHAVIOURS",
    "SCENARIOS",
    "Behaviour",
    "Outcome",
    "Question",
    "Questions",
    "Trial",
    "facts",
    "faitheval",
    "falseqa",
    "hallucination",
    "jailbreak",
    "load",
    "nonexist",
    "qa",
    "register",
    "sycophancy",
]
