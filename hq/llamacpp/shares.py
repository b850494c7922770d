"""Machine code that sums contributions, and adds the CETT of one token to the means of its row."""

from typing import Any

import numpy as np

from hq.llamacpp.native import Floats, Ints, compiled, floats, words
from hq.llamacpp.state import Field


@compiled
def total_of(h: Floats, norms: Floats) -> Any:
    """Σ_j |h_j| · norm_j."""
    total = np.float32(0)
    for j in range(len(norms)):
        total += abs(h[j]) * norms[j]
    return total


@compiled
def length_of(vector: Floats) -> Any:
    """‖vector‖₂."""
    square = np.float32(0)
    for j in range(len(vector)):
        square += vector[j] * vector[j]
    return np.sqrt(square)


@compiled
def add(
    state: Ints,
    layer: int,
    token: int,
    measure: int,
    start: int,
    h: Floats,
    norms: Floats,
    denominator: Any,
) -> None:
    """Add a token's CETT by one measure, times its weights, to the means of its row.

    `h` and `norms` are those of consecutive neurons of the layer, from the index `start` on.
    """
    if measure < 0 or denominator == 0:  # CETT is zero where the layer's output is zero
        return
    spans, width = state[Field.SPANS], len(norms)
    row = words(state[Field.TRACE_ROW_AT], token + 1)[token]
    weights = floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    for span in range(spans):
        weight = weights[token * spans + span]
        if weight != 0:
            share = weight / denominator
            offset = ((row * state[Field.MEASURES] + measure) * spans + span) * state[Field.LAYERS]
            first = (offset + layer) * state[Field.WIDTH] + start
            out = floats(state[Field.TRACE_VALUE_AT] + 4 * first, width)
            for j in range(width):
                out[j] += share * (abs(h[j]) * norms[j])


@compiled
def is_weighted(state: Ints, token: int) -> Any:
    """Whether a token has a weight in any span."""
    spans = state[Field.SPANS]
    weights = floats(state[Field.TRACE_WEIGHT_AT], (token + 1) * spans)
    return (weights[token * spans :] != 0).any()
