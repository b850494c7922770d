"""Columns of the tables of detection."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.bootstrap import Estimate


class Detection(Row):
    """Whether the probe found on FP16 still reads at this precision."""

    precision: str = Field(description="how the checkpoint is run")
    compute: str = Field(description="what the arithmetic runs in")
    n: int = Field(description="test questions, half of them hallucinated")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    neurons: int = Field(description="neurons with a non-zero weight in the FP16 probe")
    h_neurons: int = Field(description="those with a positive weight: the H-Neurons")
    per_mille: float = Field(description="non-zero neurons per 1,000 of the model's")
    auroc: Estimate = Field(description="AUROC of the FP16 probe, frozen, read here")
    auroc_change: Estimate = Field(description="paired difference from its AUROC at FP16")
    auroc_h: Estimate = Field(description="the same from the H-Neurons' weights alone")
    accuracy: Estimate = Field(description="at the threshold set on FP16 calibration questions")
    f1: Estimate = Field(description="F1 of `hallucinated` at that threshold")
    accuracy_recalibrated: Estimate = Field(
        description="threshold moved, without labels, to the same quantile of calibration scores"
    )
    f1_recalibrated: Estimate = Field(description="F1 at the moved threshold")
    flips: Estimate = Field(description="share of decisions that differ from FP16's")
    auroc_again: Estimate = Field(description="AUROC of neurons identified afresh here")
    neurons_again: int = Field(description="neurons with a non-zero weight, identified afresh")
    common: int = Field(description="neurons that both sets have")
    jaccard: float = Field(description="common ÷ union of the two sets")
    jaccard_chance: float = Field(description="what two random sets of these sizes would have")
    overlap_p: float = Field(description="hypergeometric P(this many in common by chance)")


class Alarm(Row):
    """What a threshold that promises a false-alarm rate does on held-out answers."""

    precision: str = Field(description="how the checkpoint is run")
    domain: str = Field(
        description="`all` questions, or those of a relation whose calibration answers suffice"
    )
    promised: float = Field(
        description="the false-alarm rate that thresholds are set for: a right answer about a new "
        "entity is flagged with at most this probability, on average over calibrations, as far as "
        "the sides of the split are alike (it balances relations, and places large groups of "
        "entities first)"
    )
    needed: int = Field(
        description="entities that this takes; a domain with fewer calibrated has no row"
    )
    calibrated: int = Field(description="entities whose right calibration answers set them")
    n: int = Field(description="right answers of the test split")
    entities: int = Field(
        description="entities that these are about; in this table, whatever questions link counts "
        "as one"
    )
    hallucinated: int = Field(description="hallucinated answers of the test split")
    hallucinated_entities: int = Field(description="entities that these are about")
    seed: int = Field(description="seed of the study; no interval here is drawn")
    threshold: float = Field(description="set on calibration answers at FP16")
    false_alarms: Estimate = Field(
        description="share of right answers flagged at FP16's threshold. In this and all rates "
        "here every entity weighs the same, as in the promise, and intervals are Clopper and "
        "Pearson's for as many trials as there are entities"
    )
    detected: Estimate = Field(description="hallucinated answers flagged at it")
    threshold_recalibrated: float = Field(
        description="that threshold moved, without labels, to the same quantile of the calibration "
        "scores here"
    )
    false_alarms_recalibrated: Estimate = Field(description="right answers flagged at it")
    detected_recalibrated: Estimate = Field(description="hallucinated answers flagged at it")
    threshold_anew: float = Field(
        description="set anew on the same calibration answers, with their labels, by scores here: "
        "the promise holds here too. What a bundle for this precision has"
    )
    false_alarms_anew: Estimate = Field(description="right answers flagged at it")
    detected_anew: Estimate = Field(description="hallucinated answers flagged at it")


class ControlRow(Row):
    """What the probe's AUROC must be compared with."""

    precision: str = Field(description="how the checkpoint is run")
    control: str = Field(
        description="random: as many neurons as the probe has; matched: of the same layer, and of "
        "its magnitude as far as the layer has them (how far: `magnitude` of the fidelity table); "
        "entropy, length, relation: no neurons"
    )
    n: int = Field(description="test questions")
    entities: int = Field(description=ENTITIES)
    draws: int = Field(description="draws of neurons; 1 where nothing is drawn")
    seed: int = Field(description="seed of draws and bootstrap")
    auroc: Estimate = Field(
        description="fitted on the train split here (mean over draws; its interval holds 95% of "
        "draws where there are several)"
    )
    probe_minus_control: Estimate = Field(description="paired difference: frozen probe − control")


