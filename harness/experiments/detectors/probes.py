"""Stage `probes`: the supervised competitors, fitted on hidden states at FP16 in the probe's folds.

As for H-Neurons (`hq.probe.cross_fit`), the probe of fold f is fitted on all other folds, with its
layer and penalty chosen there: by fits that leave out f and another fold g, and are evaluated on g.
Those fits also score g where a second fit, such as a combination of two detectors, needs scores
that depend on no label of f and g.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from hq.stats.auroc import auroc

if TYPE_CHECKING:
    from harness.stages.materials import Materials

_FILE = "probes.safetensors"
_LAYERS = (0.5, 0.625, 0.75, 0.875, 1.0)  # of the depth, from which SAPLMA chooses
_PENALTIES = (0.001, 0.01, 0.1)  # C of the residual probe
_HEADS = 0.05  # share of all heads; ITI keeps 48 of 1,024

Fitted = dict[str, np.ndarray]
Features = Float[np.ndarray, "n q"]


@dataclass(frozen=True)
class DetectorScores:
    """Cross-fitted decision values of a detector; larger means hallucinated."""

    out_of_fold: Float[np.ndarray, " n"]
    calibration: Float[np.ndarray, "fold n"]  # row f: by fits without f and the sample's fold


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


class ResidualProbe(Probe):
    """L2 logistic regression on the residual stream of one layer, mean over the answer."""

    name = "residual"
    about = "logistic regression on the residual stream of the best layer, mean over the answer"

    def candidates(self, states: Hidden, width: int) -> Sequence[tuple[int, float]]:
        """Return every layer with every penalty."""
        return [(layer, C) for layer in range(states.residual_mean.shape[1]) for C in _PENALTIES]

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
        units=len(PROBES) * m.study.identify.folds,
        unit="fits",
    )


def make(work: "Work[Materials]") -> None:
    """Write the probes of all folds, and of all pairs of folds, in one file."""
    rows = Rows(read_samples(work.inputs["samples"] / SAMPLES_FILE))
    states, parameters = hidden.read(work.inputs["hidden"]), work.parameters
    k = int(rows.folds.max()) + 1
    arrays: dict[str, np.ndarray] = {}
    with work.task(len(PROBES) * k, "fits") as task:
        for probe in PROBES:
            for key, fitted in fits_of(
                probe, states, rows, parameters["head_width"], parameters["seed"]
            ):
                arrays |= {f"{probe.name}/{key}/{name}": a for name, a in fitted.items()}
            task.advance(k)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, work.folder / _FILE)


def fits_of(
    probe: Probe, states: Hidden, rows: Rows, width: int, seed: int
) -> Iterator[tuple[str, Fitted]]:
    """Yield the chosen fits: "f" without fold f, and "f-g" without f and g, per candidate."""
    k, y, folds = int(rows.folds.max()) + 1, rows.y, rows.folds
    candidates = probe.candidates(states, width)
    pairs = [(f, g) for f in range(k) for g in range(f)]
    areas = np.zeros((k, len(candidates)))
    for c, candidate in enumerate(candidates):
        X = probe.features(states, candidate)
        for f, g in pairs:
            seen = (folds != f) & (folds != g)
            fitted = probe.fit(X[seen], y[seen], candidate, seed)
            for test, of in ((g, f), (f, g)):
                held_out = folds == test
                areas[of, c] += auroc(probe.decide(fitted, X[held_out]), y[held_out]) / (k - 1)
    for f in range(k):
        for c in probe.chosen(areas[f]):
            X = probe.features(states, candidates[c])
            seen = folds != f
            yield f"{f}/{c}", probe.fit(X[seen], y[seen], candidates[c], seed)
            for g in set(range(k)) - {f}:
                seen = (folds != f) & (folds != g)
                yield f"{f}-{g}/{c}", probe.fit(X[seen], y[seen], candidates[c], seed)


def read(folder: Path) -> Mapping[str, np.ndarray]:
    """Return the arrays of all probes, by probe, fold, candidate and name."""
    arrays: Mapping[str, np.ndarray] = load_file(folder / _FILE)
    return arrays


def scores(
    probe: Probe, arrays: Mapping[str, np.ndarray], states: Hidden, rows: Rows, width: int
) -> DetectorScores:
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
    return DetectorScores(out_of_fold, calibration)


def stored_numbers(probe: Probe, arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many numbers the probe of one fold holds."""
    return sum(a.size for key, a in arrays.items() if key.startswith(f"{probe.name}/0/"))


def _scale(X: Features) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    scale = X.std(axis=0)
    return X.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _logistic(X: Features, y: Int[np.ndarray, " n"], C: float) -> Fitted:
    """Return weights and bias of raw features, fitted on standardised ones."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = _scale(X)
    with warnings.catch_warnings():
        # Where features tell nothing, rounding can end its line search; it then runs lbfgs itself.
        warnings.filterwarnings("ignore", "Line search of Newton solver")
        fitted = LogisticRegression(C=C, solver="newton-cholesky").fit((X - mean) / scale, y)
    weight = fitted.coef_[0] / scale
    return {"weight": weight, "bias": np.array([fitted.intercept_[0] - mean @ weight])}


STAGE = Stage("probes", make, packages=FIT)
