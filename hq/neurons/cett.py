"""CETT, the share of one neuron in its layer's output: the formulas, on tensors.

h [d_ff] is the input of a layer's down projection. There are three measures of neuron i at a token:

- `sum` (the H-Neurons article): |h_i| · ‖W_down[:, i]‖₂ / Σ_j |h_j| · ‖W_down[:, j]‖₂
- `output` (Gao et al., arXiv 2512.01797): |h_i| · ‖W_down[:, i]‖₂ / ‖W_down · h‖₂
- `contribution`: the numerator alone, by which precisions are compared

Norms are those of the loaded variant's own, dequantized W_down.

In a mixture of experts the output of a layer is y = Σ_e g_e · E_e(x), with the routing weight g_e
of expert e; a shared expert is one more, with its own gate or g = 1. Neuron (layer, e, i) counts
with g_e · h_i in place of h_i, and with 0 at tokens that are not routed to e. The denominators are
over the whole layer: Σ over all experts, or ‖y‖₂ (without the biases of down projections).
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
    """‖W_down[:, i]‖₂ of a dense W_down, float32."""
    norms: Float[Tensor, " d_ff"] = torch.linalg.vector_norm(weight.float(), dim=0)
    return norms


def span_means(
    h: Float[Tensor, "batch seq d_ff"],
    output: Float[Tensor, "batch seq d_model"],
    norms: Float[Tensor, " d_ff"],
    weights: Float[Tensor, "batch span seq"],
    measures: tuple[Measure, ...],
) -> Float[Tensor, "batch measure span d_ff"]:
    """Weighted sums of each measure over tokens; means over a span if its weights add up to 1.

    `output` is W_down · h without the bias. The denominators are folded into the token weights, so
    that one matrix product over |h| computes every measure and span. A token at which the layer's
    output is exactly zero counts as zero.
    """
    magnitude = h.abs().float()
    denominators = [denominator(measure, magnitude, output, norms) for measure in measures]
    folded = [weights / d.masked_fill(d == 0, torch.inf)[:, None, :] for d in denominators]
    stacked = torch.cat(folded, dim=1)  # [batch, measure·span, seq]
    sums = torch.bmm(stacked, magnitude).mul_(norms)  # [batch, measure·span, d_ff]
    return sums.reshape(len(sums), len(measures), weights.shape[1], -1)


def denominator(
    measure: Measure,
    magnitude: Float[Tensor, "*token d_ff"],
    output: Float[Tensor, "*token d_model"],
    norms: Float[Tensor, " d_ff"],
) -> Float[Tensor, "*token"]:
    """The denominator of a measure, from |h|; zero where the layer's output is exactly zero."""
    if measure == "contribution":
        return torch.ones_like(magnitude[..., 0])
    if measure == "sum":
        return magnitude @ norms
    return output_norm(output)


def output_norm(output: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token"]:
    """‖y‖₂ of a layer's output at each token, float32."""
    norm: Float[Tensor, "*token"] = torch.linalg.vector_norm(output.float(), dim=-1)
    return norm
