"""The enforcer: compares an answer's score with its domain's threshold and applies the action."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
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


@dataclass(frozen=True, slots=True)
class Action:
    """What a policy can do with an answer past the threshold.

    `withholds`: no token is shown before the verdict, because another text may be sent instead.
    `regenerates`: a second draft is generated with the rule's alpha; otherwise `apply` gets None.
    """

    withholds: bool
    apply: Callable[[Draft, DomainRule, Draft | None], ActionResult]
    regenerates: bool = False


ACTIONS: Registry[Action] = Registry("policy action")


def _annotate(draft: Draft, _: DomainRule, __: Draft | None) -> ActionResult:
    """Send the answer unchanged, with its score."""
    return ActionResult(draft)


def _regenerate(draft: Draft, _: DomainRule, second: Draft | None) -> ActionResult:
    """Keep the draft with the lower score, of the first and one with the H-Neurons scaled.

    Both scores come from the unscaled model, so they are comparable. An empty second answer is
    never kept.
    """
    if second is None or second.score is None or draft.score is None or second.score >= draft.score:
        return ActionResult(draft)
    return ActionResult(second)


def _block(draft: Draft, rule: DomainRule, _: Draft | None) -> ActionResult:
    """Send the rule's message instead of the answer."""
    return ActionResult(draft, rule.message)


ACTIONS.add("annotate", Action(withholds=False, apply=_annotate))
ACTIONS.add("regenerate", Action(withholds=True, apply=_regenerate, regenerates=True))
ACTIONS.add("block", Action(withholds=True, apply=_block))


class AnswerGenerator(Protocol):
    """Generates drafts; `harness.serve.generation.model.ServedModel` is one."""

    def generate(
        self, request: GenerationRequest, draft: Draft
    ) -> Generator[Token | None, None, None]:
        """Append tokens to the draft, and yield each of them; yield None to wait for the model."""
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
    ) -> Generator[Token | FinalAnswer | None, None, None]:
        """Yield the tokens that may be shown as soon as they may, then the final answer.

        Yields None where the answer waits for the model. Appends each draft to `drafts` when it
        begins. Calls `check_running` before each token; an exception that it raises ends the
        answer.
        """

        def generate(alpha: float) -> Generator[Token | None, None, None]:
            drafts.append(Draft(alpha))
            check_running()
            with closing(self._generator.generate(request, drafts[-1])) as tokens:
                for token in tokens:
                    yield token
                    check_running()

        rule = self._policy.rule(request.domain)
        action = ACTIONS[rule.action]
        with closing(generate(request.alpha)) as tokens:
            for token in tokens:
                if token is None or not action.withholds:
                    yield token
        draft, second = drafts[-1], None
        is_past = _verdict(draft, self._thresholds[request.domain]) == "hallucination"
        if is_past and action.regenerates:
            with closing(generate(rule.alpha)) as tokens:
                yield from (None for token in tokens if token is None)
            second = drafts[-1]
        answer = self._apply(request, draft, second)
        if action.withholds and not answer.blocked:
            yield from answer.draft.tokens
        yield answer

    def _apply(self, request: GenerationRequest, draft: Draft, second: Draft | None) -> FinalAnswer:
        threshold = self._thresholds[request.domain]
        verdict = _verdict(draft, threshold)
        if verdict != "hallucination":
            return FinalAnswer(draft, threshold, verdict, "pass", False, False, draft.text)
        rule = self._policy.rule(request.domain)
        result = ACTIONS[rule.action].apply(draft, rule, second)
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
