"""Columns of the tables of steps."""

from pydantic import Field

from harness.tables.schema import Row, Tables
from hq.stats.intervals import Estimate

_SPAN = (
    "tokens over which a step is scored: answer, those that the model wrote after the frame of the "
    "step; step, all of them; sentence, the highest of the step's sentences"
)
_SCORER = (
    "probe, the FP16 probe; entropy and log-prob, the mean entropy and the mean negative "
    "log-probability of the tokens; length, their number; text, words of what is asked and of the "
    "answer (TF-IDF), cross-fitted"
)


class Answers(Row):
    """What was asked, and which steps are wrong."""

    source: str = Field(description="two-hop questions, or the name of the file of solutions")
    composed: int | None = Field(description="chains that can be composed; empty for a file")
    pairs: int | None = Field(description="pairs of relations among the chains that were asked")
    asked: int = Field(description="chains that were asked, or solutions of the file")
    unclear: int = Field(
        description="answers set aside: no first step, or a first step without a verdict; or a "
        "right first step and a second without a verdict"
    )
    seen: int = Field(
        description="answers set aside because every fit of the probe has seen their names: those "
        "met samples of three or more folds"
    )
    n: int = Field(description="answers that are scored")
    first_right: int = Field(description="those with a right first step")
    all_right: int = Field(description="those without a wrong step")
    first_wrong_later: int = Field(description="those whose first wrong step is not the first")
    right_after_wrong: int | None = Field(
        description="wrong first steps that are followed by a step that is right given them; empty "
        "for a file, which labels no step after the first wrong one"
    )
    wrong_after_wrong: int | None = Field(description="those followed by a wrong one")
    units: int = Field(description="independent units: answers linked by a subject or first answer")
    largest_unit: float = Field(description="share of the answers in the largest unit")
    note: str = Field(description="what cannot be tested with these answers; empty otherwise")


class Pair(Row):
    """How often each pair of relations is answered rightly."""

    pair: str = Field(description="first and second relation")
    composed: int = Field(description="chains that can be composed")
    n: int = Field(description="answers that are scored")
    first_right: int = Field(description="those with a right first step")
    all_right: int = Field(description="those without a wrong step")


class Detection(Row):
    """How well a score separates wrong steps from right ones, among steps of the same number."""

    precision: str = Field(description="the precision at which the model reads the answers")
    span: str = Field(description=_SPAN)
    step: str = Field(description="number of the step; all: pooled over numbers, pairs within one")
    scorer: str = Field(description=_SCORER)
    n: int = Field(description="steps with a label")
    wrong: int = Field(description="wrong ones")
    units: int = Field(description="independent units: steps linked by what is asked or answered")
    auroc: Estimate | None = Field(description="AUROC of wrong against right steps")
    gain: Estimate | None = Field(description="paired difference: AUROC of the probe − this AUROC")
    note: str = Field(description="why there is no AUROC; empty otherwise")


class Located(Row):
    """How often a score locates the first wrong step."""

    precision: str = Field(description="the precision at which the model reads the answers")
    span: str = Field(description=_SPAN)
    rule: str = Field(
        description="highest: the step with the highest score, among answers with a wrong step; "
        "only wrong: the same, among answers with exactly one wrong step; first alarm: the first "
        "step at or above a threshold with the best F1 on other units"
    )
    scorer: str = Field(
        description=f"{_SCORER}; position, the most frequent outcome on other units; chance, a "
        "step at random (first alarm: an outcome drawn by its frequency)"
    )
    n_wrong: int = Field(description="answers with a wrong step")
    n_right: int = Field(description="answers without one")
    units: int = Field(description="independent units")
    wrong: Estimate | None = Field(
        description="share of the answers with a wrong step whose first one is located"
    )
    right: Estimate | None = Field(
        description="share of the answers without a wrong step in which none is located"
    )
    f1: Estimate | None = Field(description="harmonic mean of both, as in ProcessBench")
    gain: Estimate | None = Field(
        description="paired difference between the probe and this scorer: of F1 for the "
        "first alarm, otherwise of the share"
    )


TABLES: Tables = {
    "answers": (Answers, ("source",)),
    "pairs": (Pair, ("pair",)),
    "detection": (Detection, ("precision", "span", "step", "scorer")),
    "localisation": (Located, ("precision", "span", "rule", "scorer")),
}
