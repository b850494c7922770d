"""Every column of every result table, documented in one place.

An estimate becomes three columns: NAME, NAME_low and NAME_high, its 95% interval. Intervals are
percentile bootstraps unless a column says otherwise. They resample entities, not questions: what a
model knows of one entity is not independent from question to question.
"""

from pydantic import BaseModel, ConfigDict, Field

from hq.stats.bootstrap import Estimate

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
    entities: int = Field(description=_ENTITIES)
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


class Transfer(Row):
    """Whether the probe tells compliance from resistance in a scenario that it was not found on."""

    precision: str = Field(description="how the checkpoint is run")
    scenario: str = Field(description="scenario, and kind of trial where it has several")
    n: int = Field(description="responses of FP16 that complied or resisted, all traced here")
    entities: int = Field(description=_ENTITIES)
    complied: int = Field(description="those that complied")
    draws: int = Field(description="draws of matched neurons")
    seed: int = Field(description="seed of draws, bootstrap and permutations")
    auroc: Estimate = Field(description="AUROC of the probe found on FP16 for `complied`, frozen")
    auroc_matched: Estimate = Field(
        description="the same of probes on neurons of the same layers and magnitudes, fitted where "
        "the probe was: mean over draws, and the interval that holds 95% of them"
    )
    difference: Estimate = Field(description="paired difference: probe − mean of the draws")
    p_labels: float = Field(
        description="P(AUROC as large) where labels are permuted, on one response an entity; "
        "Holm-corrected over scenarios"
    )
    p_draws: float = Field(
        description="share of matched draws that reach the probe's AUROC, Holm-corrected too"
    )


class Rate(Row):
    """How often the model over-complies while neurons are scaled by α. Greedy, the same trials."""

    precision: str = Field(description="how the checkpoint is run")
    scenario: str = Field(description="scenario, and kind of trial where it has several")
    neurons: str = Field(
        description="what is scaled: h, the H-Neurons; matched: draws of as many neurons of the "
        "same layers and magnitudes"
    )
    alpha: float = Field(description="what their activations are multiplied by; 1: unchanged")
    n: int = Field(description="trials")
    entities: int = Field(description=_ENTITIES)
    draws: int = Field(description="draws of neurons; 1 where nothing is drawn")
    seed: int = Field(description="seed of draws and bootstrap")
    rate: Estimate = Field(
        description="share of all trials that complied; of `matched` the mean over draws, and the "
        "interval that holds 95% of them"
    )
    unclear: float = Field(description="share without a verdict, which counts as not complied")
    changed: float = Field(description="share of responses that differ from those at α = 1")
    tokens: float = Field(description="mean length of a response")
    reduction: Estimate | None = Field(
        description="the article's ΔOC: (rate at 1 − rate at α) ÷ rate at 1, in %; empty for "
        "`matched`, and where nothing complied at α = 1"
    )


class Slope(Row):
    """The dose-response of over-compliance, beside matched neurons, and beside FP16."""

    precision: str = Field(description="how the checkpoint is run")
    scenario: str = Field(description="scenario, and kind of trial where it has several")
    neurons: int = Field(description="H-Neurons that are scaled")
    n: int = Field(description="trials")
    entities: int = Field(description=_ENTITIES)
    draws: int = Field(description="draws of matched neurons")
    seed: int = Field(description="seed of draws and bootstrap")
    slope: Estimate = Field(description="least-squares slope of the rate over α")
    r_squared: float = Field(description="of that line; 0 where the rate never moves")
    monotonicity: float = Field(description="Kendall's τ-b of rate and α; 0 where it never moves")
    slope_shared: float = Field(description="slope over those α at which matched draws are scaled")
    slope_matched: Estimate = Field(
        description="slopes of matched draws over them: mean, and 95% of them"
    )
    p_matched: float = Field(
        description="two-sided P(a matched draw's slope is as far from their mean as "
        "`slope_shared`); not below 1 ÷ (draws + 1)"
    )
    change: Estimate = Field(description="slope − slope at FP16, on the same resampled trials")
    change_low90: float = Field(description="lower end of its 90% interval, which TOST looks at")
    change_high90: float = Field(description="upper end")
    margin: float = Field(description="what two slopes may differ by and count as the same")
    tost_p: float = Field(description="P of the two one-sided tests of equivalence")
    verdict: str = Field(
        description="preserved: the 90% interval of `change` lies within ± margin, as it does too "
        "for two slopes of nothing; changed: its 95% interval leaves 0 out; else not decided at "
        "this n"
    )
    n_needed: int | None = Field(
        description="entities that would decide it, if the difference is what it seems"
    )


