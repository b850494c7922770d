"""Scores of steps: of the probe that has not seen an answer's names, and of its competitors."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from harness.experiments.steps.answers import Range, Step, SteppedAnswer
from harness.judges.base import Question
from harness.stages.readings import Readings
from harness.stages.samples import Sample
from hq.neurons.neuron_set import NeuronSet
from hq.probe.cross_fit import CrossFit
from hq.probe.text import text_only

SPANS = ("answer", "step", "sentence")
PROBE, TEXT = "probe", "text"
Fit = tuple[int, ...]  # folds that a fit has not seen; () is the set for use, which has seen all

StepScores = list[Float[np.ndarray, " step"]]
"""One array per answer, with a score per step."""


def held_out_folds(
    answers: Sequence[SteppedAnswer], samples: Sequence[Sample], questions: Sequence[Question]
) -> list[frozenset[int]]:
    """Return for each answer the folds of the samples that it shares a name or a question with.

    The names of a sample are the answer that was given, and what its question is about.
    """
    about = {question.id: question.entities for question in questions}
    folds: dict[str, set[int]] = defaultdict(set)
    for sample in samples:
        names = {e.partition(":")[2] or e for e in about.get(sample.id, ())}
        for name in {sample.id, sample.answer, *names} - {""}:
            folds[name].add(sample.fold)
    return [
        frozenset(fold for name in answer.known for fold in folds.get(name, ()))
        for answer in answers
    ]


def fit_of(held_out: frozenset[int]) -> Fit | None:
    """Return the fit that has seen no sample of these folds; None for three or more folds."""
    return tuple(sorted(held_out)) if len(held_out) <= 2 else None


def _neurons_of(probes: CrossFit, fit: Fit) -> NeuronSet:
    if not fit:
        return probes.neurons
    first, *other = fit
    of_fold = probes.folds[first]
    return of_fold.calibration[other[0]] if other else of_fold.probe


@dataclass(frozen=True, eq=False)
class PrecisionScores:
    """The scores of all answers from the readings at one precision."""

    answers: Sequence[SteppedAnswer]
    rows: Sequence[int]  # the index of each answer in the readings
    fits: Sequence[Fit]
    probes: CrossFit
    readings: Readings

    def of(self, span: str) -> dict[str, StepScores]:
        """Return the scores of each scorer but text, per step, over one kind of span."""
        return {
            PROBE: self._reduced(self.decisions, span),
            "entropy": self._reduced(self.per_token(self.readings.entropy), span),
            "log-prob": self._reduced(self.per_token(-self.readings.log_prob), span),
            "length": [
                np.array([float(end - start) for start, end in _ranges(answer, span)])
                for answer in self.answers
            ],
        }

    @cached_property
    def decisions(self) -> list[Float[np.ndarray, " token"]]:
        """The decision value of each token, centred for each fit.

        From the values of a fit, their mean over the tokens of all answers is subtracted, without
        labels: fits differ by a constant, which another precision shifts.
        """
        values = {}
        for fit in set(self.fits):
            neurons = _neurons_of(self.probes, fit)
            decision = self.readings.decisions(neurons)
            values[fit] = self.per_token(decision - decision.mean())
        return [values[fit][i] for i, fit in enumerate(self.fits)]

    def per_token(self, values: Float[np.ndarray, " token"]) -> list[Float[np.ndarray, " token"]]:
        """Return the values of the tokens of each answer."""
        parts = self.readings.by_answer(values)
        return [parts[row] for row in self.rows]

    def _reduced(self, tokens: Sequence[Float[np.ndarray, " token"]], span: str) -> StepScores:
        """Return the mean over each step's tokens; over sentences, the highest of their means."""
        return [
            np.array([_score(of_answer, step, span) for step in answer.steps])
            for of_answer, answer in zip(tokens, self.answers, strict=True)
        ]


def _score(tokens: Float[np.ndarray, " token"], step: Step, span: str) -> float:
    ranges: Sequence[Range] = step.sentences if span == "sentence" else (_range(step, span),)
    return max(float(tokens[start:end].mean()) for start, end in ranges)


def _range(step: Step, span: str) -> Range:
    return step.answer_tokens if span == "answer" else step.tokens


def _ranges(answer: SteppedAnswer, span: str) -> list[Range]:
    return [_range(step, span) for step in answer.steps]


def text_scores(
    answers: Sequence[SteppedAnswer], folds: Int[np.ndarray, " answer"]
) -> StepScores | None:
    """Return the cross-fitted scores of words; None if a fit would see one label only."""
    steps = [(i, step) for i, answer in enumerate(answers) for step in answer.steps]
    fold = np.array([folds[i] for i, _ in steps])
    y = np.array([step.label == "wrong" for _, step in steps], dtype=np.int64)
    known = np.array([step.label != "unknown" for _, step in steps])
    asked, given = [step.asked for _, step in steps], [step.answer for _, step in steps]
    values = np.empty(len(steps))
    for held_out in np.unique(folds).tolist():
        seen = np.flatnonzero(known & (fold != held_out))
        if len(np.unique(y[seen])) < 2:
            return None
        of_fold = text_only(asked, given, y, seen)["text-both"]
        values[fold == held_out] = of_fold[fold == held_out]
    ends = np.cumsum([len(answer.steps) for answer in answers])
    return list(np.split(values, ends[:-1]))


def centred(scores: StepScores, folds: Int[np.ndarray, " answer"]) -> StepScores:
    """Subtract from each score the mean of the scores of its step number in the other folds.

    Without labels: a step's number alone then locates nothing. Numbers with fewer than 20 other
    scores share the mean of all of them.
    """
    result = [np.empty(len(of_answer)) for of_answer in scores]
    for fold in np.unique(folds).tolist():
        others = [of for of, f in zip(scores, folds, strict=True) if f != fold]
        everywhere = float(np.concatenate(others).mean())
        levels = _levels(others, everywhere)
        for i in np.flatnonzero(folds == fold).tolist():
            of_step = [levels.get(k, everywhere) for k in range(len(scores[i]))]
            result[i] = scores[i] - np.array(of_step)
    return result


def _levels(scores: Sequence[Float[np.ndarray, " step"]], everywhere: float) -> Mapping[int, float]:
    by_number: dict[int, list[float]] = defaultdict(list)
    for of_answer in scores:
        for number, score in enumerate(of_answer.tolist()):
            by_number[number].append(score)
    return {
        number: float(np.mean(of)) if len(of) >= 20 else everywhere
        for number, of in by_number.items()
    }
