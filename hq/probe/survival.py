"""Which neurons a quantization hurts, predicted from the FP16 model alone.

A statistic counts by its place among those of the same layer, as magnitudes differ between layers
and between models. A prediction is for a layer and a precision of which the fit has seen nothing:
it learns from the other layers at the other precisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from hq.errors import HQError
from hq.models.ffn_weights import FFN
from hq.neurons.space import NeuronSpace

STATISTICS = {
    "read_kurtosis": "excess kurtosis of what reads: rows of gate and up",
    "write_kurtosis": "excess kurtosis of what writes: the column of the down projection",
    "read_norm": "‖row‖₂ of gate and up",
    "write_norm": "‖W_down[:, i]‖₂",
    "read_spread": "largest weight of a group of 64 in a row of gate and up, over the group's RMS",
    "write_spread": "largest weight of the groups of 64 that the column shares with its "
    "neighbours, over the column's RMS",
    "magnitude": "mean contribution",
    "variation": "standard deviation of the contribution over its mean",
    "outlier": "largest contribution over its mean",
}
"""What is known of a neuron at FP16: from its weights, and from its contributions to some texts."""

_GROUP = 64  # weights that share a scale; formats have 32 to 256
_FOLDS = 5


def weight_statistics(ffn: FFN) -> dict[str, Float[np.ndarray, " d_ff"]]:
    """Those of STATISTICS that one layer's stored weights tell; means over gate and up."""
    reads, write = ffn.reads, ffn.down.T
    norms = write.norm(dim=1)
    found = {
        "read_kurtosis": _mean([_kurtosis(read) for read in reads]),
        "write_kurtosis": _kurtosis(write),
        "read_norm": _mean([read.norm(dim=1) for read in reads]),
        "write_norm": norms,
        "read_spread": _mean([_spread(read) for read in reads]),
        "write_spread": _shared(write) / norms.clamp_min(torch.finfo(norms.dtype).tiny),
    }
    return {name: values.cpu().double().numpy() for name, values in found.items()}


def activity_statistics(
    contributions: Float[np.ndarray, "n p"],
) -> dict[str, Float[np.ndarray, " p"]]:
    """Those of STATISTICS that contributions to n texts tell. HQError for fewer than two texts."""
    if len(contributions) < 2:
        raise HQError("One text does not show how a neuron varies: trace more.")
    mean = contributions.mean(axis=0, dtype=np.float64)
    safe = np.where(mean > 0, mean, 1)
    return {
        "magnitude": mean,
        "variation": contributions.std(axis=0, dtype=np.float64) / safe,
        "outlier": contributions.max(axis=0) / safe,
    }


def features(
    statistics: Mapping[str, Float[np.ndarray, " p"]], space: NeuronSpace
) -> Float[np.ndarray, "p statistic"]:
    """Normal scores of each statistic within its block, in the order of STATISTICS."""
    columns = [
        np.concatenate([_normal_scores(statistics[name][of_block]) for of_block in space.slices])
        for name in STATISTICS
    ]
    return np.stack(columns, axis=1)


def _normal_scores(values: Float[np.ndarray, " width"]) -> Float[np.ndarray, " width"]:
    scores: Float[np.ndarray, " width"] = ndtri((rankdata(values) - 0.5) / len(values))
    return scores


@dataclass(frozen=True, slots=True)
class DegradedNeurons:
    """Which neurons a precision hurts: the worst share of each layer's, by some measure."""

    worst: Bool[np.ndarray, " p"]
    known: Bool[np.ndarray, " p"]  # a silent neuron has no error

    @classmethod
    def of(
        cls, errors: Float[np.ndarray, " p"], space: NeuronSpace, share: float = 0.25
    ) -> "DegradedNeurons":
        """From the neurons' errors, NaN where there is none.

        HQError for a layer in which no neuron has one.
        """
        known = ~np.isnan(errors)
        worst = np.zeros(len(errors), dtype=bool)
        for block, here in zip(space.blocks, space.slices, strict=True):
            if not known[here].any():
                raise HQError(f"Layer {block.layer} is silent in all texts: trace other ones.")
            ranks = rankdata(errors[here], nan_policy="omit")
            worst[here] = ranks > (1 - share) * known[here].sum()
        return cls(worst, known)


def predict(
    X: Float[np.ndarray, "p statistic"], hurt: Sequence[DegradedNeurons], space: NeuronSpace
) -> Float[np.ndarray, "precision p"]:
    """Log odds of being hurt, a row a precision, from other layers at other precisions.

    HQError for fewer than two precisions or two layers, of which one must be left out.
    """
    layer = space.locate(np.arange(len(X))).layer
    fold = layer % min(_FOLDS, int(layer[-1]) + 1)
    if len(hurt) < 2 or fold.max() == 0:
        raise HQError(
            "Survival is predicted from other layers at other precisions: take a model of two "
            "layers or more, and name two precisions or more beside fp16."
        )
    scores = np.empty((len(hurt), len(X)))
    for left_out in range(len(hurt)):
        others = [h for i, h in enumerate(hurt) if i != left_out]
        for f in np.unique(fold):
            weights = _fitted(X, others, fold != f)
            scores[left_out, fold == f] = X[fold == f] @ weights
    return scores


def fitted_weights(
    X: Float[np.ndarray, "p statistic"], hurt: Sequence[DegradedNeurons]
) -> Float[np.ndarray, " statistic"]:
    """What each statistic adds to the log odds for each standard deviation: all layers at once."""
    return _fitted(X, hurt, np.ones(len(X), dtype=bool))


def _fitted(
    X: Float[np.ndarray, "p statistic"],
    hurt: Sequence[DegradedNeurons],
    rows: Bool[np.ndarray, " p"],
) -> Float[np.ndarray, " statistic"]:
    """Logistic regression on some neurons at some precisions, without its intercept.

    The same statistics stand beside every precision's label: each neuron comes twice, as hurt and
    as not, weighted by how many precisions say so.
    """
    from sklearn.linear_model import LogisticRegression

    worst: Int[np.ndarray, " p"] = np.sum([h.worst & h.known for h in hurt], axis=0)[rows]
    known: Int[np.ndarray, " p"] = np.sum([h.known for h in hurt], axis=0)[rows]
    chosen = X[rows]
    model = LogisticRegression()
    model.fit(
        np.concatenate([chosen, chosen]),
        np.repeat([1, 0], len(chosen)),
        np.concatenate([worst, known - worst]),
    )
    coefficients: Float[np.ndarray, " statistic"] = model.coef_[0]
    return coefficients


def _kurtosis(rows: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    centred = rows - rows.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    return (centred**4).mean(dim=1) / variance.square() - 3


def _spread(rows: Float[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """Mean over groups along a row of max |w| ÷ RMS."""
    peaks = []
    for group in torch.split(rows, _GROUP, dim=1):
        rms = group.square().mean(dim=1).sqrt()
        peaks.append(group.abs().amax(dim=1) / rms.clamp_min(torch.finfo(rows.dtype).tiny))
    return _mean(peaks)


def _shared(columns: Float[Tensor, "d_ff d_model"]) -> Float[Tensor, " d_ff"]:
    """‖·‖₂ over outputs of the largest |w| in the group of inputs that a column is in."""
    norms = [
        group.abs().amax(dim=0).norm().expand(len(group)) for group in torch.split(columns, _GROUP)
    ]
    return torch.cat(norms)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)
