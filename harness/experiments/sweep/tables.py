"""Columns of the tables of α sweeps."""

from pydantic import Field

from harness.tables.schema import ENTITIES, Row, Tables
from hq.stats.bootstrap import Estimate


class Transfer(Row):
    """Whether the probe tells compliance from resistance in a scenario that it was not found on."""

    precision: str = Field(description="how the checkpoint is run")
    scenario: str = Field(description="scenario, and kind of trial where it has several")
    n: int = Field(description="responses of FP16 that complied or resisted, all traced here")
    entities: int = Field(description=ENTITIES)
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
    entities: int = Field(description=ENTITIES)
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
    entities: int = Field(description=ENTITIES)
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
    entities: int = Field(description=ENTITIES)
    seed: int = Field(description="seed of the bootstrap")
    accuracy: Estimate = Field(description="share of them answered rightly, greedy")
    choice_accuracy: Estimate = Field(
        description="share of four-way choices (MMLU's form) whose letter is likeliest"
    )
    perplexity: Estimate = Field(description="on held-out text")
    tokens: float = Field(description="mean length of a response over all scenarios")
    refusals: float = Field(description="share of responses over all scenarios that refuse")


TABLES: Tables = {
    "transfer": (Transfer, ("precision", "scenario")),
    "rates": (Rate, ("precision", "scenario", "neurons", "alpha")),
    "slopes": (Slope, ("precision", "scenario")),
    "costs": (Cost, ("precision", "alpha")),
}
