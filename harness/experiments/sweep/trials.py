"""Trials of a sweep: which of them count for a model, their token ids, and their outcomes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from harness.experiments.sweep.rates import JudgedSweep
from harness.judges.base import Question, Verdict
from harness.judges.phrases import REFUSAL
from harness.judges.rules import RuleJudge
from harness.judges.text import normalise
from harness.scenarios.base import Scenario, Trial, TrialOutcome, as_question
from harness.scenarios.judging import TrialJudge
from harness.scenarios.prompts import PromptForm
from harness.stages import units
from harness.stages.respond import GreedyResponse
from harness.store.progress import Task
from hq.errors import HQError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_CHUNK = 256  # trials with first questions that are asked together
Answer = Callable[[Sequence[tuple[int, ...]]], list[GreedyResponse]]


@dataclass(frozen=True, slots=True)
class AskedTrial:
    """A trial, its prompt as token ids, and its component: trials that share entities.

    `mixed`: it is built on a question whose sampled responses were mixed.
    """

    trial: Trial
    ids: tuple[int, ...]
    component: str
    mixed: bool


def unrelated(name: str, trials: Sequence[Trial], samples: Sequence[Question]) -> list[Trial]:
    """Return the trials of a scenario that are not in a component with a sample's question.

    H-Neurons were identified on the samples, so responses to related trials are not independent of
    that. Raises HQError if all trials are related to samples.
    """
    by_id: dict[str, units.Item] = {question.id: question for question in samples}
    component = units.components([*({t.id: t for t in trials} | by_id).values()])
    of_samples = {component[id] for id in by_id}
    others = [trial for trial in trials if component[trial.id] not in of_samples]
    if not others:
        raise HQError(
            f"All {len(trials)} trials of {name!r} share an entity or a wording with a sample on "
            "which neurons are identified: give it a file with others, or leave the scenario out."
        )
    return others


def near_the_decision(trials: Sequence[Trial], mixed: Collection[str]) -> list[Trial]:
    """Return the trials on questions with mixed responses (ids), then the others, in order."""
    return sorted(trials, key=lambda trial: trial.question not in mixed)


def counted_trials(
    name: str,
    trials: Sequence[Trial],
    form: PromptForm,
    tokenizer: "Tokenizer",
    answer: Answer,
    wanted: int,
    mixed: Collection[str] = (),
) -> dict[str, list[AskedTrial]]:
    """Return the first `wanted` trials of each kind that count, by label.

    A trial with a first question counts only if the unscaled reference model answers that question
    correctly.

    Args:
        name: Name of the scenario.
        trials: Its trials, in a fixed order.
        form: The form of the prompts.
        tokenizer: The tokenizer of the model.
        answer: Returns the responses of the unscaled reference model to prompts.
        wanted: The largest number of trials of each kind.
        mixed: Ids of the questions whose sampled responses were mixed.

    Raises:
        HQError: If no trial of a kind counts.
    """
    counted = first_counted(trials, form, tokenizer, answer, wanted, mixed)
    empty = [kind for kind, of_kind in counted.items() if not of_kind]
    if empty or not counted:
        raise HQError(
            f"No trial of {label(name, *empty[:1])} counts, because the model answers none of the "
            "first questions correctly: leave the scenario out, or give it an easier file."
        )
    return {label(name, kind): trials_of_kind for kind, trials_of_kind in counted.items()}


def first_counted(
    trials: Sequence[Trial],
    form: PromptForm,
    tokenizer: "Tokenizer",
    answer: Answer,
    wanted: int,
    mixed: Collection[str] = (),
) -> dict[str, list[AskedTrial]]:
    """Return the first `wanted` trials of each kind that count, by kind; there may be none.

    Arguments are those of `counted_trials`.
    """
    kinds = sorted({trial.kind for trial in trials})
    component = units.components(trials)
    counted: dict[str, list[AskedTrial]] = {kind: [] for kind in kinds}
    candidates = iter(trials)
    while chunk := list(islice(candidates, _CHUNK)):
        open_kinds = {kind for kind in kinds if len(counted[kind]) < wanted}
        if not open_kinds:
            break
        chunk = [trial for trial in chunk if trial.kind in open_kinds]
        for trial, dialogue in _counting(chunk, form, tokenizer, answer):
            if len(counted[trial.kind]) < wanted:
                ids = tuple(form.encode(tokenizer, trial.prompt, dialogue))
                near = trial.question in mixed
                counted[trial.kind].append(AskedTrial(trial, ids, component[trial.id], near))
    return counted


def label(name: str, kind: str = "") -> str:
    """Return the name in tables of one kind of a scenario's trials."""
    return f"{name}:{kind}" if kind else name


