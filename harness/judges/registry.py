"""The registry of judges."""

from collections.abc import Callable

from harness.judges.base import Judge
from harness.judges.rules import RuleJudge
from hq.registry import Registry


def _llm_judge() -> Judge:
    """A language model behind an OpenAI-compatible endpoint."""
    from harness.judges.llm import LLMJudge  # the rule judge does not need httpx

    return LLMJudge.from_environment()


JUDGES: Registry[Callable[[], Judge]] = Registry("judge", "hq.judges")
JUDGES.add("rules", RuleJudge)
JUDGES.add("llm", _llm_judge)


def make_judge(name: str) -> Judge:
    """Return the judge of this name.

    Raises HQError if the name is unknown, or the environment lacks a variable that the judge needs.
    """
    return JUDGES[name]()
