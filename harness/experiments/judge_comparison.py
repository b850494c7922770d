"""Comparison of two judges on the same responses: disagreement, and its effect on the labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from harness.judges.agreement import cohen_kappa
from harness.judges.base import Judge, Question, Verdict
from harness.stages.materials import Materials
from harness.stages.sample import read_records
from harness.store.progress import Task
from hq.errors import HQError
from hq.stats.bootstrap import Estimate, bootstrap_mean


@dataclass(frozen=True, slots=True)
class ComparedResponse:
    """A distinct response to a question; responses of one component are not independent."""

    question: Question
    text: str
    truncated: bool
    component: str


class JudgeComparison(BaseModel):
    """How the verdicts of two judges on the same responses differ."""

    model_config = ConfigDict(frozen=True)

    first: str
    second: str
    responses: int
    questions: int
    rate: Estimate  # share of responses with different verdicts; resampled by component
    kappa: float | None  # Cohen's κ; None if both judges always give the same single verdict
    verdicts: dict[str, int]  # "first, second": number of responses
    labels_changed: int  # questions that get different labels, or a label by one judge only
    unclear: int  # responses on which the second judge's reply was not a verdict


def distinct_responses(m: Materials, folder: Path, questions: int) -> list[ComparedResponse]:
    """Return a study's distinct responses to some of its questions.

    Only questions with complete responses are used, as only those are labelled.

    Args:
        m: The study.
        folder: The output of stage `sample`.
        questions: The largest number of questions, drawn by the study's seed.
    """
    study = m.study
    records = read_records(folder)
    sampled = [p for p in m.prompted if p.question.id in records]
    complete = [p for p in sampled if records[p.question.id].complete]
    order = np.random.default_rng(study.seed).permutation(len(complete))[:questions]
    longest = study.sampling.max_new_tokens
    return [
        ComparedResponse(p.question, response.text, len(response.ids) >= longest, p.component)
        for p in (complete[i] for i in sorted(order.tolist()))
        for response in records[p.question.id].responses
    ]


def compare_judges(
    first: Judge, second: Judge, responses: Sequence[ComparedResponse], seed: int, task: Task
) -> JudgeComparison:
    """Return how the two judges' verdicts on the responses differ.

    Args:
        first: The judge that labels the study.
        second: The other judge.
        responses: Distinct responses.
        seed: Seed of the bootstrap.
        task: Shows the number of judged responses.

    Raises:
        HQError: If there is no response.
    """
    if not responses:
        raise HQError("There is no finished response to compare two judges on: ask more questions.")
    verdicts = []
    for response in responses:
        arguments = response.text, response.question, response.truncated
        verdicts.append((first.judge(*arguments), second.judge(*arguments)))
        task.advance(1)
    differ = np.array([a is not b for a, b in verdicts], dtype=float)
    groups = np.array([response.component for response in responses])
    return JudgeComparison(
        first=first.identity,
        second=second.identity,
        responses=len(responses),
        questions=len({response.question.id for response in responses}),
        rate=bootstrap_mean(differ, seed, groups=groups),
        kappa=cohen_kappa(verdicts),
        verdicts={f"{a}, {b}": n for (a, b), n in sorted(Counter(verdicts).items())},
        labels_changed=_labels_changed(responses, verdicts),
        unclear=second.unclear,
    )


def _labels_changed(
    responses: Sequence[ComparedResponse], pairs: Sequence[tuple[Verdict, Verdict]]
) -> int:
    by_question: dict[str, tuple[set[Verdict], set[Verdict]]] = {}
    for response, (first, second) in zip(responses, pairs, strict=True):
        both = by_question.setdefault(response.question.id, (set(), set()))
        both[0].add(first)
        both[1].add(second)
    return sum(_label(first) != _label(second) for first, second in by_question.values())


def _label(verdicts: set[Verdict]) -> Verdict | None:
    """The verdict on all responses if it is right or wrong; None if the question is set aside."""
    return next((v for v in (Verdict.RIGHT, Verdict.WRONG) if verdicts == {v}), None)
