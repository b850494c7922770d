"""Every column of every result table, documented in one place.

An estimate becomes three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are
percentile bootstraps unless a column says otherwise. They resample entities, not questions: what a
model knows of one entity is not independent from question to question.
"""

from pydantic import BaseModel, ConfigDict, Field

from hq.stats import Estimate

_ENTITIES = (
    "groups of them that are independent, as no two share an entity: what intervals resample"
)


class Row(BaseModel):
    """A row of a table; `key` fields tell rows apart."""

    model_config = ConfigDict(frozen=True)


class Detection(Row):
    """Whether the probe found on FP16 still reads at this precision."""

    precision: str = Field(description="how the checkpoint is run")
    compute: str = Field(description="what the arithmetic runs in")
    n: int = Field(description="test questions, half of them hallucinated")
    entities: int = Field(description=_ENTITIES)
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


class Control(Row):
    """What the probe's AUROC must be compared with."""

    precision: str = Field(description="how the checkpoint is run")
    control: str = Field(
        description="random: as many neurons as the probe has; matched: of the same layer, and of "
        "its magnitude as far as the layer has them (how far: `magnitude` of the fidelity table); "
        "entropy, length, relation: no neurons"
    )
    n: int = Field(description="test questions")
    entities: int = Field(description=_ENTITIES)
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
    entities: int = Field(description=_ENTITIES)
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


class Model(Row):
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
    entities: int = Field(description=_ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    perplexity: Estimate = Field(description="on held-out text")
    kl: Estimate = Field(description="mean KL(FP16 ‖ this) a token on held-out text, in nats")


TABLES: dict[str, tuple[type[Row], tuple[str, ...]]] = {
    "detection": (Detection, ("precision",)),
    "controls": (Control, ("precision", "control")),
    "fidelity": (Fidelity, ("precision", "group")),
    "model": (Model, ("precision",)),
}
"""Table name → its row type, and the columns that tell rows apart."""