def scenario(label: str) -> str:
    """Return the scenario of a label."""
    return label.partition(":")[0]


def _counting(
    trials: Sequence[Trial], form: PromptForm, tokenizer: "Tokenizer", answer: Answer
) -> Iterator[tuple[Trial, tuple[tuple[str, str], ...]]]:
    """Yield the trials that count, in order, each with the dialogue before its prompt."""
    firsts = {
        trial.first: tuple(form.encode(tokenizer, trial.first)) for trial in trials if trial.first
    }
    responses = dict(zip(firsts, answer(list(firsts.values())), strict=True))
    judge = RuleJudge()
    for trial in trials:
        if not trial.first:
            yield trial, ()
            continue
        response = responses[trial.first]
        question = as_question(trial, trial.first)
        if judge.judge(response.text, question, response.truncated) is Verdict.RIGHT:
            yield trial, ((trial.first, response.text.strip()),) if trial.dialogue else ()


def judge_responses(
    judge: TrialJudge,
    scenario: Scenario,
    asked: Mapping[str, Sequence[AskedTrial]],
    responses: Mapping[str, Sequence[Sequence[GreedyResponse]]],
    task: Task,
) -> tuple[dict[str, list[list[TrialOutcome]]], int]:
    """Judge the responses to a scenario's trials, by label; equal responses are judged once.

    Args:
        judge: The judge of the trials.
        scenario: Their scenario.
        asked: The trials by label.
        responses: Responses by label, [variant][trial].
        task: Shows the number of judged responses.

    Returns:
        Outcomes by label, [variant][trial], and the number of distinct responses on which the
        judge's own reply was not an outcome; they count as unclear.
    """
    known: dict[tuple[str, str, bool], TrialOutcome | None] = {}

    def outcome(response: GreedyResponse, trial: Trial) -> TrialOutcome:
        key = trial.id, response.text, response.truncated
        if key not in known:
            known[key] = judge.judge(scenario, response.text, trial, response.truncated)
        task.advance(1)
        return known[key] or TrialOutcome.UNCLEAR

    outcomes = {
        label: [list(map(outcome, row, [one.trial for one in asked[label]])) for row in rows]
        for label, rows in responses.items()
    }
    return outcomes, sum(word is None for word in known.values())


def judged_sweep(
    outcomes: Sequence[Sequence[str]],
    responses: Sequence[Sequence[GreedyResponse]],
    plain: Sequence[GreedyResponse],
) -> JudgedSweep:
    """Return outcomes and responses [alpha][trial] as arrays; `plain` are those at α = 1."""
    return JudgedSweep(
        outcomes=np.array(outcomes),
        refused=np.array([[_refuses(response) for response in row] for row in responses]),
        changed=np.array(
            [[r.text != p.text for r, p in zip(row, plain, strict=True)] for row in responses]
        ),
        tokens=np.array(
            [[len(response.ids) for response in row] for row in responses], dtype=float
        ),
    )


def _refuses(response: GreedyResponse) -> bool:
    return REFUSAL.search(normalise(response.text)) is not None