class Cost(Row):
    """What scaling the H-Neurons costs."""

    precision: str = Field(description="how the checkpoint is run")
    alpha: float = Field(description="what their activations are multiplied by")
    n: int = Field(description="held-out questions of the study")
    entities: int = Field(description=_ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    accuracy: Estimate = Field(description="share of them answered rightly, greedy")
    choice_accuracy: Estimate = Field(
        description="share of four-way choices (MMLU's form) whose letter is likeliest"
    )
    perplexity: Estimate = Field(description="on held-out text")
    tokens: float = Field(description="mean length of a response over all scenarios")
    refusals: float = Field(description="share of responses over all scenarios that refuse")


class Survival(Row):
    """How well FP16 alone tells which neurons a precision hurts."""

    precision: str = Field(description="how the checkpoint is run")
    target: str = Field(
        description="by what a neuron is hurt: error, the relative error of its contribution; "
        "rank, how far its rank within the layer moves"
    )
    layers: int = Field(description="layers, each predicted from others: what intervals resample")
    n: int = Field(description="neurons that have an error here")
    hurt: int = Field(description="those that are hurt: the worst quarter of each layer")
    texts: int = Field(description="held-out texts that errors are measured on")
    seed: int = Field(description="seed of the bootstrap")
    auroc: Estimate = Field(
        description="AUROC of the prediction, learnt from other layers at the other precisions"
    )
    auroc_small: Estimate = Field(
        description="AUROC of a rule without a fit: the smaller the contribution, the more hurt"
    )
    gain: Estimate = Field(description="paired difference: prediction − that rule")
    auroc_loud: Estimate = Field(
        description="AUROC of the prediction among neurons above their layer's median magnitude"
    )
    probe: int = Field(description="neurons in the FP16 probe that have an error here")
    probe_hurt: int = Field(description="those of them that are hurt")
    probe_auroc: Estimate | None = Field(
        description="AUROC of the prediction among them, resampling neurons; empty where fewer "
        "than two are hurt, or all but one"
    )


class OfStatistic(Row):
    """What each FP16 statistic of a neuron says of its survival."""

    target: str = Field(description="by what a neuron is hurt; see survival")
    statistic: str = Field(description="what is known at FP16, by its place within the layer")
    meaning: str = Field(description="what it is")
    weight: float = Field(
        description="log odds of being hurt for each standard deviation, all layers and precisions"
    )
    auroc: float = Field(description="AUROC of the statistic alone: mean over precisions")
    auroc_least: float = Field(description="at the precision where it is least")
    auroc_most: float = Field(description="at that where it is most")


Tables = dict[str, tuple[type[Row], tuple[str, ...]]]
"""Table name → its row type, and the columns that tell rows apart."""

KINDS: dict[str, Tables] = {
    "study": {
        "detection": (Detection, ("precision",)),
        "alarms": (Alarm, ("precision", "domain", "promised")),
        "controls": (ControlRow, ("precision", "control")),
        "fidelity": (Fidelity, ("precision", "group")),
        "model": (ModelRow, ("precision",)),
        "mapping": (AlignmentRow, ("precision",)),
    },
    "sweep": {
        "transfer": (Transfer, ("precision", "scenario")),
        "rates": (Rate, ("precision", "scenario", "neurons", "alpha")),
        "slopes": (Slope, ("precision", "scenario")),
        "costs": (Cost, ("precision", "alpha")),
    },
    "survival": {
        "survival": (Survival, ("precision", "target")),
        "statistics": (OfStatistic, ("target", "statistic")),
    },
}
"""Kind of run → its tables."""
