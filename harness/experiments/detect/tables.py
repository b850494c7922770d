"""Columns of the tables of detection."""

from pydantic import Field

from harness.tables.schema import UNITS, Row, Tables
from hq.stats.intervals import Estimate

MARGIN = 0.02
"""The largest change of an AUROC that counts as negligible."""


class Design(Row):
    """What was compared, and whether the texts alone predict the labels."""

    balance: str = Field(
        description="answer: a right and a hallucinated response are paired if relation and given "
        "answer agree; text: if relation and fold agree and text-only classifiers score them alike"
    )
    n: int = Field(description="samples, half of them hallucinated")
    answers: int = Field(description="different given answers")
    relations: int = Field(description="relations of the questions")
    units: int = Field(description=UNITS)
    effective_units: float = Field(
        description="(Σ m)² ÷ Σ m² for units of m samples: as many units of equal size"
    )
    largest_unit: float = Field(description="share of the samples in the largest unit")
    folds: int = Field(description="outer folds, of whole units")
    seed: int = Field(description="seed of the study: questions, folds and draws")
    text_answer: Estimate = Field(
        description="AUROC of a TF-IDF classifier that sees the words of the answer only, on the "
        "folds of the probe"
    )
    text_question: Estimate = Field(description="the same for the words of the question")
    text_both: Estimate = Field(description="the same for the words of both")
    text_spelling: Estimate = Field(
        description="the same for one to three characters within words, of both"
    )
    warning: str = Field(
        description="text-only AUROCs that differ from 0.5 by more than 0.05: there, the labels "
        "can be predicted without the model, and only the probe's lead over text counts (table "
        "controls, columns probe_minus_control and probe_adds)"
    )


class Detection(Row):
    """Whether the probe identified on FP16 still detects hallucination at this precision.

    Every sample is scored by a probe that was identified on other folds.
    """

    precision: str = Field(description="the precision at which the checkpoint runs")
    compute: str = Field(
        description="the type of the arithmetic; at a GGUF precision with a suffix, also how "
        "attention was computed (without a suffix: in float32, without flash attention)"
    )
    n: int = Field(description="samples, half of them hallucinated")
    units: int = Field(description=UNITS)
    seed: int = Field(description="seed of the study")
    neurons: int = Field(
        description="neurons with a non-zero weight in the FP16 probe that is fitted on all samples"
    )
    h_neurons: int = Field(description="neurons with a positive weight: the H-Neurons")
    per_mille: float = Field(description="non-zero neurons per 1,000 of the model's")
    auroc: Estimate = Field(
        description="AUROC of the frozen FP16 probes at this precision: pairs of a right and a "
        "hallucinated answer of one fold, which its probe has not seen"
    )
    auroc_change: Estimate = Field(description="paired difference from the AUROC at FP16")
    detectable: float | None = Field(
        description="the smallest difference from FP16 that these samples show with 80% power; of "
        "a precision with several makings, with its column auroc_change of table spread"
    )
    verdict: str = Field(
        description="preserved: the 90% interval of the change lies within ±0.02 (TOST); changed: "
        "the 95% interval excludes 0; else not decided at this n. Of a precision with several "
        "makings, the change is that of table spread, while all other columns are of making 0. "
        "A checkpoint of a calibrated precision (GPTQ, AWQ) without makings speaks only for itself"
    )
    auroc_h: Estimate = Field(description="AUROC of the H-Neurons' weights alone")
    accuracy: Estimate = Field(
        description="accuracy at FP16's threshold, which maximises sensitivity + specificity − 1 "
        "on other folds"
    )
    f1: Estimate = Field(description="F1 of `hallucinated` at that threshold")
    accuracy_transferred: Estimate = Field(
        description="accuracy at the threshold transferred without labels: it keeps its quantile "
        "among the scores of the answers that it is used on, at FP16 and at this precision"
    )
    f1_transferred: Estimate = Field(description="F1 at the transferred threshold")
    flips: Estimate = Field(description="share of decisions that differ from FP16's")
    auroc_again: Estimate = Field(
        description="AUROC of probes that are identified and cross-fitted at this precision"
    )
    neurons_again: int = Field(description="re-identified neurons with a non-zero weight")
    common: int = Field(description="neurons in both sets")
    jaccard: float = Field(description="common ÷ union of the two sets")
    jaccard_chance: float = Field(description="expected value for two random sets of these sizes")
    overlap_p: float = Field(description="hypergeometric P(at least as many in common by chance)")


