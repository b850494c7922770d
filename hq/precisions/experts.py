"""Which precisions also hold the experts of a mixture, and the refusal of those that do not.

transformers packs the experts of a layer into 3-D parameters. Quantizers that replace linear
layers (bitsandbytes, torchao, HQQ) leave them as they are, without a word: most weights of the
model would then stay unquantized.
"""

from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from hq.errors import HQError
from hq.models.checkpoint import quantization_of, tensors_of
from hq.precisions.base import PRECISIONS, Precision, StoredWeight


@runtime_checkable
class HoldsExperts(Protocol):
    """A precision that also stores the 3-D weights of experts."""

    def stored_experts(self, module: nn.Module) -> StoredWeight | None:
        """How a layer's routed experts are stored; None if it is not at this precision."""
        ...


def experts_at(precision: Precision, module: nn.Module) -> StoredWeight | None:
    """How a layer's routed experts are stored at a precision; None if they are at another one."""
    return precision.stored_experts(module) if isinstance(precision, HoldsExperts) else None


def require_experts(path: Path, precision: Precision) -> None:
    """Raises HQError for a precision that would leave the experts of a checkpoint unquantized.

    A checkpoint whose experts are packed (AWQ, GPTQ, compressed-tensors) is not read either.
    """
    if isinstance(precision, HoldsExperts):
        return
    possible = [name for name in PRECISIONS if isinstance(PRECISIONS[name], HoldsExperts)]
    named = f"{', '.join(possible[:-1])} or {possible[-1]}"
    method = quantization_of(path)
    if method is not None:
        raise HQError(
            f"{path} is a mixture of experts that is quantized already ({method}), and hq does not "
            f"read packed experts: name its dense checkpoint, and use {named}."
        )
    sizes = {name: prod(tensor.shape) for name, tensor in tensors_of(path).items()}
    share = sum(n for name, n in sizes.items() if ".experts." in name) / sum(sizes.values())
    raise HQError(
        f"{precision.name} would leave the experts of {path} unquantized, which are {share:.0%} of "
        "its weights, as they are packed in 3-D parameters and no linear layers: use "
        f"{named}."
    )
