"""Rows of the tables of steps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from harness.experiments.steps.answers import ALL_RIGHT, SteppedAnswer
from harness.experiments.steps.scores import (
    PROBE,
    SPANS,
    TEXT,
    PrecisionScores,
    StepScores,
    centred,
    text_scores,
)
from harness.experiments.steps.tables import Answers, Detection, Located, Pair
from harness.stages.units import components
from hq.errors import HQError
from hq.stats.auroc import estimate_auroc, estimate_auroc_difference
from hq.stats.intervals import Estimate, Weights, estimate
from hq.stats.localisation import (
    Localisation,
    best_threshold,
    first_alarm,
    highest,
    localisation_of_hits,
)

HIGHEST, ONLY_WRONG, FIRST_ALARM = "highest", "only wrong", "first alarm"
_POOLED = "all"


class _Linked(NamedTuple):
    """An item of the graph of units."""

    id: str
    entities: tuple[str, ...]
    wording: str = ""


def units_of(names: Sequence[tuple[str, ...]]) -> Shaped[np.ndarray, " n"]:
    """Return the unit of each row: rows that share a name, or are linked by others, are one."""
    items = [_Linked(f"{i:07d}", tuple(filter(None, of))) for i, of in enumerate(names)]
    unit = components(items)
    return np.array([unit[item.id] for item in items])


@dataclass(frozen=True, eq=False)
class StepsAnalysis:
    """The scored answers, which have a verdict on their first wrong step."""

    answers: Sequence[SteppedAnswer]
    folds: int
    has_answers: bool  # whether the tokens of an answer within a step are known

    @cached_property
    def units(self) -> Shaped[np.ndarray, " answer"]:
        """The unit of each answer."""
        return units_of([answer.names for answer in self.answers])

    @cached_property
    def fold(self) -> Int[np.ndarray, " answer"]:
        """A fold of whole units for each answer, for thresholds, levels and text.

        Raises HQError if there are fewer units than folds.
        """
        from sklearn.model_selection import GroupKFold

        if len(np.unique(self.units)) < self.folds:
            raise HQError(
                f"The {len(self.answers)} scored answers are in {len(np.unique(self.units))} "
                f"independent units, fewer than the {self.folds} folds: score more answers "
                "(steps.chains, or a longer file)."
            )
        fold = np.empty(len(self.answers), dtype=np.int64)
        X = np.zeros(len(self.answers))
        for k, (_, test) in enumerate(GroupKFold(self.folds).split(X, groups=self.units)):
            fold[test] = k
        return fold

    @cached_property
    def first_wrong(self) -> Int[np.ndarray, " answer"]:
        """The index of the first wrong step of each answer, or ALL_RIGHT."""
        return np.array([answer.first_wrong for answer in self.answers], dtype=np.int64)

    @cached_property
    def _text(self) -> StepScores | None:
        return text_scores(self.answers, self.fold)

    @property
    def spans(self) -> tuple[str, ...]:
        """The kinds of spans that differ: a chain's steps are single sentences."""
        return (SPANS[0], SPANS[1]) if self.has_answers else (SPANS[1], SPANS[2])

    def _scores(self, scores: PrecisionScores, span: str) -> dict[str, StepScores]:
        of_span = scores.of(span)
        return of_span if self._text is None else of_span | {TEXT: self._text}

    # --- detection

    def detection(self, precision: str, scores: PrecisionScores) -> list[Detection]:
        """Return the rows of all spans, steps and scorers at a precision."""
        return [
            row
            for span in self.spans
            for step in self._steps
            for row in self._detection(precision, span, step, self._scores(scores, span))
        ]

    @property
    def _steps(self) -> list[str]:
        return [_POOLED, *("1", "2")[: 2 * self.has_answers]]

    @cached_property
    def _labelled(self) -> "_LabelledSteps":
        return _LabelledSteps.of(self.answers)

    def _detection(
        self, precision: str, span: str, step: str, scores: dict[str, StepScores]
    ) -> list[Detection]:
        of_steps = self._labelled
        rows = of_steps.rows(step)
        y, number = of_steps.wrong[rows].astype(np.int64), of_steps.number[rows]
        units = units_of([of_steps.names[i] for i in rows.tolist()])
        values = {name: of_steps.flat(of)[rows] for name, of in scores.items()}
        listed = []
        for name in values:
            auroc, gain, note = None, None, ""
            try:
                auroc = estimate_auroc(values[name], y, units, number)
                if name != PROBE:
                    gain = estimate_auroc_difference(values[PROBE], values[name], y, units, number)
            except HQError as error:
                note = f"{int((y == 0).sum())} right and {int(y.sum())} wrong steps: {error}"
            listed.append(
                Detection(
                    precision=precision,
                    span=span,
                    step=step,
                    scorer=name,
                    n=len(y),
                    wrong=int(y.sum()),
                    units=len(np.unique(units)),
                    auroc=auroc,
                    gain=gain,
                    note=note,
                )
            )
        return listed

    # --- localisation

    def localisation(self, precision: str, scores: PrecisionScores) -> list[Located]:
        """Return the rows of all spans, rules and scorers at a precision."""
        listed = []
        for span in self.spans:
            levelled = {
                name: centred(of, self.fold) for name, of in self._scores(scores, span).items()
            }
            for rule in self.rules:
                hits = {name: self._hits(of, rule) for name, of in levelled.items()}
                hits |= {"position": self._position(rule), "chance": self._chance(rule)}
                listed += [
                    self._located(precision, span, rule, name, of, hits[PROBE])
                    for name, of in hits.items()
                ]
        return listed

    def _hits(self, scores: StepScores, rule: str) -> Float[np.ndarray, " answer"]:
        """Return whether each answer is located rightly; thresholds are of the other folds."""
        if rule != FIRST_ALARM:
            return _as_floats(highest(scores) == self.first_wrong)
        thresholds = np.empty(len(scores))
        for fold in range(self.folds):
            others = np.flatnonzero(self.fold != fold)
            seen = [scores[i] for i in others.tolist()]
            thresholds[self.fold == fold] = best_threshold(seen, self.first_wrong[others])
        return _as_floats(first_alarm(scores, thresholds) == self.first_wrong)

    def _position(self, rule: str) -> Float[np.ndarray, " answer"]:
        """Return whether the most frequent outcome of the other folds is right for each answer."""
        hits = np.empty(len(self.answers))
        for fold, counts in self._outcomes(rule):
            here = self.fold == fold
            # Among equally frequent ones, the first step; there may be none outside of a fold.
            common = min(counts, key=lambda outcome: (-counts[outcome], outcome), default=0)
            hits[here] = self.first_wrong[here] == common
        return hits

    def _chance(self, rule: str) -> Float[np.ndarray, " answer"]:
        """Return the probability that a random outcome is right for each answer."""
        if rule != FIRST_ALARM:
            return np.array([1 / len(answer.steps) for answer in self.answers])
        hits = np.empty(len(self.answers))
        for fold, counts in self._outcomes(rule):
            here = self.fold == fold
            hits[here] = [counts[k] / counts.total() for k in self.first_wrong[here].tolist()]
        return hits

    def _outcomes(self, rule: str) -> list[tuple[int, Counter[int]]]:
        """Count the outcomes outside of each fold, among the answers of the rule."""
        rows = self._rows(rule)
        counted, fold = self.first_wrong[rows], self.fold[rows]
        return [(k, Counter(counted[fold != k].tolist())) for k in range(self.folds)]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules; a file does not label the steps after the first wrong one."""
        return (HIGHEST, *([ONLY_WRONG] if self.has_answers else []), FIRST_ALARM)

    def _rows(self, rule: str) -> Int[np.ndarray, " row"]:
        """The answers on which a rule is tested."""
        if rule == FIRST_ALARM:
            return np.arange(len(self.answers))
        labels = [Counter(step.label for step in answer.steps) for answer in self.answers]
        tested = [
            i
            for i, of in enumerate(labels)
            if self.first_wrong[i] != ALL_RIGHT
            and (rule == HIGHEST or (of["wrong"] == 1 and not of["unknown"]))
        ]
        return np.array(tested, dtype=np.int64)

    def _located(
        self,
        precision: str,
        span: str,
        rule: str,
        scorer: str,
        hits: Float[np.ndarray, " answer"],
        of_probe: Float[np.ndarray, " answer"],
    ) -> Located:
        rows = self._rows(rule)
        wrong, units = self.first_wrong[rows] != ALL_RIGHT, self.units[rows]
        result = localisation_of_hits(hits[rows], wrong, units)
        gain = None
        if scorer != PROBE:
            gain = _gain(of_probe[rows], hits[rows], wrong, units, result, rule)
        return Located(
            precision=precision,
            span=span,
            rule=rule,
            scorer=scorer,
            n_wrong=int(wrong.sum()),
            n_right=int((~wrong).sum()),
            units=len(np.unique(units)),
            wrong=result.wrong,
            right=result.right,
            f1=result.f1,
            gain=gain,
        )

    # --- counts

    def counts(
        self, source: str, composed: int | None, asked: int, unclear: int, seen: int
    ) -> Answers:
        """Return the row of the answers."""
        n, wrong = len(self.answers), self.first_wrong
        after = Counter(
            answer.steps[1].label
            for answer in self.answers
            if self.has_answers and answer.first_wrong == 0
        )
        sizes = np.unique(self.units, return_counts=True)[1]
        relations = {answer.relation for answer in self.answers}
        return Answers(
            source=source,
            composed=composed,
            pairs=len(relations) if self.has_answers else None,
            asked=asked,
            unclear=unclear,
            seen=seen,
            n=n,
            first_right=int((wrong != 0).sum()),
            all_right=int((wrong == ALL_RIGHT).sum()),
            first_wrong_later=int((wrong > 0).sum()),
            right_after_wrong=after["right"] if self.has_answers else None,
            wrong_after_wrong=after["wrong"] if self.has_answers else None,
            units=len(sizes),
            largest_unit=float(sizes.max() / n),
            note=_untestable(self.units[wrong == ALL_RIGHT], self.units[wrong > 0], n),
        )

    def pairs(self, composed: dict[str, int]) -> list[Pair]:
        """Return a row per pair of relations that was answered."""
        of: dict[str, list[int | None]] = {}
        for answer in self.answers:
            of.setdefault(answer.relation, []).append(answer.first_wrong)
        return [
            Pair(
                pair=pair,
                composed=composed[pair],
                n=len(outcomes),
                first_right=sum(outcome != 0 for outcome in outcomes),
                all_right=sum(outcome == ALL_RIGHT for outcome in outcomes),
            )
            for pair, outcomes in sorted(of.items())
        ]


@dataclass(frozen=True, eq=False)
class _LabelledSteps:
    """All steps with a label, as arrays with one row per step."""

    place: Int[np.ndarray, " step"]  # index among all steps
    number: Int[np.ndarray, " step"]  # from 1
    wrong: Bool[np.ndarray, " step"]
    names: list[tuple[str, ...]]

    @classmethod
    def of(cls, answers: Sequence[SteppedAnswer]) -> "_LabelledSteps":
        listed = [(k, step) for answer in answers for k, step in enumerate(answer.steps, 1)]
        known = [i for i, (_, step) in enumerate(listed) if step.label != "unknown"]
        return cls(
            np.array(known, dtype=np.int64),
            np.array([listed[i][0] for i in known], dtype=np.int64),
            np.array([listed[i][1].label == "wrong" for i in known], dtype=bool),
            [listed[i][1].names for i in known],
        )

    def rows(self, step: str) -> Int[np.ndarray, " row"]:
        """The rows of a step number, or of all."""
        if step == _POOLED:
            return np.arange(len(self.number))
        return np.flatnonzero(self.number == int(step))

    def flat(self, scores: StepScores) -> Float[np.ndarray, " step"]:
        """The scores of these steps."""
        flat: Float[np.ndarray, " step"] = np.concatenate(scores)[self.place]
        return flat


def _gain(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " n"],
    wrong: Bool[np.ndarray, " n"],
    units: Shaped[np.ndarray, " n"],
    result: Localisation,
    rule: str,
) -> Estimate | None:
    """Return the paired difference of the two accuracies, or of F1."""
    if (result.f1 if rule == FIRST_ALARM else result.wrong) is None:
        return None

    def accuracy(weights: Weights, hits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " w"]:
        a: Float[np.ndarray, " w"] = weights[:, wrong] @ hits[wrong] / weights[:, wrong].sum(axis=1)
        if rule != FIRST_ALARM:
            return a
        b = weights[:, ~wrong] @ hits[~wrong] / weights[:, ~wrong].sum(axis=1)
        f1 = np.zeros_like(a)
        np.divide(2 * a * b, a + b, out=f1, where=a + b > 0)
        return f1

    return estimate(
        lambda weights: accuracy(weights, first) - accuracy(weights, second),
        len(first),
        units,
        "gain",
    )


def _as_floats(hits: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    floats: Float[np.ndarray, " n"] = hits.astype(np.float64)
    return floats


_NEEDED = 50  # independent units of a kind, for an interval of about ±0.14 of a share


def _untestable(right: Shaped[np.ndarray, " m"], later: Shaped[np.ndarray, " k"], n: int) -> str:
    """Say which kinds of answers are too few, and how many answers would be needed."""
    parts = []
    for kind, units in (("without a wrong step", right), ("first wrong after step 1", later)):
        count = len(np.unique(units))
        if count < _NEEDED:
            needed = f"about {-(-_NEEDED * n // count)} answers" if count else "other questions"
            parts.append(
                f"answers {kind} are in {count} units, fewer than {_NEEDED}: {needed} are needed"
            )
    return "; ".join(parts)
