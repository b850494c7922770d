"""Columns of the tables of detection."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.bootstrap import Estimate


class Detection(Row):
    """Whether the probe identified on FP16 still detects hallucination at this precision."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    compute: str = Field(description="the type of the arithmetic")
    n: int = Field(description="test questions, half of them hallucinated")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    neurons: int = Field(description="neurons with a non-zero weight in the FP16 probe")
    h_neurons: int = Field(description="neurons with a positive weight: the H-Neurons")
    per_mille: float = Field(description="non-zero neurons per 1,000 of the model's")
    auroc: Estimate = Field(description="AUROC of the frozen FP16 probe at this precision")
    auroc_change: Estimate = Field(description="paired difference from its AUROC at FP16")
    auroc_h: Estimate = Field(description="AUROC of the H-Neurons' weights alone")
    accuracy: Estimate = Field(
        description="accuracy at the threshold set on FP16 calibration questions"
    )
    f1: Estimate = Field(description="F1 of `hallucinated` at that threshold")
    accuracy_recalibrated: Estimate = Field(
        description="accuracy at the threshold transferred without labels, to the same quantile of "
        "the calibration scores"
    )
    f1_recalibrated: Estimate = Field(description="F1 at the transferred threshold")
    flips: Estimate = Field(description="share of decisions that differ from FP16's")
    auroc_again: Estimate = Field(description="AUROC of neurons re-identified at this precision")
    neurons_again: int = Field(description="re-identified neurons with a non-zero weight")
    common: int = Field(description="neurons in both sets")
    jaccard: float = Field(description="common ÷ union of the two sets")
    jaccard_chance: float = Field(description="expected value for two random sets of these sizes")
    overlap_p: float = Field(description="hypergeometric P(at least as many in common by chance)")


class Alarm(Row):
    """Held-out false-alarm and detection rates of thresholds that promise a false-alarm rate."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    domain: str = Field(
        description="`all` questions, or a relation with enough calibration answers"
    )
    promised: float = Field(
        description="the false-alarm rate that the threshold is set for: a right answer about a "
        "new entity is flagged with at most this probability, on average over calibrations, if the "
        "splits are exchangeable (they balance relations, and place large groups of entities first)"
    )
    needed: int = Field(
        description="entities that this needs; a domain with fewer calibrated entities has no row"
    )
    calibrated: int = Field(
        description="entities with right calibration answers, which set the threshold"
    )
    n: int = Field(description="right answers of the test split")
    entities: int = Field(
        description="entities of these answers; entities that share a question count as one"
    )
    hallucinated: int = Field(description="hallucinated answers of the test split")
    hallucinated_entities: int = Field(description="entities of these answers")
    seed: int = Field(description="seed of the study; intervals of this table are exact")
    threshold: float = Field(description="threshold set on calibration answers at FP16")
    false_alarms: Estimate = Field(
        description="share of right answers flagged at FP16's threshold. In all rates of this "
        "table every entity has the same weight, as in the promise, and intervals are "
        "Clopper-Pearson intervals with one trial per entity"
    )
    detected: Estimate = Field(
        description="share of hallucinated answers flagged at this threshold"
    )
    threshold_recalibrated: float = Field(
        description="the FP16 threshold transferred without labels, to the same quantile of the "
        "calibration scores at this precision"
    )
    false_alarms_recalibrated: Estimate = Field(
        description="share of right answers flagged at this threshold"
    )
    detected_recalibrated: Estimate = Field(
        description="share of hallucinated answers flagged at this threshold"
    )
    threshold_anew: float = Field(
        description="recalibrated with labels, on the same calibration answers at this precision: "
        "the promise holds at this precision. A bundle for this precision has it"
    )
    false_alarms_anew: Estimate = Field(
        description="share of right answers flagged at this threshold"
    )
    detected_anew: Estimate = Field(
        description="share of hallucinated answers flagged at this threshold"
    )


class ControlRow(Row):
    """Baselines of the probe's AUROC."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    control: str = Field(
        description="random: random neurons, as many as the probe has; matched: neurons of the "
        "same layers and of similar magnitude (`magnitude` in the fidelity table says how "
        "similar); entropy, length, relation: features without neurons"
    )
    n: int = Field(description="test questions")
    entities: int = Field(description=ENTITIES)
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    seed: int = Field(description="seed of draws and bootstrap")
    auroc: Estimate = Field(
        description="AUROC of a probe fitted on the train split at this precision; with several "
        "draws, their mean and the range of 95% of them"
    )
    probe_minus_control: Estimate = Field(description="paired difference: frozen probe − control")