class MakingRow(Row):
    """The AUROC at each making: each is a checkpoint that was calibrated on other texts."""

    precision: str = Field(description="the precision at which the checkpoints run")
    making: int = Field(
        description="0: the checkpoint of all other tables, calibrated on the first texts of the "
        "reserve; a further making is calibrated on a random draw of as many texts, with the seed "
        "(seed of the study, making)"
    )
    n: int = Field(description="samples, half of them hallucinated")
    units: int = Field(description=UNITS)
    auroc: Estimate = Field(description="AUROC of the frozen FP16 probes at this making")
    auroc_change: Estimate = Field(
        description="paired difference from the AUROC at FP16; the interval is over units, for "
        "this checkpoint only"
    )
    perplexity: Estimate = Field(description="on held-out text")
    kl: Estimate = Field(
        description="mean KL(FP16 ‖ this making) per token on held-out text, in nats"
    )


class SpreadRow(Row):
    """How much the makings of a precision differ, and what holds for all that could be made."""

    precision: str = Field(description="the precision at which the checkpoints run")
    makings: int = Field(description="checkpoints, in table makings")
    n: int = Field(description="samples, half of them hallucinated")
    units: int = Field(description=UNITS)
    auroc_change: Estimate = Field(
        description="mean over makings of the paired difference from the AUROC at FP16; the "
        "interval is for other makings and other units (Obuchowski & Rockette 1995)"
    )
    deviation: float = Field(
        description="standard deviation of the difference between makings, on these samples"
    )
    share: float | None = Field(
        description="share of the variance of the difference at one making that is between "
        "makings; the rest is between units. Empty if nothing differs"
    )


class Selection(Row):
    """How neurons were selected at this precision, and how stable the selection is."""

    precision: str = Field(description="the precision at which neurons are identified")
    rule: str = Field(description="how C is chosen, by repeated grouped cross-validation")
    C: float = Field(description="the chosen C, for the fit on all samples")
    cv_auroc: float = Field(
        description="its cross-validated AUROC within the samples, from which C was chosen; the "
        "table detection has the AUROC that no choice has seen"
    )
    neurons: int = Field(description="neurons with a non-zero weight")
    fewest: int = Field(description="of the probes of the folds, the fewest neurons")
    most: int = Field(description="the most neurons of them")
    in_all_folds: int = Field(description="neurons of the set that the probes of all folds have")
    fold_jaccard: float = Field(
        description="common ÷ union of the neurons of two folds' probes, mean over pairs of folds"
    )
    subsamples: int = Field(
        description="fits on random halves of the units (complementary pairs), at the same penalty"
    )
    selected: float = Field(description="neurons that a half selects, on average")
    stable: int = Field(description="neurons that at least 60% of the halves select")
    expected_false: float = Field(
        description="bound on the expected number of stable neurons that are selected no more "
        "often than an average neuron: selected² ÷ (0.2·p) (Meinshausen & Bühlmann 2010)"
    )


