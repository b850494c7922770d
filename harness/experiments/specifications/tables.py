"""Columns of the tables of specifications."""

from pydantic import Field

from harness.tables.schema import ExpertField, Row, Tables
from hq.stats.intervals import Estimate

_CONSISTENCY = (
    "stability of the selection, corrected for chance (Nogueira, Sechidis & Brown 2018; for sets "
    "of one size, the mean index of Kuncheva): 1 if all sets are equal, 0 for random sets"
)


class SpecificationRow(Row):
    """One combination of choices at one precision. The first is the study's own.

    Features, labels and rules are combined in every way; other folds and halves of the units are
    combined with the study's own features and labels, and every rule.
    """

    precision: str = Field(description="precision at which the frozen FP16 probes are evaluated")
    cett: str = Field(description="CETT: sum or output")
    tokens: str = Field(description="token span of the features")
    labels: str = Field(description="1-vs-1; or 3-vs-1, which adds all other tokens as negatives")
    rule: str = Field(
        description="the neurons of a set: one-se, the smallest C at most one standard error "
        "below the best AUROC, and best, the C with the best AUROC, both with fewer neurons than "
        "the cap; or the solution with at most this number of neurons"
    )
    folds: str = Field(description="study, the study's own folds; or another assignment of units")
    samples: str = Field(description="all; or one of two complementary random halves of the units")
    changes: int = Field(description="number of choices that differ from the study's own")
    n: int = Field(description="samples")
    units: int = Field(description="independent units: intervals resample them")
    neurons: int = Field(description="neurons with a non-zero weight, fitted on all these samples")
    h_neurons: int = Field(description="neurons with a positive weight: the H-Neurons")
    auroc: Estimate = Field(description="AUROC of the FP16 probes at this precision, out of fold")
    difference: Estimate = Field(
        description="paired difference of this AUROC from that of the study's own specification on "
        "the same samples"
    )
    change: Estimate | None = Field(
        description="paired difference from the AUROC at FP16; empty at FP16"
    )
    verdict: str = Field(
        description="preserved: the 90% interval of the change lies within ±0.02 (TOST); changed: "
        "the 95% interval excludes 0; else not decided at this n; empty at FP16"
    )
    common: int = Field(description="neurons in this set and in the study's own")
    jaccard: float = Field(description="common ÷ union of the two sets")
    jaccard_chance: float = Field(description="expected value for two random sets of these sizes")
    rank_correlation: float = Field(
        description="Spearman's correlation of the scores with those of the study's own "
        "specification on the same samples, at this precision"
    )


class Curve(Row):
    """How much the answer depends on the choices: the specification curve in numbers."""

    precision: str = Field(description="precision")
    scope: str = Field(
        description="settings: all features, labels and rules on the study's own folds; folds: "
        "other folds, with every rule; halves: of the units, with every rule; all: every row of "
        "table specifications"
    )
    specifications: int = Field(description="number of specifications")
    auroc: float = Field(description="AUROC of the study's own specification")
    auroc_median: float = Field(description="median AUROC")
    auroc_least: float = Field(description="smallest AUROC")
    auroc_most: float = Field(description="largest AUROC")
    better: float = Field(description="share with a higher AUROC than the study's own")
    above_chance: float = Field(description="share whose 95% interval of the AUROC is above 0.5")
    change: float | None = Field(description="change from FP16 of the study's own; empty at FP16")
    change_median: float | None = Field(description="median change from FP16")
    change_least: float | None = Field(description="smallest (most negative) change")
    change_most: float | None = Field(description="largest change")
    verdict: str = Field(description="verdict of the study's own specification")
    same_verdict: float | None = Field(description="share with this verdict")
    preserved: float | None = Field(description="share with the verdict preserved")
    changed: float | None = Field(description="share with the verdict changed")
    undecided: float | None = Field(description="share that is not decided")
    jaccard_median: float = Field(description="median Jaccard index with the study's own set")
    jaccard_chance: float = Field(description="median of its expected value for random sets")
    rank_correlation_median: float = Field(
        description="median rank correlation of the scores with those of the study's own"
    )


class Influence(Row):
    """Which choice changes the result: one-way decomposition of the variance, by choice.

    cett, tokens, labels and rule are compared over all their combinations, folds and samples over
    the rules with the study's own features and labels.
    """

    precision: str = Field(description="precision")
    choice: str = Field(description="the choice: a column of table specifications")
    levels: int = Field(description="number of levels")
    specifications: int = Field(description="specifications that are compared")
    auroc_share: float = Field(
        description="share of the variance of the AUROC between the means of the levels"
    )
    auroc_range: float = Field(description="highest mean AUROC of a level − lowest mean")
    auroc_low: str = Field(description="level with the lowest mean AUROC, and the mean")
    auroc_high: str = Field(description="level with the highest mean AUROC, and the mean")
    change_share: float | None = Field(description="share of the variance of the change from FP16")
    change_range: float | None = Field(description="highest mean change of a level − lowest mean")
    change_low: str = Field(description="level with the lowest mean change; empty at FP16")
    change_high: str = Field(description="level with the highest mean change; empty at FP16")


