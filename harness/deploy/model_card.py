"""The model card of a bundle, for readers who did not make it."""

from collections.abc import Mapping
from textwrap import fill

from hq.monitor.bundle import ALL, BundleFacts, Domain, Validation
from hq.neurons.neuron_set import NeuronSet
from hq.stats.conformal import rate_of_calibration
from hq.stats.intervals import Estimate

_READS = "The probe separates hallucinated from right answers in this file."
_CHANCE = (
    "**The interval includes 0.5: in this file the probe may be no better than chance. Do not rely "
    "on it.**"
)
_WIDTH = 100


def model_card(
    facts: BundleFacts, neurons: NeuronSet, domains: Mapping[str, Domain], validation: Validation
) -> str:
    """Return Markdown: what the bundle is, its guarantee, its measures and its limits.

    Committed bundles hold this text, sealed by a digest: a changed wording needs new bundles.
    """
    model, overall = facts.model, domains[ALL]
    bound = rate_of_calibration(overall.n, overall.false_alarms)
    rows = "\n".join(_row(name, domain) for name, domain in domains.items())
    text = f"""# {facts.name}

A monitor for {model.identity.name}: it watches {len(neurons.neurons)} neurons, of which
{len(neurons.positive)} are H-Neurons, while the model answers, and flags answers that are likely to
be hallucinated. {_scored_by(facts)} It is for one file only:

| file | {model.name} |
| --- | --- |
| SHA-256 | `{model.sha256}` |
| bytes | {model.bytes} |
| weights stored as | {model.storage} |
| arithmetic | {facts.compute} |
| precision in hq's tables | {facts.precision} |
| prompt form | {facts.prompt} |

## What it promises

A right answer in a new unit (answers, entities and wordings that the samples have not seen), to a
question drawn as those of the study {validation.study} were, is flagged with a probability of about
{overall.false_alarms:g}. The threshold is cross-conformal: it is set on scores of probes that have
not seen the answer, while the probe of this bundle is fitted on all samples. For such thresholds
the rate has no strict bound; the table shows the measured rates, of answers that neither the probe
nor the threshold has seen. The promise is on average over calibrations and answers; every unit has
the same weight. The rate of one calibration differs: with {overall.n} units that have an answer
each, about 95% of calibrations stay below {bound:.2f}.

| domain | threshold | promised | units that set it | false alarms | detected |
| --- | --- | --- | --- | --- | --- |
{rows}

False alarms are right answers that are flagged, detected are hallucinated ones: shares of answers
out of fold, with 95% intervals over n units.

## What was measured

AUROC {validation.auroc} out of fold, on {validation.n} answers in {validation.entities} units,
{validation.hallucinated} of them hallucinated; seed {validation.seed}.
{_READS if validation.auroc.low > 0.5 else _CHANCE}

{_beside_probabilities(validation)}

## What it does not promise

- Anything about questions of another kind, in another language, prompt form or way of sampling.
  The study keeps questions whose responses are all right or all hallucinated; others are harder.
- Anything about one given question, or about all answers of one unit.
- That what is not flagged is right: the last column says how much is missed.
- Anything in another file of the model, which hq refuses: another quantization shifts the scores.

Made with hq {facts.hq}. `hq bundle verify` checks every byte of this folder.
"""
    return "\n\n".join(map(_filled, text.split("\n\n"))) + "\n"


def _scored_by(facts: BundleFacts) -> str:
    if facts.combination is None:
        return "Its score is that of these neurons."
    return (
        "Its score combines these neurons with the entropy of each prediction and the surprisal of "
        f"each token (−log p), in nats: {facts.combination.probe:.3g} × neurons "
        f"{facts.combination.entropy:+.3g} × entropy {facts.combination.surprisal:+.3g} × "
        f"surprisal {facts.combination.intercept:+.3g}."
    )


def _beside_probabilities(validation: Validation) -> str:
    """What the neurons add to the probabilities of tokens, which are free, in plain words."""
    gain = validation.combined_minus_uncertainty
    if gain is None:
        return ""
    verdict = (
        "H-Neurons add to the probabilities of tokens."
        if gain.low > 0
        else "**On these answers H-Neurons add nothing that is shown to the probabilities of "
        "tokens, which need no bundle.**"
    )
    return (
        f"On the same answers, the mean token entropy alone has an AUROC of {validation.entropy}, "
        f"the mean log-probability {validation.log_probability}, both together "
        f"{validation.uncertainty}, H-Neurons alone {validation.probe}, and all combined "
        f"{validation.combined}: {_signed(gain)} compared with entropy and log-probability. "
        f"{verdict}"
    )


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _filled(block: str) -> str:
    """A paragraph wrapped to one width; headings, tables and lists unchanged."""
    return block if block.startswith(("#", "|", "- ")) else fill(" ".join(block.split()), _WIDTH)


def _row(name: str, domain: Domain) -> str:
    cells = (
        name,
        f"{domain.threshold:.4f}",
        f"{domain.false_alarms:g}",
        str(domain.n),
        _rate(domain.realised),
        _rate(domain.detected),
    )
    return f"| {' | '.join(cells)} |"


def _rate(estimate: Estimate | None) -> str:
    return "—" if estimate is None else f"{estimate}, n = {estimate.n}"