class Alarm(Row):
    """False-alarm and detection rates of thresholds that promise a false-alarm rate.

    The answers of a fold are flagged at thresholds that are set on right answers of other folds.
    """

    precision: str = Field(description="the precision at which the checkpoint runs")
    domain: str = Field(description="`all` questions, or a relation with enough right answers")
    promised: float = Field(
        description="the false-alarm rate that the threshold is set for (cross-conformal: a right "
        "answer in a new unit is flagged with about this probability, on average over "
        "calibrations; unlike for split conformal thresholds, this is no strict bound)"
    )
    needed: int = Field(
        description="units that this needs; a domain with fewer calibrated units has no row"
    )
    calibrated: int = Field(
        description="units with right answers outside of a fold, which set its threshold; the "
        "fewest over folds"
    )
    n: int = Field(description="right answers")
    units: int = Field(description="units of these answers")
    hallucinated: int = Field(description="hallucinated answers")
    hallucinated_units: int = Field(description="units of these answers")
    threshold: float = Field(
        description="threshold for use at FP16, set on the out-of-fold scores of all right answers"
    )
    false_alarms: Estimate = Field(
        description="share of right answers flagged at FP16's thresholds. In all rates of this "
        "table every unit has the same weight, as in the promise, and intervals are those of Korn "
        "& Graubard for proportions"
    )
    detected: Estimate = Field(
        description="share of hallucinated answers flagged at these thresholds"
    )
    false_alarms_transferred: Estimate = Field(
        description="share of right answers flagged at FP16's thresholds transferred without "
        "labels: a threshold keeps its quantile among the scores of the answers that it is used on"
    )
    detected_transferred: Estimate = Field(
        description="share of hallucinated answers flagged at these thresholds"
    )
    threshold_recalibrated: float = Field(
        description="threshold for use at this precision, recalibrated with labels on its own "
        "out-of-fold scores, which are centred by probe; a bundle for this precision has it"
    )
    false_alarms_recalibrated: Estimate = Field(
        description="share of right answers flagged at thresholds recalibrated with labels"
    )
    detected_recalibrated: Estimate = Field(
        description="share of hallucinated answers flagged at these thresholds"
    )


class ControlRow(Row):
    """Baselines of the probe's AUROC, fitted and scored on the folds of the probe."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    control: str = Field(
        description="random: random neurons, as many as the fold's probe has; matched: neurons of "
        "the same layers and of similar magnitude (`magnitude` in the fidelity table says how "
        "similar); entropy, length, relation: features without neurons; text-answer, "
        "text-question, text-both: TF-IDF of words; text-spelling: TF-IDF of characters of both"
    )
    n: int = Field(description="samples")
    units: int = Field(description=UNITS)
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    seed: int = Field(description="seed of the draws")
    auroc: Estimate = Field(
        description="AUROC of a probe fitted on other folds at this precision; with several draws, "
        "their mean and the range of 95% of them"
    )
    probe_minus_control: Estimate = Field(description="paired difference: frozen probe − control")
    probe_adds: Estimate | None = Field(
        description="paired difference: a logistic regression on the control and the frozen "
        "probe's score − one on the control alone; empty for draws of neurons"
    )


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
        "groups except `matched` are over units. The probe is the one that is fitted on all samples"
    )
    neurons: int = Field(description="neurons in the group, or in each draw")
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    magnitude: float = Field(
        description="geometric mean of their contributions at FP16, relative to the probe's"
    )
    n: int = Field(description="samples")
    units: int = Field(description=UNITS)
    seed: int = Field(description="seed of the draws")
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
    n: int = Field(description="held-out texts, of questions that are never samples")
    units: int = Field(description="independent groups of these texts")
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
    "design": (Design, ("balance",)),
    "detection": (Detection, ("precision",)),
    "makings": (MakingRow, ("precision", "making")),
    "spread": (SpreadRow, ("precision", "makings")),
    "selection": (Selection, ("precision",)),
    "alarms": (Alarm, ("precision", "domain", "promised")),
    "controls": (ControlRow, ("precision", "control")),
    "fidelity": (Fidelity, ("precision", "group")),
    "model": (ModelRow, ("precision",)),
    "mapping": (AlignmentRow, ("precision",)),
}
