"""What can be done with an answer that is past its threshold."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.serve.draft import Draft
from harness.serve.policy import Rule
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class Kept:
    """The draft that is kept; with a message, it is withheld and that is said instead."""

    draft: Draft
    message: str | None = None


Again = Callable[[float], Draft]  # writes the answer once more, with this α


@dataclass(frozen=True, slots=True)
class Action:
    """`holds`: nothing of an answer is shown before its verdict, as it may not be the one kept."""

    holds: bool
    act: Callable[[Draft, Rule, Again], Kept]


ACTIONS: Registry[Action] = Registry("policy action")


def _annotate(draft: Draft, _: Rule, __: Again) -> Kept:
    """The answer goes out as it is, with its score."""
    return Kept(draft)


def _regenerate(draft: Draft, rule: Rule, again: Again) -> Kept:
    """Written once more with the H-Neurons scaled; the better of the two by its score is kept.

    Both are read with nothing scaled, so that their scores compare. A second one that is empty
    says nothing, and is not taken.
    """
    second = again(rule.alpha)
    if second.score is None or draft.score is None or second.score >= draft.score:
        return Kept(draft)
    return Kept(second)


def _block(draft: Draft, rule: Rule, _: Again) -> Kept:
    """The rule's message stands in its place."""
    return Kept(draft, rule.message)


ACTIONS.add("annotate", Action(holds=False, act=_annotate))
ACTIONS.add("regenerate", Action(holds=True, act=_regenerate))
ACTIONS.add("block", Action(holds=True, act=_block))
