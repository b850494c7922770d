"""Columns of the tables of origin."""

from pydantic import Field

from harness.tables.schema import UNITS, Row, Tables
from hq.stats.intervals import Estimate

_NEURON = "the unit of its interval is the neuron"
_DISTANCE = "mean Δ = 1 − cos over the parts (W_gate row, W_up row, W_down column)"


class TransferRow(Row):
    """Whether the tuned model's neurons detect hallucination in the base model's own responses."""

    precision: str = Field(description="the precision at which the base model runs")
    scores: str = Field(
        description="probe: the tuned model's NeuronSet, with its weights; h-neurons: its positive "
        "weights only; random, matched: probes on draws of as many neurons, fitted on the tuned "
        "model's answers; refit: a probe identified on the base model at fp16; text-…: TF-IDF "
        "without neurons, fitted on the base model's answers"
    )
    n: int = Field(description="the base model's answers, half of them hallucinated")
    units: int = Field(description=UNITS)
    left_out: int = Field(
        description="answers that are related to three or more folds of the tuned model's, so that "
        "no fit without them exists"
    )
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    seed: int = Field(description="seed of the draws")
    auroc: Estimate = Field(
        description="AUROC by fits that have seen no related answer; with several draws, their "
        "mean and the range of 95% of them"
    )
    probe_minus: Estimate | None = Field(
        description="paired difference: AUROC of probe − this one; empty for probe"
    )
    change: Estimate | None = Field(
        description="paired difference of the AUROC from fp16; empty at fp16 and for controls"
    )


class RanksRow(Row):
    """Whether tuning changed the tuned model's neurons less or more than other neurons.

    Normalised rank: 1/p is the neuron with the largest change, 1 the one with the smallest change;
    small rank = large change. A mean above 0.5 means more stable than other neurons.
    """

    group: str = Field(description="h-neurons: positive weights; probe: all neurons of the set")
    neurons: int = Field(description="neurons in the group, the unit of intervals and tests")
    of: int = Field(description="neurons of the model, p")
    seed: int = Field(description="seed of the draws")
    draws: int = Field(description="draws of neurons from the whole model, for p_stable, p_changed")
    draws_matched: int = Field(description="draws of matched neurons")
    rank: Estimate = Field(
        description=f"mean normalised rank (small rank = large change); {_NEURON}"
    )
    rank_matched: Estimate = Field(
        description="mean normalised rank of neurons of the same layers and similar magnitudes: "
        "mean over draws, and the range of 95% of them"
    )
    difference: Estimate = Field(
        description=f"mean difference of each neuron's rank from its matched ones'; {_NEURON}"
    )
    p_stable: float = Field(
        description="one-sided: probability that as many neurons of the model have as large a mean "
        "rank, a change as small"
    )
    p_changed: float = Field(
        description="one-sided: probability of as small a mean rank, a change as large"
    )
    p_stable_matched: float = Field(description="p_stable against draws of matched neurons")
    p_changed_matched: float = Field(description="p_changed against draws of matched neurons")
    z: Estimate = Field(
        description=f"mean z-score of the change over all neurons, above 0 if larger; {_NEURON}"
    )
    magnitude_ratio: float = Field(
        description="geometric mean contribution of the matched neurons, relative to the group's"
    )


class NeuronRanksRow(Row):
    """How far tuning moved each neuron of the tuned model's set, from the base model."""

    layer: int = Field(description="layer of the neuron, from 0")
    index: int = Field(description="index of the neuron in its layer")
    weight: float = Field(description="weight in the set; an H-Neuron's is above 0")
    change_gate: float | None = Field(
        description="Δ = 1 − cos of the W_gate row; empty without a gate"
    )
    change_up: float = Field(description="Δ of the W_up row")
    change_down: float = Field(description="Δ of the W_down column")
    z: float = Field(description="mean of their z-scores over all neurons")
    rank: float = Field(
        description="normalised rank of z: small rank = large change, 1 = the smallest change"
    )


class DistancesRow(Row):
    """Whether quantization moves H-Neurons more than tuning did, both from the FP16 base."""

    change: str = Field(
        description="tuned: FP16 base to FP16 tuned model; else the base's dequantized weights at "
        "this precision"
    )
    neurons: int = Field(description="H-Neurons of the tuned model, the unit of intervals")
    seed: int = Field(description="seed of the draws of matched neurons")
    distance: Estimate = Field(description=f"H-Neurons: {_DISTANCE}")
    distance_matched: Estimate = Field(
        description="matched neurons: mean over draws, and the range of 95% of them"
    )
    distance_all: float = Field(description="all neurons of the model")
    z: Estimate = Field(
        description="H-Neurons: mean z-score, with the mean and the standard deviation of tuning"
    )
    z_all: float = Field(description="all neurons, on the same scale; 0 for tuned")
    tuned_minus: Estimate | None = Field(
        description="paired difference of the H-Neurons' distance: tuned − this one; above 0 if "
        "tuning moved them more; empty for tuned"
    )
    tuned_minus_all: float | None = Field(description="the same difference for all neurons")
    moved_more: int | None = Field(
        description="H-Neurons that this precision moves more than tuning did; empty for tuned"
    )


TABLES: Tables = {
    "transfer": (TransferRow, ("precision", "scores")),
    "ranks": (RanksRow, ("group",)),
    "neuron_ranks": (NeuronRanksRow, ("layer", "index")),
    "distances": (DistancesRow, ("change",)),
}
