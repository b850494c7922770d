"""CETT, the share that one neuron has in its layer's output: the formulas, on tensors.

Two definitions are kept apart, as their sources differ:

- `sum` (the article): |h_i| · ‖W_down[:, i]‖₂ / Σ_j |h_j| · ‖W_down[:, j]‖₂
- `output` (Gao et al., arXiv 2512.01797): |h_i| · ‖W_down[:, i]‖₂ / ‖W_down · h‖₂

and beside them `contribution`, the numerator alone, which is what a precision is compared by.
Norms are those of the loaded variant's own, dequantized W_down.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hq.errors import HQError

Measure = Literal["sum", "output", "contribution"]
Span = Literal["answer", "prompt", "other"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
SPANS: tuple[Span, ...] = get_args(Span)


def require_measures(measures: tuple[Measure, ...]) -> None:
    """Raises HQError for a measure that does not exist or is named twice."""
    if not set(measures) <= set(MEASURES) or len(set(measures)) < len(measures):
        raise HQError(f"The measures are {', '.join(MEASURES)}, each at most once, not {measures}.")


def column_norms(weight: Float[Tensor, "d_model d_ff"]) -> Float[Tensor, " d_ff"]:
    """‖W_down[:, i]‖₂ of a dense W_down, in float32."""
    norms: Float[Tensor, " d_ff"] = torch.linalg.vector_norm(weight.float(), dim=0)
    return norms


def span_means(
    h: Float[Tensor, "batch seq d_ff"],
    output: Float[Tensor, "batch seq d_model"],
    norms: Float[Tensor, " d_ff"],
    weights: Float[Tensor, "batch span seq"],
    measures: tuple[Measure, ...],
) -> Float[Tensor, "batch measure span d_ff"]:
    """Weighted sums over tokens of each measure; with weights that add up to 1, means over a span.

    `output` is W_down · h without the bias. The denominators are folded into the token weights, so
    that every measure and span comes out of one matrix product over |h|.
    A token whose layer output is exactly zero has no shares: it counts as zero.
    """
    magnitude = h.abs().float()
    wholes = [whole(measure, magnitude, output, norms) for measure in measures]
    folded = [weights / w.masked_fill(w == 0, torch.inf)[:, None, :] for w in wholes]
    stacked = torch.cat(folded, dim=1)  # [batch, measure·span, seq]
    sums = torch.bmm(stacked, magnitude).mul_(norms)  # [batch, measure·span, d_ff]
    return sums.reshape(len(sums), len(measures), weights.shape[1], -1)


def whole(
    measure: Measure,
    magnitude: Float[Tensor, "*token d_ff"],
    output: Float[Tensor, "*token d_model"],
    norms: Float[Tensor, " d_ff"],
) -> Float[Tensor, "*token"]:
    """What a contribution is divided by, from |h|; zero where a layer's output is exactly zero."""
    if measure == "contribution":
        return torch.ones_like(magnitude[..., 0])
    if measure == "sum":
        return magnitude @ norms
    norm: Float[Tensor, "*token"] = torch.linalg.vector_norm(output.float(), dim=-1)
    return norm
