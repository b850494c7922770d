"""Stage `probes`: the supervised competitors, fitted on hidden states at FP16 in the probe's folds.

As for H-Neurons (`hq.probe.cross_fit`), the probe of fold f is fitted on all other folds, with its
layer and penalty chosen there: by fits that leave out f and another fold g, and are evaluated on g.
Those fits also score g where a second fit, such as a combination of two detectors, needs scores
that depend on no label of f and g.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file

from harness.experiments.detectors import hidden
from harness.experiments.detectors.hidden import Hidden
from harness.stages.graph import Graph
from harness.stages.identify import Rows
from harness.stages.samples import read_samples
from harness.stages.select import SAMPLES_FILE
from harness.store.environment import FIT, machine_class
from harness.store.node import Node, Stage, Work
from harness.studies.study import REFERENCE
from hq.models.architectures.llama_cpp import head_width
from hq.models.checkpoint import text_config
from hq.probe.stacking import CrossFittedScores
from hq.stats.auroc import auroc

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "probes.safetensors"
_LAYERS = (0.5, 0.625, 0.75, 0.875, 1.0)  # of the depth, from which SAPLMA chooses
_PENALTIES = (0.001, 0.01, 0.1)  # C of the residual probe
_HEADS = 0.05  # share of all heads; ITI keeps 48 of 1,024

Fitted = dict[str, np.ndarray]
Features = Float[np.ndarray, "n q"]


class Probe(ABC):
    """A family of classifiers of hidden states, of which one is chosen without the test fold."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What it is, with its source."""

    @abstractmethod
    def candidates(self, states: Hidden, width: int) -> Sequence[Any]:
        """Return what is chosen from, such as layers."""

    @abstractmethod
    def features(self, states: Hidden, candidate: Any) -> Features:
        """Return the features that a candidate reads."""

    @abstractmethod
    def fit(self, X: Features, y: Int[np.ndarray, " n"], candidate: Any, seed: int) -> Fitted:
        """Fit a candidate."""

    @abstractmethod
    def decide(self, fitted: Fitted, X: Features) -> Float[np.ndarray, " n"]:
        """Return decision values."""

    def chosen(self, areas: Float[np.ndarray, " candidate"]) -> list[int]:
        """Return the candidates whose mean decision is the score, given their AUROCs."""
        return [int(np.argmax(areas))]

    def refinements(self, candidates: Sequence[Any], best: int) -> list[int]:
        """Return further candidates that are compared with the best one, such as penalties."""
        return []

    def first(self, candidates: Sequence[Any]) -> list[int]:
        """Return the candidates that are compared first."""
        return list(range(len(candidates)))


class ResidualProbe(Probe):
    """L2 logistic regression on the residual stream of one layer, mean over the answer."""

    name = "residual"
    about = "logistic regression on the residual stream of the best layer, mean over the answer"

    def candidates(self, states: Hidden, width: int) -> Sequence[tuple[int, float]]:
        """Return every layer with every penalty."""
        return [(layer, C) for layer in range(states.residual_mean.shape[1]) for C in _PENALTIES]

    def first(self, candidates: Sequence[tuple[int, float]]) -> list[int]:
        """Return every layer with the middle penalty."""
        return [c for c, (_, C) in enumerate(candidates) if _PENALTIES[1] == C]

    def refinements(self, candidates: Sequence[tuple[int, float]], best: int) -> list[int]:
        """Return the layer of the best candidate with the other penalties."""
        layer = candidates[best][0]
        return [c for c, (other, _) in enumerate(candidates) if other == layer and c != best]

    def features(self, states: Hidden, candidate: tuple[int, float]) -> Features:
        """Return the states of the layer."""
        return np.asarray(states.residual_mean[:, candidate[0]], dtype=np.float64)

    def fit(
        self, X: Features, y: Int[np.ndarray, " n"], candidate: tuple[int, float], seed: int
    ) -> Fitted:
        """Fit weights of standardised features."""
        return _logistic(X, y, candidate[1])

    def decide(self, fitted: Fitted, X: Features) -> Float[np.ndarray, " n"]:
        """Return decision values."""
        return X @ fitted["weight"] + fitted["bias"]


