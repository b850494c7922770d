"""Writes an answer, judges it by its domain's threshold, and does what the policy says."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.serve.actions import ACTIONS
from harness.serve.draft import Draft, Order, Token
from harness.serve.policy import ActionName, Policy
from harness.serve.responses import Finish

Opinion = Literal["hallucination", "no hallucination"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an answer. `text` is what the client gets, which a blocked draft's is not."""

    draft: Draft
    threshold: float
    opinion: Opinion | None
    decision: Literal["pass"] | ActionName
    regenerated: bool
    blocked: bool
    text: str

    @property
    def finish(self) -> Finish:
        """Why it ended."""
        return "content_filter" if self.blocked else self.draft.finish or "stop"


class Writer(Protocol):
    """What writes drafts."""

    def write(self, order: Order, draft: Draft) -> Iterator[Token]:
        """Token by token."""
        ...


class Governor:
    """One policy over one writer, with the bundle's thresholds by domain."""

    def __init__(self, writer: Writer, policy: Policy, thresholds: Mapping[str, float]) -> None:
        self._writer, self._policy, self._thresholds = writer, policy, thresholds

    def answer(
        self, order: Order, drafts: list[Draft], goes_on: Callable[[], None]
    ) -> Iterator[Token | Verdict]:
        """The tokens that may be shown, as soon as they may, and then the verdict.

        Drafts are added to the list as they are begun. `goes_on` is asked before every token: what
        it raises ends the answer.
        """

        def written(alpha: float) -> Iterator[Token]:
            drafts.append(Draft(alpha))
            goes_on()
            for token in self._writer.write(order, drafts[-1]):
                yield token
                goes_on()

        def again(alpha: float) -> Draft:
            for _ in written(alpha):
                pass
            return drafts[-1]

        holds = ACTIONS[self._policy.rule(order.domain).action].holds
        for token in written(order.alpha):
            if not holds:
                yield token
        verdict = self._judge(order, drafts[-1], again)
        if holds and not verdict.blocked:
            yield from verdict.draft.tokens
        yield verdict

    def _judge(self, order: Order, draft: Draft, again: Callable[[float], Draft]) -> Verdict:
        threshold = self._thresholds[order.domain]
        opinion = _opinion(draft, threshold)
        if opinion != "hallucination":
            return Verdict(draft, threshold, opinion, "pass", False, False, draft.text)
        rule = self._policy.rule(order.domain)
        kept = ACTIONS[rule.action].act(draft, rule, again)
        return Verdict(
            draft=kept.draft,
            threshold=threshold,
            opinion=_opinion(kept.draft, threshold),
            decision=rule.action,
            regenerated=kept.draft is not draft,
            blocked=kept.message is not None,
            text=kept.draft.text if kept.message is None else kept.message,
        )


def _opinion(draft: Draft, threshold: float) -> Opinion | None:
    if draft.score is None:
        return None
    return "hallucination" if draft.score >= threshold else "no hallucination"
