"""Columns of the tables of distributions."""

from pydantic import Field

from harness.tables.schema import ExpertField, Row, Tables
from hq.stats.intervals import Estimate

_SET = "h: the H-Neurons of the FP16 set; matched: regular neurons of the same layers and "
_SET += "magnitudes; random: as many regular neurons of any layer"
_RELATIVE = "CETT divided by the neuron's mean over all samples at this precision"


class DensityRow(Row):
    """H-Neurons of each layer, against as many neurons placed at random in the model."""

    precision: str = Field(description="the precision at which the neurons were identified")
    layer: int = Field(description="the layer, from 0")
    neurons: int = Field(description="neurons of the layer")
    h_neurons: int = Field(description="H-Neurons of the layer")
    per_mille: float = Field(description="H-Neurons per 1,000 neurons of the layer")
    expected: Estimate = Field(
        description="per mille if placed at random: mean and 95% of the hypergeometric distribution"
    )
    p: float = Field(description="two-sided: twice the smaller tail of that distribution")
    p_holm: float = Field(description="p with Holm's correction over the layers")


class PlacementRow(Row):
    """Whether H-Neurons are spread over layers as neurons placed at random."""

    precision: str = Field(description="the precision at which the neurons were identified")
    h_neurons: int = Field(description="H-Neurons")
    per_mille: float = Field(description="H-Neurons per 1,000 neurons of the model")
    layers: int = Field(description="layers with an H-Neuron")
    expected_layers: float = Field(description="mean number of layers of random placements")
    p: float = Field(
        description="share of random placements with a chi-squared statistic over layers as large"
    )
    depth: float = Field(description="mean layer of the H-Neurons: 0 is the first, 1 the last")
    expected_depth: Estimate = Field(description="the same at random; mean and 95% of placements")
    depth_p: float = Field(description="two-sided share of placements with a depth as extreme")


class EffectRow(Row):
    """CETT of each H-Neuron on right and hallucinated answers."""

    precision: str = Field(description="the precision at which the neuron is evaluated")
    layer: int = Field(description="layer of the neuron, from 0")
    expert: int | None = ExpertField
    index: int = Field(description="index of the neuron in its layer")
    weight: float = Field(description="weight in the FP16 set")
    median_right: float = Field(description="median CETT of right answers")
    median_hallucinated: float = Field(description="median CETT of hallucinated answers")
    delta: Estimate = Field(
        description="Cliff's delta, 2·AUROC − 1: P(hallucinated above right) − P(right above "
        "hallucinated), on the samples that selected the neuron"
    )
    matched: Estimate = Field(
        description="delta of the regular neurons that match it; mean and 95% of draws"
    )


class SetRow(Row):
    """Cliff's delta of H-Neurons, and of sets of as many regular neurons."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    neurons: str = Field(description=_SET)
    n: int = Field(description="samples")
    units: int = Field(description="independent units, left out one at a time in intervals")
    size: int = Field(description="neurons of a set")
    delta: Estimate = Field(
        description="mean delta of the neurons; of regular sets, mean and 95% of draws"
    )
    magnitude: Estimate = Field(
        description="mean |delta|, as regular neurons of both signs cancel in delta; intervals as "
        "for delta"
    )
    share: float | None = Field(
        description="share of draws with a magnitude as large as that of the H-Neurons; empty for h"
    )
    held_out: Estimate | None = Field(
        description="mean delta of the neurons of each fold's probe, on the fold that did not "
        "select them, or of neurons that match those; empty for random"
    )


class QuantileRow(Row):
    """Distribution of CETT over the samples of one label and the neurons of a set."""

    precision: str = Field(description="the precision at which the neurons are evaluated")
    neurons: str = Field(description=_SET)
    label: str = Field(description="right or hallucinated answers")
    n: int = Field(description="samples with this label")
    mean: float = Field(description=f"mean of relative CETT: {_RELATIVE}")
    q05: float = Field(description="5% quantile of relative CETT, over samples and neurons")
    q25: float = Field(description="25% quantile")
    q50: float = Field(description="median")
    q75: float = Field(description="75% quantile")
    q95: float = Field(description="95% quantile")


TABLES: Tables = {
    "density": (DensityRow, ("precision", "layer")),
    "placement": (PlacementRow, ("precision",)),
    "effects": (EffectRow, ("precision", "layer", "expert", "index")),
    "sets": (SetRow, ("precision", "neurons")),
    "quantiles": (QuantileRow, ("precision", "neurons", "label")),
}
