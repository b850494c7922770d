"""Questions to ask a model. Importing this package registers every scenario."""

from harness.scenarios import facts, qa
from harness.scenarios.base import SCENARIOS, Question, load, register

__all__ = ["SCENARIOS", "Question", "facts", "load", "qa", "register"]
