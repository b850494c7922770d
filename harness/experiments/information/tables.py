"""Columns of the tables of information. All information is in bits: labels have one bit."""

from pydantic import Field

from harness.tables.schema import ExpertField, Row, Tables
from hq.stats.intervals import Estimate

_CORRECTED = "with Miller–Madow correction, in bits"


class InformationRow(Row):
    """Mutual information of H-Neurons and regular neurons with hallucination."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    n: int = Field(description="samples")
    units: int = Field(description="independent units, left out one at a time in intervals")
    quantile: float = Field(
        description="quantile of a neuron's CETT above which its activation is high"
    )
    h_neurons: int = Field(description="H-Neurons of the FP16 set")
    information: Estimate = Field(
        description=f"I(H;Y): mean over H-Neurons, {_CORRECTED}, on the samples that selected them"
    )
    chance: float = Field(
        description="the same mean with labels flipped by unit: what remains of the bias"
    )
    matched: Estimate = Field(
        description="I(R;Y): mean over regular neurons of the same layers and magnitudes; mean and "
        "95% of draws"
    )
    matched_p: float = Field(description="share of matched draws that reach I(H;Y)")
    random: Estimate = Field(
        description="I(R;Y): mean over as many regular neurons of any layer; mean and 95% of draws"
    )
    random_p: float = Field(description="share of random draws that reach I(H;Y)")
    held_out: Estimate = Field(
        description="mean over the neurons of each fold's probe, on the fold that did not select "
        "them"
    )
    held_out_matched: Estimate = Field(
        description="the same for neurons that match those of each fold; mean and 95% of draws"
    )
    held_out_p: float = Field(description="share of those draws that reach held_out")
    significant: int = Field(
        description="H-Neurons with p_holm below 0.05, on the samples that selected them"
    )
    all_significant: int = Field(
        description="neurons of the model with a family-wise p below 0.05 over all neurons"
    )
    all_above: int = Field(
        description="regular neurons with more information than the median H-Neuron"
    )


class NeuronRow(Row):
    """Mutual information of each H-Neuron with hallucination."""

    precision: str = Field(description="the precision at which the neuron is evaluated")
    layer: int = Field(description="layer of the neuron, from 0")
    expert: int | None = ExpertField
    index: int = Field(description="index of the neuron in its layer")
    weight: float = Field(description="weight in the FP16 set")
    information: Estimate = Field(description=f"I(H;Y), {_CORRECTED}")
    plug_in: float = Field(description="I(H;Y) without correction, in bits")
    chance: float = Field(description="mean of I with labels flipped by unit, corrected")
    p: float = Field(description="share of draws with flipped labels that reach the plug-in I")
    p_holm: float = Field(description="p with Holm's correction over the H-Neurons")
    p_all: float = Field(
        description="share of draws in which any neuron of the model reaches it (maxT)"
    )
    layer_share: float = Field(
        description="share of the regular neurons of its layer with less information"
    )


class LayerRow(Row):
    """Mean mutual information of the H-Neurons and the regular neurons of each layer."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    layer: int = Field(description="the layer, from 0")
    h_neurons: int = Field(description="H-Neurons of the layer in the FP16 set")
    information: float | None = Field(
        description=f"I(H;Y): mean over its H-Neurons, {_CORRECTED}; empty if it has none"
    )
    regular: Estimate = Field(
        description="I(R;Y): mean over its regular neurons, and the interval that contains 95% of "
        "them"
    )
    p: float | None = Field(
        description="share of draws of as many regular neurons of the layer that reach I(H;Y)"
    )
    p_holm: float | None = Field(
        description="p with Holm's correction over the layers with H-Neurons"
    )


TABLES: Tables = {
    "information": (InformationRow, ("precision",)),
    "neurons": (NeuronRow, ("precision", "layer", "expert", "index")),
    "layers": (LayerRow, ("precision", "layer")),
}