class Fidelity(Row):
    """What quantization does to the contributions |h_i|·‖W_down[:, i]‖ of neurons.

    A precision changes the probe's neurons more or less than similar neurons if the probe's value
    lies outside the interval of `matched`.
    """

    precision: str = Field(description="the precision at which the checkpoint runs")
    group: str = Field(
        description="probe; h_neurons, a subset of the probe; matched: draws of neurons of the "
        "same layers and similar magnitudes, with the mean over draws and the range of 95% of "
        "them; any: 1,000 neurons of the whole model, independent of the probe. Intervals of all "
        "groups except `matched` are over questions"
    )
    neurons: int = Field(description="neurons in the group, or in each draw")
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    magnitude: float = Field(
        description="geometric mean of their contributions at FP16 on training questions, relative "
        "to the probe's"
    )
    n: int = Field(description="test questions")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of draws and bootstrap")
    correlation: Estimate = Field(
        description="Pearson correlation with FP16 over questions, mean over neurons that vary"
    )
    relative_error: Estimate = Field(
        description="Σ|difference| ÷ Σ FP16 over questions, mean over neurons that are not silent"
    )
    rank_change: Estimate = Field(
        description="mean |change of rank| within the layer, relative to its width"
    )


class ModelRow(Row):
    """What runs, how large it is, and how much its outputs changed."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    modules: str = Field(
        description="projections inside the layers: count × class, or name in a GGUF file"
    )
    storage: str = Field(
        description="storage type of their weights, or the number of projections of each type"
    )
    bits_per_weight: float = Field(
        description="bits per weight of these projections in memory, scales included; mean over "
        "all weights"
    )
    weights_mib: float = Field(
        description="size of all weights as shipped, unpacked weights in FP16"
    )
    n: int = Field(description="held-out texts")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    perplexity: Estimate = Field(description="on held-out text")
    kl: Estimate = Field(
        description="mean KL(FP16 ‖ this precision) per token on held-out text, in nats"
    )


class AlignmentRow(Row):
    """Whether neuron i is still neuron i of the checkpoint, by the weights that were loaded."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    layers: str = Field(
        description="identical: equal up to the error of the format; rescaled: contributions are "
        "comparable and h is not; permuted: read at their new indices. Anything else is rejected"
    )
    bits: float = Field(
        description="bits per stored FFN weight, scales included: the smallest of all layers"
    )
    error: float = Field(
        description="relative error of a neuron's dequantized weights after undoing a rescaling: "
        "median over neurons, then over layers"
    )
    error_worst: float = Field(description="the same in the layer with the largest error")
    worst: int = Field(description="the index of that layer")
    found: float = Field(description="share of the model's neurons with a matching direction")
    probe: int = Field(description="neurons in the FP16 probe")
    probe_found: int = Field(description="those of them with a matching direction")
    h_low: float = Field(
        description="h at this precision ÷ h at FP16, by the weights: 5% of neurons are below"
    )
    h_high: float = Field(description="5% of neurons are above")


TABLES: Tables = {
    "detection": (Detection, ("precision",)),
    "alarms": (Alarm, ("precision", "domain", "promised")),
    "controls": (ControlRow, ("precision", "control")),
    "fidelity": (Fidelity, ("precision", "group")),
    "model": (ModelRow, ("precision",)),
    "mapping": (AlignmentRow, ("precision",)),
}
