"""The audit of a loaded model: how its projections are really stored and computed."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One kind of FFN or attention projection of a loaded model."""

    module: str  # class of the module, or name of the tensor in llama.cpp
    count: int
    storage: str  # dtype of the stored weight
    bits_per_weight: float  # from the bytes that are allocated, scales included
    compute: str  # dtype of the activations
    weights: int  # number of weights, all `count` together