class HeadProbes(Probe):
    """A logistic regression per attention head; the score is the mean over the best heads.

    The heads are those of Inference-Time Intervention (Li et al. 2023, arXiv 2306.03341).
    """

    name = "heads"
    about = "mean of the probes of the best 5% of attention heads (Li et al., arXiv 2306.03341)"

    def candidates(self, states: Hidden, width: int) -> Sequence[tuple[int, int, int]]:
        """Return layer, first column and end of every head."""
        _, layers, total = states.heads_last.shape
        return [
            (layer, start, start + width)
            for layer in range(layers)
            for start in range(0, total, width)
        ]

    def features(self, states: Hidden, candidate: tuple[int, int, int]) -> Features:
        """Return the output of the head at the answer's last token."""
        layer, start, end = candidate
        return np.asarray(states.heads_last[:, layer, start:end], dtype=np.float64)

    def fit(self, X: Features, y: Int[np.ndarray, " n"], candidate: Any, seed: int) -> Fitted:
        """Fit weights of standardised features."""
        return _logistic(X, y, 1.0)

    def decide(self, fitted: Fitted, X: Features) -> Float[np.ndarray, " n"]:
        """Return decision values."""
        return X @ fitted["weight"] + fitted["bias"]

    def chosen(self, areas: Float[np.ndarray, " candidate"]) -> list[int]:
        """Return the best 5% of the heads."""
        count = max(1, round(_HEADS * len(areas)))
        return sorted(np.argsort(-areas, kind="stable")[:count].tolist())


class Saplma(Probe):
    """SAPLMA (Azaria & Mitchell 2023, arXiv 2304.13734): an MLP on one layer at the last token.

    Its three hidden layers have 256, 128 and 64 units, trained for 5 epochs with Adam, as in the
    paper.
    """

    name = "saplma"
    about = "SAPLMA: an MLP on one layer at the last token (Azaria & Mitchell, arXiv 2304.13734)"

    def candidates(self, states: Hidden, width: int) -> Sequence[int]:
        """Return layers of the second half of the model, as in the paper."""
        depth = states.residual_last.shape[1]
        return sorted({max(round(share * depth) - 1, 0) for share in _LAYERS})

    def features(self, states: Hidden, candidate: int) -> Features:
        """Return the states of the layer at the answer's last token."""
        return np.asarray(states.residual_last[:, candidate], dtype=np.float64)

    def fit(self, X: Features, y: Int[np.ndarray, " n"], candidate: int, seed: int) -> Fitted:
        """Fit the weights of all layers."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        mean, scale = _scale(X)
        network = MLPClassifier(
            (256, 128, 64), batch_size=min(32, len(y)), max_iter=5, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 5 epochs, as in the paper
            network.fit((X - mean) / scale, y)
        layers = zip(network.coefs_, network.intercepts_, strict=True)
        fitted = {"mean": mean, "scale": scale}
        for k, (weight, bias) in enumerate(layers):
            fitted |= {f"{k}.w": weight, f"{k}.b": bias}
        return fitted

    def decide(self, fitted: Fitted, X: Features) -> Float[np.ndarray, " n"]:
        """Return the logits of the output unit."""
        values = (X - fitted["mean"]) / fitted["scale"]
        depth = sum(name.endswith(".w") for name in fitted)
        for k in range(depth):
            values = values @ fitted[f"{k}.w"] + fitted[f"{k}.b"]
            values = np.maximum(values, 0) if k < depth - 1 else values
        return values[:, 0]


PROBES: tuple[Probe, ...] = (ResidualProbe(), Saplma(), HeadProbes())


def node(m: "Materials") -> Node:
    """Declare the probes of the reference."""
    graph = Graph(m)
    return Node(
        STAGE,
        {
            "machine": machine_class(),
            "seed": m.study.seed,
            "head_width": head_width(text_config(m.path)),
        },
        {
            "hidden": hidden.node(m, REFERENCE).output(),
            "samples": graph.samples.output(SAMPLES_FILE),
        },
        about=REFERENCE,
        units=m.model.n_layers,
        unit="layers",
    )


def make(work: "Work[Materials]") -> None:
    """Write the probes of all folds, and of all pairs of folds, in one file."""
    rows = Rows(read_samples(work.inputs["samples"] / SAMPLES_FILE))
    states, parameters = hidden.read(work.inputs["hidden"]), work.parameters
    arrays: dict[str, np.ndarray] = {}
    width = parameters["head_width"]
    total = sum(len(probe.first(probe.candidates(states, width))) for probe in PROBES)
    with work.task(total, "candidates") as task:
        for probe in PROBES:
            fits = fits_of(probe, states, rows, width, parameters["seed"], lambda: task.advance(1))
            for key, fitted in fits:
                arrays |= {f"{probe.name}/{key}/{name}": a for name, a in fitted.items()}
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, work.folder / _FILE)


def fits_of(
    probe: Probe,
    states: Hidden,
    rows: Rows,
    width: int,
    seed: int,
    compared: Callable[[], object] = lambda: None,
) -> Iterator[tuple[str, Fitted]]:
    """Yield the chosen fits: "f" without fold f, and "f-g" without f and g, per candidate.

    `compared` is called after each candidate of the first comparison.
    """
    k, y, folds = int(rows.folds.max()) + 1, rows.y, rows.folds
    candidates = probe.candidates(states, width)
    areas = np.full((k, len(candidates)), -np.inf)

    def fitted(X: Features, c: int, *without: int) -> Fitted:
        seen = ~np.isin(folds, without)
        return probe.fit(X[seen], y[seen], candidates[c], seed)

    def area(X: Features, fit: Fitted, held_out: int) -> float:
        test = folds == held_out
        return auroc(probe.decide(fit, X[test]), y[test]) / (k - 1)

    for c in probe.first(candidates):
        X, areas[:, c] = probe.features(states, candidates[c]), 0
        for f, g in combinations(range(k), 2):
            fit = fitted(X, c, f, g)  # it chooses for f by its AUROC in g, and for g by that in f
            areas[f, c] += area(X, fit, g)
            areas[g, c] += area(X, fit, f)
        compared()
    for f in range(k):
        others = sorted(set(range(k)) - {f})
        for c in probe.refinements(candidates, int(np.argmax(areas[f]))):
            X = probe.features(states, candidates[c])
            areas[f, c] = sum(area(X, fitted(X, c, f, g), g) for g in others)
        for c in probe.chosen(areas[f]):
            X = probe.features(states, candidates[c])
            yield f"{f}/{c}", fitted(X, c, f)
            for g in others:
                yield f"{f}-{g}/{c}", fitted(X, c, f, g)


def read(folder: Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of all probes, by probe, fold, candidate and name."""
    arrays: Mapping[str, np.ndarray] = load_file(folder / _FILE)
    return arrays


