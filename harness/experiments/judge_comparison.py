"""Comparison of two judges on the same responses of a study or a sweep."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from harness.experiments.sweep.nodes import SweepNodes, read_asked, read_replies
from harness.experiments.sweep.trials import AskedTrial, scenario
from harness.judges.agreement import cohen_kappa
from harness.judges.base import Judge, Question, Verdict
from harness.scenarios.base import SCENARIOS, TrialOutcome
from harness.scenarios.judging import TrialJudge
from harness.stages.materials import Materials
from harness.stages.respond import GreedyResponse
from harness.stages.sample import read_records
from harness.store.progress import Task
from harness.store.runner import Outputs
from harness.studies.study import REFERENCE
from hq.errors import HQError
from hq.stats.intervals import Estimate, estimate_rate


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
    questions: int  # or trials
    rate: Estimate  # share of responses with different verdicts; units are components
    kappa: float | None  # Cohen's κ; None if both judges always give the same single verdict
    verdicts: dict[str, int]  # "first, second": number of responses
    # Questions that get different labels, or a label by one judge only; None for trials of a sweep.
    labels_changed: int | None
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
    first: Judge, second: Judge, responses: Sequence[ComparedResponse], task: Task
) -> JudgeComparison:
    """Return how the two judges' verdicts on the responses differ.

    Args:
        first: The judge that labels the study.
        second: The other judge.
        responses: Distinct responses.
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
    return _comparison(
        (first.identity, second.identity),
        verdicts,
        [response.question.id for response in responses],
        [response.component for response in responses],
        _labels_changed(responses, verdicts),
        second.unclear,
    )


def sweep_responses(
    declared: SweepNodes, outputs: Outputs
) -> dict[str, list[tuple[AskedTrial, GreedyResponse]]]:
    """Return the distinct FP16 responses of a sweep at all α and draws, by scenario and kind."""
    distinct: dict[str, list[tuple[AskedTrial, GreedyResponse]]] = {}
    for name in declared.plan.offered:
        asked = read_asked(outputs[declared.ask(name)], declared.plan)
        for label, rows in read_replies(outputs[declared.respond(REFERENCE, name)]).items():
            pairs = [pair for row in rows for pair in zip(asked[label], row, strict=True)]
            by_text = {(a.trial.id, r.text, r.truncated): (a, r) for a, r in pairs}
            distinct[label] = list(by_text.values())
    return distinct


def compare_trial_judges(
    first: TrialJudge,
    second: TrialJudge,
    label: str,
    responses: Sequence[tuple[AskedTrial, GreedyResponse]],
    task: Task,
) -> JudgeComparison:
    """Return how the outcomes of two judges on the responses to a scenario's trials differ.

    Args:
        first: The judge of the sweep.
        second: The other judge.
        label: The scenario, and the kind of trial if it has several.
        responses: Distinct responses with their trials.
        task: Shows the number of judged responses.
    """
    judged = SCENARIOS[scenario(label)]
    outcomes, unclear = [], 0
    for asked, response in responses:
        arguments = judged, response.text, asked.trial, response.truncated
        pair = first.judge(*arguments), second.judge(*arguments)
        unclear += pair[1] is None
        outcomes.append((pair[0] or TrialOutcome.UNCLEAR, pair[1] or TrialOutcome.UNCLEAR))
        task.advance(1)
    return _comparison(
        (first.identity(judged), second.identity(judged)),
        outcomes,
        [asked.trial.id for asked, _ in responses],
        [asked.component for asked, _ in responses],
        None,
        unclear,
    )


def _comparison(
    judges: tuple[str, str],
    pairs: Sequence[tuple[str, str]],
    asked: Sequence[str],
    components: Sequence[str],
    labels_changed: int | None,
    unclear: int,
) -> JudgeComparison:
    differ = np.array([a != b for a, b in pairs], dtype=float)
    return JudgeComparison(
        first=judges[0],
        second=judges[1],
        responses=len(pairs),
        questions=len(set(asked)),
        rate=estimate_rate(differ, np.array(components)),
        kappa=cohen_kappa(pairs),
        verdicts={f"{a}, {b}": n for (a, b), n in sorted(Counter(pairs).items())},
        labels_changed=labels_changed,
        unclear=unclear,
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
