"""Columns of the tables of conditions."""

from pydantic import Field

from harness.tables.schema import ExpertField, Row, Tables
from hq.stats.intervals import Estimate

_DRAWS = "; mean and 95% of draws with labels flipped by unit"


class ConditionsRow(Row):
    """The three conditions for each H-Neuron of the FP16 set, at each precision."""

    precision: str = Field(description="the precision at which the neuron is evaluated")
    layer: int = Field(description="layer of the neuron, from 0")
    expert: int | None = ExpertField
    index: int = Field(description="index of the neuron in its layer")
    weight: float = Field(description="weight in the FP16 set; condition 1: above 0")
    folds: int = Field(
        description="folds whose probe, fitted without the fold, gives it a positive weight"
    )
    auroc: Estimate = Field(
        description="AUROC of its CETT on the study's samples, on which it was selected; condition "
        "2: above tau"
    )
    auroc_held_out: Estimate | None = Field(
        description="AUROC within the folds whose probe selected it without them; empty if there "
        "are none, or too few units"
    )
    auroc_cross: Estimate = Field(
        description="AUROC in the second scenario, which did not select it; condition 3: above "
        "tau_cross"
    )
    holds: str = Field(description="conditions that hold by the estimates")
    shown: str = Field(description="conditions that hold by the lower ends of the intervals too")


class CountsRow(Row):
    """How many neurons meet conditions 2 and 3, by threshold: H-Neurons, and all neurons."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    tau: float = Field(description="threshold of condition 2")
    tau_cross: float = Field(description="threshold of condition 3")
    h_neurons: int = Field(description="H-Neurons of the FP16 set, which all meet condition 1")
    h_second: int = Field(description="H-Neurons that meet condition 2, on samples that chose them")
    h_third: int = Field(description="H-Neurons that meet condition 3")
    h_all: int = Field(description="H-Neurons that meet all three")
    h_held_out: int = Field(
        description="H-Neurons that meet all three with auroc_held_out in condition 2"
    )
    h_shown: int = Field(
        description="H-Neurons that meet all three by the lower ends of both intervals"
    )
    neurons: int = Field(description="all neurons of the model")
    second: int = Field(description="all neurons that meet condition 2")
    second_chance: Estimate = Field(description=f"neurons that meet it by chance{_DRAWS}")
    third: int = Field(description="all neurons that meet condition 3")
    third_chance: Estimate = Field(description=f"neurons that meet it by chance{_DRAWS}")
    both: int = Field(description="all neurons that meet conditions 2 and 3")
    both_chance: Estimate = Field(description=f"neurons that meet both by chance{_DRAWS}")
    both_p: float = Field(
        description="share of draws with flipped labels in which as many neurons meet both"
    )
    both_shown: int = Field(
        description="all neurons that meet conditions 2 and 3 by the lower ends of both intervals"
    )
    h_third_p: float = Field(
        description="probability that as many of h_neurons neurons drawn at random meet "
        "condition 3 (hypergeometric); neurons were not selected on the second scenario"
    )


class HeldOutRow(Row):
    """How much the selection raises the AUROC of the selected neurons."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    selections: int = Field(
        description="neurons with a positive weight in the probes of all folds; one in several "
        "probes counts several times"
    )
    auroc_selected_on: Estimate = Field(
        description="mean AUROC of single neurons on the folds that selected them"
    )
    auroc_held_out: Estimate = Field(description="their mean AUROC on the fold left out")
    optimism: Estimate = Field(description="paired difference: what the selection adds")
    auroc_cross: Estimate = Field(description="their mean AUROC in the second scenario")
    above_tau: float = Field(
        description="share of selections with an AUROC above tau on the fold left out"
    )
    all_neurons: float = Field(description="mean AUROC of all neurons on the study's samples")
    all_neurons_cross: float = Field(description="mean AUROC of all neurons in the second scenario")


class ScenarioRow(Row):
    """The two scenarios, and what they have in common."""

    scenario: str = Field(description="name of the study whose questions these are")
    role: str = Field(description="selection: it selected the neurons; second: it did not")
    n: int = Field(description="samples")
    units: int = Field(description="independent units, left out one at a time in intervals")
    relations: int = Field(description="relations of the questions")
    same_questions: int = Field(
        description="samples with the question of a sample in the other scenario"
    )
    same_answers: int = Field(
        description="samples with the answer of a sample in the other scenario"
    )


TABLES: Tables = {
    "conditions": (ConditionsRow, ("precision", "layer", "expert", "index")),
    "counts": (CountsRow, ("precision", "tau", "tau_cross")),
    "held_out": (HeldOutRow, ("precision",)),
    "scenarios": (ScenarioRow, ("scenario",)),
}
