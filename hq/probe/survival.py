"""Predicts which neurons a quantization degrades, from FP16 weights and activations alone.

Statistics enter as ranks within their layer, as magnitudes differ between layers and models. The
prediction for a layer at a precision is cross-fitted: the fit uses only other layers at other
precisions.
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
"""Statistics of a neuron at FP16: of its weights, and of its contributions to some texts."""

_GROUP = 64  # weights that share a scale; formats use 32 to 256
_FOLDS = 5


def weight_statistics(ffn: FFN) -> dict[str, Float[np.ndarray, " d_ff"]]:
    """Return the STATISTICS of one layer's stored weights, averaged over gate and up."""
    reads, write = ffn.reads, ffn.down.T
    norms = write.norm(dim=1)
    statistics = {
        "read_kurtosis": _mean([_kurtosis(read) for read in reads]),
        "write_kurtosis": _kurtosis(write),
        "read_norm": _mean([read.norm(dim=1) for read in reads]),
        "write_norm": norms,
        "read_spread": _mean([_spread(read) for read in reads]),
        "write_spread": _shared(write) / norms.clamp_min(torch.finfo(norms.dtype).tiny),
    }
    return {name: values.cpu().double().numpy() for name, values in statistics.items()}


def activity_statistics(
    contributions: Float[np.ndarray, "n p"],
) -> dict[str, Float[np.ndarray, " p"]]:
    """Return the STATISTICS of contributions to n texts. Raises HQError if n is less than 2."""
    if len(contributions) < 2:
        raise HQError("The variation of a neuron needs two texts or more: trace more texts.")
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
    """Return normal scores of each statistic within its block, in the order of STATISTICS."""
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
    """The neurons that a precision degrades: those with the largest errors in each layer."""

    degraded: Bool[np.ndarray, " p"]
    defined: Bool[np.ndarray, " p"]  # False for a neuron without an error, as it never contributes

    @classmethod
    def of(
        cls, errors: Float[np.ndarray, " p"], space: NeuronSpace, share: float = 0.25
    ) -> "DegradedNeurons":
        """Return the `share` of each layer's neurons with the largest errors; NaN is undefined.

        Raises HQError if no neuron of a layer has an error.
        """
        defined = ~np.isnan(errors)
        degraded = np.zeros(len(errors), dtype=bool)
        for block, here in zip(space.blocks, space.slices, strict=True):
            if not defined[here].any():
                raise HQError(
                    f"No neuron of layer {block.layer} contributes to any text: trace others."
                )
            ranks = rankdata(errors[here], nan_policy="omit")
            degraded[here] = ranks > (1 - share) * defined[here].sum()
        return cls(degraded, defined)


def predict(
    X: Float[np.ndarray, "p statistic"], targets: Sequence[DegradedNeurons], space: NeuronSpace
) -> Float[np.ndarray, "precision p"]:
    """Return the log odds of being degraded, fitted on other layers at other precisions.

    `targets` has the neurons that each precision degrades. Raises HQError if there are fewer than
    two precisions or two layers.
    """
    layer = space.locate(np.arange(len(X))).layer
    fold = layer % min(_FOLDS, int(layer[-1]) + 1)
    if len(targets) < 2 or fold.max() == 0:
        raise HQError(
            "Survival is predicted from other layers at other precisions: use a model with two "
            "layers or more, and two precisions or more besides fp16."
        )
    scores = np.empty((len(targets), len(X)))
    for left_out in range(len(targets)):
        others = [target for i, target in enumerate(targets) if i != left_out]
        for f in np.unique(fold):
            weights = _fitted(X, others, fold != f)
            scores[left_out, fold == f] = X[fold == f] @ weights
    return scores


def fitted_weights(
    X: Float[np.ndarray, "p statistic"], targets: Sequence[DegradedNeurons]
) -> Float[np.ndarray, " statistic"]:
    """Return the log odds per standard deviation of each statistic, fitted on all layers."""
    return _fitted(X, targets, np.ones(len(X), dtype=bool))


def _fitted(
    X: Float[np.ndarray, "p statistic"],
    targets: Sequence[DegradedNeurons],
    rows: Bool[np.ndarray, " p"],
) -> Float[np.ndarray, " statistic"]:
    """Return the coefficients of a logistic regression on some neurons, at these precisions.

    A neuron has the same statistics at every precision: it enters twice, as degraded and as not
    degraded, weighted by the numbers of precisions.
    """
    from sklearn.linear_model import LogisticRegression

    masks = [target.degraded & target.defined for target in targets]
    degraded: Int[np.ndarray, " p"] = np.sum(masks, axis=0)[rows]
    defined: Int[np.ndarray, " p"] = np.sum([target.defined for target in targets], axis=0)[rows]
    chosen = X[rows]
    model = LogisticRegression()
    model.fit(
        np.concatenate([chosen, chosen]),
        np.repeat([1, 0], len(chosen)),
        np.concatenate([degraded, defined - degraded]),
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
    """‖·‖₂ over outputs of the largest |w| in the group of inputs that contains the column."""
    norms = [
        group.abs().amax(dim=0).norm().expand(len(group)) for group in torch.split(columns, _GROUP)
    ]
    return torch.cat(norms)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)