def scores(
    probe: Probe, arrays: Mapping[str, np.ndarray], states: Hidden, rows: Rows, width: int
) -> CrossFittedScores:
    """Return the decision values of a probe, centred in each fit over the rows outside of fold f.

    A fit's constant has no meaning across folds, and quantization shifts it.
    """
    fits: dict[str, dict[int, Fitted]] = {}
    for key, array in arrays.items():
        of_probe, fold, candidate, name = key.split("/")
        if of_probe == probe.name:
            fits.setdefault(fold, {}).setdefault(int(candidate), {})[name] = array
    candidates, folds = probe.candidates(states, width), rows.folds
    k = int(folds.max()) + 1
    read_once: dict[int, Features] = {}

    def decisions(fold: str, outside: int) -> Float[np.ndarray, " n"]:
        values = np.zeros(len(folds))
        for c, fitted in fits[fold].items():
            if c not in read_once:
                read_once[c] = probe.features(states, candidates[c])
            values += probe.decide(fitted, read_once[c]) / len(fits[fold])
        centred: Float[np.ndarray, " n"] = values - values[folds != outside].mean()
        return centred

    out_of_fold, calibration = np.empty(len(folds)), np.full((k, len(folds)), np.nan)
    for f in range(k):
        own = folds == f
        out_of_fold[own] = decisions(str(f), f)[own]
        for g in set(range(k)) - {f}:
            held_out = folds == g
            calibration[f, held_out] = decisions(f"{f}-{g}", f)[held_out]
    return CrossFittedScores(out_of_fold, calibration)


def stored_numbers(probe: Probe, arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many numbers the probe of one fold holds."""
    return sum(a.size for key, a in arrays.items() if key.startswith(f"{probe.name}/0/"))


def _scale(X: Features) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    scale = X.std(axis=0)
    return X.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _logistic(X: Features, y: Int[np.ndarray, " n"], C: float) -> Fitted:
    """Return weights and bias of raw features, fitted on standardised ones."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = _scale(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the AUROC has converged long before
        fitted = LogisticRegression(C=C, max_iter=300).fit((X - mean) / scale, y)
    weight = fitted.coef_[0] / scale
    return {"weight": weight, "bias": np.array([fitted.intercept_[0] - mean @ weight])}


STAGE = Stage("probes", make, packages=FIT)