class Fidelity(Row):
    """What quantization does to the contributions |h_i|·‖W_down[:, i]‖ of neurons.

    A precision changes the probe's neurons unlike others of their kind where the probe's value lies
    outside the interval of `matched`.
    """

    precision: str = Field(description="how the checkpoint is run")
    group: str = Field(
        description="probe; h_neurons, which are part of it; matched: draws of as many neurons as "
        "the probe has, of the same layers and magnitudes; any: 1,000 of the whole model, whatever "
        "the probe. `matched` has the mean over draws and the interval that holds 95% of them: the "
        "probe is unusual where its value lies outside. The others have intervals over questions"
    )
    neurons: int = Field(description="neurons in the group; in each draw")
    draws: int = Field(description="draws of neurons; 1 where nothing is drawn")
    magnitude: float = Field(
        description="geometric mean of their contributions at FP16 on training questions, as a "
        "multiple of the probe's"
    )
    n: int = Field(description="test questions")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of draws and bootstrap")
    correlation: Estimate = Field(
        description="Pearson with FP16 over questions, mean over the neurons that vary"
    )
    relative_error: Estimate = Field(
        description="Σ|difference| ÷ Σ FP16 over questions, mean over the neurons not silent there"
    )
    rank_change: Estimate = Field(
        description="mean |change of rank| within the layer, as a share of its width"
    )


class ModelRow(Row):
    """What runs, how large it is, and how far its outputs moved."""

    precision: str = Field(description="how the checkpoint is run")
    modules: str = Field(
        description="projections inside the layers: count × class, or place in a GGUF file"
    )
    storage: str = Field(
        description="type that their weights are stored in: one, or how many of each got which"
    )
    bits_per_weight: float = Field(
        description="bits that a weight of these takes in memory here, with its scales; mean over "
        "all weights"
    )
    weights_mib: float = Field(description="all weights as shipped, what is not packed in FP16")
    n: int = Field(description="held-out texts")
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    perplexity: Estimate = Field(description="on held-out text")
    kl: Estimate = Field(description="mean KL(FP16 ‖ this) a token on held-out text, in nats")


class AlignmentRow(Row):
    """Whether neuron i still is neuron i, told from the weights that were really loaded."""

    precision: str = Field(description="how the checkpoint is run")
    layers: str = Field(
        description="identical: up to the error of the format; rescaled: contributions compare, h "
        "does not; permuted: read at their new places. Anything else is refused"
    )
    bits: float = Field(description="of a stored FFN weight, scales included: the fewest")
    error: float = Field(
        description="relative error of a neuron's dequantized weights, rescaling undone: median "
        "over neurons, then over layers"
    )
    error_worst: float = Field(description="the same in the layer where it is largest")
    worst: int = Field(description="which layer that is")
    found: float = Field(description="share of the model's neurons whose directions are kept")
    probe: int = Field(description="neurons in the FP16 probe")
    probe_found: int = Field(description="those of them whose directions are kept")
    h_low: float = Field(description="h here over h at FP16, by the weights: 5% of neurons below")
    h_high: float = Field(description="5% of neurons above")


TABLES: Tables = {
    "detection": (Detection, ("precision",)),
    "alarms": (Alarm, ("precision", "domain", "promised")),
    "controls": (ControlRow, ("precision", "control")),
    "fidelity": (Fidelity, ("precision", "group")),
    "model": (ModelRow, ("precision",)),
    "mapping": (AlignmentRow, ("precision",)),
}
