"""The detectors, by name: how each scores the answers, and what it costs.

A new detector is one entry here. Its score is larger for an answer that is more likely to be
hallucinated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from harness.experiments.detectors import sampled
from harness.experiments.detectors.confidence import Confidence
from harness.experiments.detectors.hidden import Hidden
from harness.experiments.detectors.probes import (
    PROBES,
    Probe,
    scores,
    stored_numbers,
)
from harness.stages.identify import Rows
from harness.stages.samples import Sample
from hq.errors import HQError
from hq.neurons.features import Features
from hq.probe.cross_fit import CrossFit
from hq.probe.stacking import CrossFittedScores
from hq.registry import Registry

H_NEURONS = "h-neurons"
ENTROPY = "entropy"
Need = Literal["none", "logits", "states", "pass", "chain", "samples"]
"""What a detector needs beyond the generated answer: nothing, the logits or hidden states of the
tokens as they are generated, one more pass, a chain of three, or further responses."""


@dataclass(frozen=True)
class Readings:
    """Everything that was read at one precision, and the probes fitted at the reference."""

    samples: list[Sample]
    rows: Rows
    cett: Features
    crossfit: CrossFit
    confidence: Confidence
    responses: list[list[str]]
    verification: Float[np.ndarray, " n"]
    hidden: Hidden
    probes: Mapping[str, np.ndarray]
    head_width: int


@dataclass(frozen=True)
class Detector:
    """One detector.

    Args:
        about: What it scores, with its source.
        needs: What it needs beyond the generated answer.
        passes: Passes of the model after the answer; "responses" counts each response as one.
        score: Returns the decision values of all answers.
        size: Returns how many numbers it stores.
    """

    about: str
    needs: Need
    passes: int | Literal["responses"]
    score: Callable[[Readings], CrossFittedScores]
    size: Callable[[Readings], int] = lambda _: 0

    @property
    def is_fitted(self) -> bool:
        """Whether it was fitted on labelled answers."""
        return self.needs in ("none", "states")


def _detector(name: str, thing: object) -> Detector:
    """Return the detector that an entry point names. Raises HQError for anything else."""
    if not isinstance(thing, Detector):
        raise HQError(f"{name} is {thing!r}, not a Detector")
    return thing


DETECTORS: Registry[Detector] = Registry("detector", "hq.detectors", adopt=_detector)


def unsupervised(values: Float[np.ndarray, " n"], rows: Rows) -> CrossFittedScores:
    """Return the scores of a detector that is not fitted, which are the same in every fold."""
    k = int(rows.folds.max()) + 1
    calibration = np.tile(values, (k, 1))
    calibration[rows.folds, np.arange(len(values))] = np.nan
    return CrossFittedScores(values, calibration)


def _h_neurons(r: Readings) -> CrossFittedScores:
    folds = r.rows.folds
    means = r.crossfit.means(r.cett, folds)
    return CrossFittedScores(
        r.crossfit.scores(r.cett, folds) - means[folds],
        r.crossfit.calibration_scores(r.cett, folds),
    )


def _of_tokens(
    pick: Callable[[Confidence], Float[np.ndarray, " token"]],
    reduce: Callable[[Float[np.ndarray, " t"]], float],
) -> Callable[[Readings], CrossFittedScores]:
    """Return a score that reduces one value per token to one per answer."""

    def score(r: Readings) -> CrossFittedScores:
        parts = r.confidence.over_answers(pick(r.confidence))
        return unsupervised(np.array([reduce(part) for part in parts]), r.rows)

    return score


def _of_responses(
    measure: Callable[[str, list[str]], float],
) -> Callable[[Readings], CrossFittedScores]:
    """Return a score that compares each answer with the further responses."""

    def score(r: Readings) -> CrossFittedScores:
        pairs = zip(r.samples, r.responses, strict=True)
        return unsupervised(np.array([measure(s.text, texts) for s, texts in pairs]), r.rows)

    return score


def _largest(values: Float[np.ndarray, " t"]) -> float:
    return float(values.max())


def _mean(values: Float[np.ndarray, " t"]) -> float:
    return float(values.mean())


def _of_probe(probe: Probe, r: Readings) -> CrossFittedScores:
    return scores(probe, r.probes, r.hidden, r.rows, r.head_width)


def _size_of_probe(probe: Probe, r: Readings) -> int:
    return stored_numbers(probe, r.probes)


def _size_of_set(r: Readings) -> int:
    """Weight, mean and scale of each neuron, and the intercept."""
    return 3 * len(r.crossfit.neurons.neurons) + 1


_BUILT_IN = {
    H_NEURONS: Detector(
        "L1 probe on the CETT of H-Neurons, fitted at FP16 (Gao et al., arXiv 2512.01797)",
        "none",
        0,
        _h_neurons,
        _size_of_set,
    ),
    ENTROPY: Detector(
        "mean entropy of the distributions that predict the answer's tokens",
        "logits",
        0,
        _of_tokens(lambda c: c.entropy, _mean),
    ),
    "max-entropy": Detector(
        "largest entropy over the answer's tokens",
        "logits",
        0,
        _of_tokens(lambda c: c.entropy, _largest),
    ),
    "log-probability": Detector(
        "minus the mean log-probability of the answer's tokens",
        "logits",
        0,
        _of_tokens(lambda c: -c.log_prob, _mean),
    ),
    "perplexity": Detector(
        "exp of that, which ranks answers alike",
        "logits",
        0,
        _of_tokens(lambda c: -c.log_prob, lambda values: float(np.exp(values.mean()))),
    ),
    "min-log-probability": Detector(
        "minus the smallest log-probability of a token of the answer",
        "logits",
        0,
        _of_tokens(lambda c: -c.log_prob, _largest),
    ),
    "sequence-probability": Detector(
        "minus the log-probability of the whole answer",
        "logits",
        0,
        _of_tokens(lambda c: -c.log_prob, lambda values: float(values.sum())),
    ),
    "p-true": Detector(
        "minus P(True), the model's verdict on its answer (Kadavath et al., arXiv 2207.05221)",
        "pass",
        1,
        lambda r: unsupervised(-r.confidence.p_true, r.rows),
    ),
    "verification": Detector(
        "minus the log-probability of the answer after a chain of verification (Dhuliawala et al., "
        "arXiv 2309.11495)",
        "chain",
        3,
        lambda r: unsupervised(r.verification, r.rows),
    ),
    "selfcheck-unigram": Detector(
        "SelfCheckGPT with unigrams, maximum (Manakul et al., arXiv 2303.08896)",
        "samples",
        "responses",
        _of_responses(sampled.unigram_surprise),
    ),
    "selfcheck-rouge": Detector(
        "SelfCheckGPT with ROUGE-L in place of BERTScore",
        "samples",
        "responses",
        _of_responses(sampled.rouge_distance),
    ),
    "disagreement": Detector(
        "share of further responses that differ in meaning from the answer",
        "samples",
        "responses",
        _of_responses(sampled.disagreement),
    ),
    "semantic-entropy": Detector(
        "entropy of the clusters of further responses (Farquhar et al. 2024, Nature 630)",
        "samples",
        "responses",
        _of_responses(lambda _, responses: sampled.semantic_entropy(responses)),
    ),
    **{
        probe.name: Detector(
            probe.about, "states", 0, partial(_of_probe, probe), partial(_size_of_probe, probe)
        )
        for probe in PROBES
    },
}
for _name, _entry in _BUILT_IN.items():
    DETECTORS.add(_name, _entry)
