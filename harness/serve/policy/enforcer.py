"""The enforcer: compares an answer's score with its domain's threshold and applies the action."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from harness.serve.generation.answer import (
    Draft,
    FinalAnswer,
    GenerationRequest,
    HallucinationVerdict,
    Token,
)
from harness.serve.policy.file import DomainRule, Policy
from hq.registry import Registry


@dataclass(frozen=True, slots=True)
class ActionResult:
    """The draft that is kept; a message replaces its text."""

    draft: Draft
    message: str | None = None


Regenerate = Callable[[float], Draft]  # generates the answer again with this alpha


@dataclass(frozen=True, slots=True)
class Action:
    """What a policy can do with an answer past the threshold.

    `withholds`: no token is shown before the verdict, because another text may be sent instead.
    """

    withholds: bool
    apply: Callable[[Draft, DomainRule, Regenerate], ActionResult]


ACTIONS: Registry[Action] = Registry("policy action")


def _annotate(draft: Draft, _: DomainRule, __: Regenerate) -> ActionResult:
    """Send the answer unchanged, with its score."""
    return ActionResult(draft)


def _regenerate(draft: Draft, rule: DomainRule, regenerate: Regenerate) -> ActionResult:
    """Generate the answer again with the H-Neurons scaled, and keep the one with the lower score.

    Both scores come from the unscaled model, so they are comparable. An empty second answer is
    never kept.
    """
    second = regenerate(rule.alpha)
    if second.score is None or draft.score is None or second.score >= draft.score:
        return ActionResult(draft)
    return ActionResult(second)


def _block(draft: Draft, rule: DomainRule, _: Regenerate) -> ActionResult:
    """Send the rule's message instead of the answer."""
    return ActionResult(draft, rule.message)


ACTIONS.add("annotate", Action(withholds=False, apply=_annotate))
ACTIONS.add("regenerate", Action(withholds=True, apply=_regenerate))
ACTIONS.add("block", Action(withholds=True, apply=_block))


class AnswerGenerator(Protocol):
    """Generates drafts; `harness.serve.generation.model.ServedModel` is one."""

    def generate(self, request: GenerationRequest, draft: Draft) -> Iterator[Token]:
        """Append tokens to the draft, and yield each of them."""
        ...


class PolicyEnforcer:
    """Applies one policy to the answers of one generator.

    Args:
        thresholds: the bundle's threshold for each domain.
    """

    def __init__(
        self, generator: AnswerGenerator, policy: Policy, thresholds: Mapping[str, float]
    ) -> None:
        self._generator, self._policy, self._thresholds = generator, policy, thresholds

    def answer(
        self, request: GenerationRequest, drafts: list[Draft], check_running: Callable[[], None]
    ) -> Iterator[Token | FinalAnswer]:
        """Yield the tokens that may be shown as soon as they may, then the final answer.

        Appends each draft to `drafts` when it begins. Calls `check_running` before each token; an
        exception that it raises ends the answer.
        """

        def generate(alpha: float) -> Iterator[Token]:
            drafts.append(Draft(alpha))
            check_running()
            for token in self._generator.generate(request, drafts[-1]):
                yield token
                check_running()

        def regenerate(alpha: float) -> Draft:
            for _ in generate(alpha):
                pass
            return drafts[-1]

        withholds = ACTIONS[self._policy.rule(request.domain).action].withholds
        for token in generate(request.alpha):
            if not withholds:
                yield token
        answer = self._apply(request, drafts[-1], regenerate)
        if withholds and not answer.blocked:
            yield from answer.draft.tokens
        yield answer

    def _apply(
        self, request: GenerationRequest, draft: Draft, regenerate: Regenerate
    ) -> FinalAnswer:
        threshold = self._thresholds[request.domain]
        verdict = _verdict(draft, threshold)
        if verdict != "hallucination":
            return FinalAnswer(draft, threshold, verdict, "pass", False, False, draft.text)
        rule = self._policy.rule(request.domain)
        result = ACTIONS[rule.action].apply(draft, rule, regenerate)
        return FinalAnswer(
            draft=result.draft,
            threshold=threshold,
            verdict=_verdict(result.draft, threshold),
            decision=rule.action,
            regenerated=result.draft is not draft,
            blocked=result.message is not None,
            text=result.draft.text if result.message is None else result.message,
        )


def _verdict(draft: Draft, threshold: float) -> HallucinationVerdict | None:
    if draft.score is None:
        return None
    return "hallucination" if draft.score >= threshold else "no hallucination"