class PartitionRow(Row):
    """The folds and halves, and whether texts alone predict the labels on them."""

    folds: str = Field(description="study: the study's own; else another assignment of units")
    samples: str = Field(description="all, or a half of the units")
    n: int = Field(description="samples")
    units: int = Field(description="independent units")
    text_answer: Estimate = Field(
        description="AUROC of a TF-IDF classifier that sees the words of the answer only; other "
        "folds that do not keep the balance within relations move it below 0.5"
    )
    text_question: Estimate = Field(description="the same for the words of the question")
    text_both: Estimate = Field(description="the same for the words of both")
    text_spelling: Estimate = Field(
        description="the same for one to three characters within words, of both"
    )


class SelectedNeuron(Row):
    """How often a neuron is selected, if it is in the study's own set or in half of the others."""

    layer: int = Field(description="layer")
    expert: int | None = ExpertField
    index: int = Field(description="index within the layer")
    weight: float | None = Field(description="weight in the study's own set; empty if not in it")
    in_folds: float = Field(description="share of the sets without one of the study's folds")
    in_seeds: float | None = Field(
        None, description="share of the sets without a fold, over all other folds"
    )
    in_halves: float | None = Field(None, description="share of the sets of halves of the units")
    in_settings: float = Field(
        description="share of the sets of all features, labels and rules on all samples"
    )


class Stability(Row):
    """How similar sets of the study's own rule are that differ in one respect."""

    source: str = Field(
        description="folds: the sets without one of the study's folds, which share most samples; "
        "seeds: the sets on all samples with C chosen on other inner folds; folds of seeds: the "
        "sets without one fold, over all assignments of folds; halves: of the units, means over "
        "pairs of complementary halves; settings: the sets of all features and labels"
    )
    sets: int = Field(description="number of sets")
    neurons: float = Field(description="mean number of neurons of a set")
    in_all: int = Field(description="neurons in all sets")
    in_any: int = Field(description="neurons in any set")
    jaccard: float = Field(description="mean Jaccard index over pairs of sets")
    jaccard_chance: float = Field(description="its expected value for random sets of these sizes")
    consistency: float = Field(description=_CONSISTENCY)


class SplitHalfRow(Row):
    """Whether two probes on complementary halves of the units agree, in neurons and in scores.

    A fold is held out in turn, and the units outside of it are divided at random. Both probes are
    fitted at the penalty per sample of the study's own set. Values are means over splits, with the
    interval that contains 95% of the splits.
    """

    splits: int = Field(description="random divisions")
    neurons: Estimate = Field(description="neurons of a half's probe")
    jaccard: Estimate = Field(description="Jaccard index of the two sets")
    jaccard_chance: float = Field(description="its expected value for random sets of these sizes")
    consistency: Estimate = Field(description=_CONSISTENCY)
    nearest: Estimate | None = Field(
        description="largest |r| of a neuron of one set only with a neuron of the other set, mean "
        "over such neurons: how well neurons replace each other; empty if sets are equal"
    )
    nearest_chance: Estimate | None = Field(description="the same for as many random neurons")
    correlation: Estimate = Field(
        description="Pearson's correlation of the two probes' scores of the held-out fold"
    )
    correlation_within: Estimate = Field(
        description="the same for deviations from the mean score of the label, so that it is 0 for "
        "probes that agree on the label only"
    )
    auroc: Estimate = Field(description="AUROC in the held-out fold, mean of the two probes")
    frequencies: Estimate = Field(
        description="Spearman's correlation over all neurons of the selection frequencies in two "
        "halves, each over ten random quarters of the units; 0 by chance"
    )


class NotFitted(Row):
    """Choices with which there is no probe; they are in no other table."""

    cett: str = Field(description="CETT: sum or output")
    tokens: str = Field(description="token span of the features")
    labels: str = Field(description="1-vs-1 or 3-vs-1")
    folds: str = Field(description="folds")
    samples: str = Field(description="samples")
    reason: str = Field(description="why there is no probe")


TABLES: Tables = {
    "curve": (Curve, ("precision", "scope")),
    "influence": (Influence, ("precision", "choice")),
    "specifications": (
        SpecificationRow,
        ("precision", "cett", "tokens", "labels", "rule", "folds", "samples"),
    ),
    "split_half": (SplitHalfRow, ("splits",)),
    "stability": (Stability, ("source",)),
    "neurons": (SelectedNeuron, ("layer", "expert", "index")),
    "partitions": (PartitionRow, ("folds", "samples")),
    "not_fitted": (NotFitted, ("cett", "tokens", "labels", "folds", "samples")),
}
