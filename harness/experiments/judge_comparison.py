"""Two judges on the same responses: how often they disagree, and what that does to the labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from harness.judges.base import Judge, Question, Verdict
from harness.stages.materials import Materials
from harness.stages.sample import read_records
from harness.store.progress import Task
from hq.errors import HQError
from hq.stats.bootstrap import Estimate, bootstrap_mean


@dataclass(frozen=True, slots=True)
class ComparedResponses:
    """One distinct response to a question; responses of one component are not independent."""

    question: Question
    text: str
    truncated: bool
    component: str


class Disagreement(BaseModel):
    """How two judges differ on the same responses."""

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    responses: int
    questions: int
    rate: Estimate  # of responses with two verdicts; resampled by component
    kappa: float | None  # Cohen's; None where both judges give one verdict throughout
    verdicts: dict[str, int]  # "first, second": responses
    labels_changed: int  # questions that the two would label differently, or only one of them would
    unclear: int  # responses to which the second judge gave no clear verdict


def said_in(m: Materials, responses: Path, questions: int) -> list[ComparedResponses]:
    """The distinct responses of stage `sample` to some questions, drawn by the study's seed.

    Only questions whose responses were all finished, as no others are labelled.
    """
    study = m.study
    records = read_records(responses)
    asked = [p for p in m.prompted if p.question.id in records]
    finished = [p for p in asked if records[p.question.id].complete]
    order = np.random.default_rng(study.seed).permutation(len(finished))[:questions]
    longest = study.sampling.max_new_tokens
    return [
        ComparedResponses(p.question, response.text, len(response.ids) >= longest, p.component)
        for p in (finished[i] for i in sorted(order.tolist()))
        for response in records[p.question.id].responses
    ]


def compared(
    first: Judge, second: Judge, said: Sequence[ComparedResponses], seed: int, task: Task
) -> Disagreement:
    """Both judges' verdicts on every response. Raises HQError where there is none."""
    if not said:
        raise HQError("There is no finished response to compare two judges on: ask more questions.")
    pairs = []
    for one in said:
        ours = first.judge(one.text, one.question, one.truncated)
        pairs.append((ours, second.judge(one.text, one.question, one.truncated)))
        task.advance(1)
    differ = np.array([ours is not theirs for ours, theirs in pairs], dtype=float)
    groups = np.array([one.component for one in said])
    return Disagreement(
        first=first.identity,
        second=second.identity,
        responses=len(said),
        questions=len({one.question.id for one in said}),
        rate=bootstrap_mean(differ, seed, groups=groups),
        kappa=kappa(pairs),
        verdicts={f"{a}, {b}": n for (a, b), n in sorted(Counter(pairs).items())},
        labels_changed=_labels_changed(said, pairs),
        unclear=second.unclear,
    )


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's κ; None where chance alone gives full agreement."""
    n = len(pairs)
    ours, theirs = (Counter(side) for side in zip(*pairs, strict=True))
    by_chance = sum(ours[name] * theirs[name] for name in ours) / n**2
    if by_chance == 1:
        return None
    agreed = sum(a == b for a, b in pairs) / n
    return (agreed - by_chance) / (1 - by_chance)


def _labels_changed(
    said: Sequence[ComparedResponses], pairs: Sequence[tuple[Verdict, Verdict]]
) -> int:
    verdicts: dict[str, tuple[set[Verdict], set[Verdict]]] = {}
    for one, (ours, theirs) in zip(said, pairs, strict=True):
        both = verdicts.setdefault(one.question.id, (set(), set()))
        both[0].add(ours)
        both[1].add(theirs)
    return sum(_label(ours) != _label(theirs) for ours, theirs in verdicts.values())


def _label(verdicts: set[Verdict]) -> Verdict | None:
    """What all responses are, right or wrong; None for a question that is set aside."""
    return next((v for v in (Verdict.RIGHT, Verdict.WRONG) if verdicts == {v}), None)
