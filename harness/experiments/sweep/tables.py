"""Columns of the tables of α sweeps."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.intervals import Estimate

_JUDGE = (
    "what decides whether a response complied: rules; rules: not measurable, if their agreement "
    "with a reader is not above that of a constant outcome; rules: not validated, if no reader has "
    "labelled such responses; llm:MODEL"
)
_MIXED = (
    "those on questions to which FP16 gave right and wrong answers when it was sampled; they are "
    "chosen first, and the same at every precision"
)
_DETECTABLE = "smallest true value whose 95% interval excludes 0 with 80% power at this n"


class Transfer(Row):
    """Whether the probe separates compliance from resistance in another scenario."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    scenario: str = Field(description="scenario, and kind of trial if it has several")
    n: int = Field(
        description="responses of FP16 that complied or resisted, traced at this precision"
    )
    entities: int = Field(description=ENTITIES)
    complied: int = Field(description="those that complied")
    draws: int = Field(description="draws of matched neurons")
    seed: int = Field(description="seed of draws and permutations")
    auroc: Estimate = Field(description="AUROC of the frozen FP16 probe for `complied`")
    auroc_matched: Estimate = Field(
        description="AUROC of probes on neurons of the same layers and magnitudes, fitted on the "
        "same samples: mean over draws, and the range of 95% of them"
    )
    difference: Estimate = Field(description="paired difference: probe − mean of the draws")
    p_labels: float = Field(
        description="P(AUROC at least as large) under permuted labels, with one response per "
        "entity; Holm-corrected over scenarios"
    )
    p_draws: float = Field(
        description="share of matched draws that reach the probe's AUROC; Holm-corrected"
    )


class Rate(Row):
    """Rate of over-compliance while neurons are scaled by α; greedy, on the same trials."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    scenario: str = Field(description="scenario, and kind of trial if it has several")
    judge: str = Field(description=_JUDGE)
    neurons: str = Field(
        description="scaled neurons: h, the H-Neurons; matched: draws of as many neurons of the "
        "same layers and magnitudes"
    )
    alpha: float = Field(description="factor of their activations; 1: unchanged")
    n: int = Field(description="trials; none is related to a sample")
    mixed: int = Field(description=_MIXED)
    entities: int = Field(description=ENTITIES)
    draws: int = Field(description="draws of neurons; 1 if nothing is drawn")
    seed: int = Field(description="seed of the draws")
    rate: Estimate = Field(
        description="share of all trials that complied; for `matched` the mean over draws, and the "
        "range of 95% of them"
    )
    unclear: float = Field(description="share without a verdict, counted as not complied")
    changed: float = Field(description="share of responses that differ from those at α = 1")
    tokens: float = Field(description="mean length of a response in tokens")
    reduction: Estimate | None = Field(
        description="the article's ΔOC: (rate at 1 − rate at α) ÷ rate at 1, in %; empty for "
        "`matched`, and if nothing complied at α = 1"
    )


class Slope(Row):
    """Dose-response of over-compliance, compared with matched neurons and with FP16."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    scenario: str = Field(description="scenario, and kind of trial if it has several")
    judge: str = Field(description=_JUDGE)
    neurons: int = Field(description="scaled H-Neurons")
    n: int = Field(description="trials; none is related to a sample")
    mixed: int = Field(description=_MIXED)
    entities: int = Field(description=ENTITIES)
    draws: int = Field(description="draws of matched neurons")
    seed: int = Field(description="seed of the draws")
    slope: Estimate = Field(description="least-squares slope of the rate over α")
    detectable: float | None = Field(description=f"{_DETECTABLE}; empty if no trial has a slope")
    r_squared: float = Field(description="of that line; 0 if the rate is constant")
    monotonicity: float = Field(
        description="Kendall's τ-b of rate and α; 0 if the rate is constant"
    )
    curvature: Estimate = Field(
        description="coefficient of α² in the least-squares parabola; its interval excludes 0 if "
        "the rates depart from a line"
    )
    shape: str = Field(
        description="linear: no departure from a line is shown; curved: one is; not monotone: see "
        "the curve: some rates are shown to rise and others to fall, so the slope describes nothing"
    )
    slope_shared: float = Field(description="slope over the α of the matched draws")
    slope_matched: Estimate = Field(
        description="slopes of the matched draws over the same α: mean, and range of 95%"
    )
    p_matched: float = Field(
        description="two-sided P(the slope of a matched draw is as far from their mean as "
        "`slope_shared`); at least 1 ÷ (draws + 1)"
    )
    excess: Estimate = Field(
        description="`slope_shared` − mean of `slope_matched`, paired by trial; its interval is "
        "over units and draws"
    )
    excess_detectable: float | None = Field(description=f"{_DETECTABLE}, for `excess`")
    change: Estimate = Field(description="slope − slope at FP16, paired by trial")
    change_detectable: float | None = Field(description=f"{_DETECTABLE}, for `change`")
    change_low90: float = Field(description="lower end of its 90% interval, used by TOST")
    change_high90: float = Field(description="upper end of the 90% interval")
    margin: float = Field(description="largest difference of two slopes that count as equivalent")
    tost_p: float = Field(description="p of the two one-sided tests of equivalence")
    verdict: str = Field(
        description="preserved: the 90% interval of `change` lies within ± margin, which is also "
        "true of two zero slopes; changed: its 95% interval excludes 0; otherwise not decided at "
        "this n"
    )
    n_needed: int | None = Field(
        description="independent units that would decide it, if the true difference is the estimate"
    )


class Cost(Row):
    """Costs of scaling the H-Neurons: answers, choices, perplexity, length and refusals."""

    precision: str = Field(description="the precision at which the checkpoint runs")
    alpha: float = Field(description="factor of their activations")
    n: int = Field(description="held-out questions of the study")
    entities: int = Field(description=ENTITIES)
    accuracy: Estimate = Field(description="share of them answered correctly, greedy")
    choice_accuracy: Estimate = Field(
        description="share of four-way choices (MMLU format) whose correct letter is the most "
        "likely"
    )
    perplexity: Estimate = Field(description="on held-out text")
    tokens: float = Field(description="mean length of a response over all scenarios, in tokens")
    refusals: float = Field(description="share of refusals over all scenarios")


TABLES: Tables = {
    "transfer": (Transfer, ("precision", "scenario")),
    "rates": (Rate, ("precision", "scenario", "neurons", "alpha")),
    "slopes": (Slope, ("precision", "scenario")),
    "costs": (Cost, ("precision", "alpha")),
}
