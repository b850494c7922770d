"""What is really loaded: modules or tensors, their storage types and sizes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One kind of FFN or attention projection as it is really loaded."""

    module: str  # class of the module that multiplies
    count: int
    storage: str  # dtype of the stored weight
    bits_per_weight: float  # real bytes, scales included
    compute: str  # dtype the activations come in
    weights: int  # how many numbers it holds, all `count` together
